"""Prompts that were stored come back; no row cites what is not there; no name runs foreign code."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from robench import cli, files, load_prompt, load_rows
from robench.errors import InputError
from robench.methods.registry import load_class
from robench.model.loading import find_model, load_model
from robench.results.artifacts import packed_prompts, read_prompt
from robench.types import GAP, Prompt, user

CELL = "none__mine__0-0123456789"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of a run, with the folder of one cell."""
    (tmp_path / "cells" / CELL / "tensors").mkdir(parents=True)
    return tmp_path


def stored(folder: Path, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Save prompts as those of a chunk; the rows that `load_rows` would give of them."""
    keys, content = packed_prompts(prompts, "00032.safetensors")
    if content:
        files.write_bytes(folder / "cells" / CELL / "tensors" / "00032.safetensors", content)
    artifacts = [
        {"messages": list(prompt.messages), "tensors": key}
        for prompt, key in zip(prompts, keys, strict=True)
    ]
    cited = {"run": str(folder), "cell": CELL}
    return [{**cited, "artifact": json.loads(json.dumps(artifact))} for artifact in artifacts]


def same(one: object, other: object) -> bool:
    """Whether two edits are equal, tensors to the bit and fields of the same types."""
    if type(one) is not type(other):
        return False
    for name, value in vars(one).items():
        found = getattr(other, name)
        if isinstance(value, Tensor):
            if value.dtype != found.dtype or not torch.equal(value, found):
                return False
        elif (type(value), value) != (type(found), found):
            return False
    return True


@dataclass(frozen=True)
class Words:
    """An edit whose fields are not tensors."""

    layer: int
    mode: Literal["on", "off"]
    name: str
    roles: tuple[int, ...]
    pairs: tuple[tuple[float, str], ...] = ()
    limit: float | None = None

    def __call__(self, h: Tensor, role: Tensor) -> Tensor:
        return h


# There and back


def test_text_comes_back_without_a_file(folder: Path) -> None:
    prompts = [Prompt(user("Why?")), Prompt((*user("A"), {"role": "assistant", "content": "B"}))]
    rows = stored(folder, prompts)
    assert [load_prompt(row) for row in rows] == prompts
    assert not list((folder / "cells" / CELL / "tensors").iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_soft_vectors_come_back_to_the_bit(folder: Path, dtype: torch.dtype) -> None:
    vectors = [torch.randn(3, 8).to(dtype), torch.randn(8, 5).T.to(dtype)]
    prompts = [Prompt(user(f"{GAP} why?"), soft=soft) for soft in vectors]
    rows = stored(folder, [prompts[0], Prompt(user("text")), prompts[1]])
    for row, soft in ((rows[0], vectors[0]), (rows[2], vectors[1])):
        prompt = load_prompt(row)
        assert prompt.messages == user(f"{GAP} why?") and prompt.access == "embedding"
        assert prompt.soft is not None and prompt.soft.dtype == dtype
        assert torch.equal(prompt.soft, soft)
    assert load_prompt(rows[1]) == Prompt(user("text"))


def test_edits_of_the_built_in_attacks_come_back(folder: Path) -> None:
    repe, scav = (sys.modules[load_class("attack", n).__module__] for n in ("repe", "scav"))
    edits = (
        repe.AddVector(-2, torch.randn(8), (1, 2, 3)),
        scav.Shift(3, torch.randn(8), -0.1 / 3, 1e-4, (2,)),
        scav.RandomShift(1, torch.randn(8), 1.0, 0.5, (2, 3), torch.randn(8)),
    )
    prompts = [Prompt(user("a"), edits=edits[:1]), Prompt(user("b"), torch.ones(1, 8), edits)]
    for row, prompt in zip(stored(folder, prompts), prompts, strict=True):
        loaded = load_prompt(pd.Series(row))
        assert loaded.access == "activation" and loaded.messages == prompt.messages
        assert len(loaded.edits) == len(prompt.edits)
        assert all(map(same, prompt.edits, loaded.edits))


def test_fields_have_the_types_of_the_class(folder: Path) -> None:
    edit = Words(1, "on", "1e-3", (1, 2), ((0.1, "no"), (1e-20, "[x]")))
    (row,) = stored(folder, [Prompt(user("a"), edits=(edit,))])
    (loaded,) = load_prompt(row).edits
    assert same(edit, loaded) and loaded == edit
    for text in ("null", "", "\U0001f600 \ud83d", '"'):
        edit = Words(1, "off", text, ())
        (row,) = stored(folder, [Prompt(user("a"), edits=(edit,))])
        assert load_prompt(row).edits == (edit,)


def test_an_edit_of_a_file_comes_back_once_the_file_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True)\n"
        "class Edit:\n"
        "    layer: int\n"
        "    def __call__(self, h, role):\n"
        "        return h\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    def run(self, model, behaviors, ctx):\n"
        "        yield\n"
    )
    module = load_class("attack", f"{file}:Mine").__module__
    (row,) = stored(folder, [Prompt(user("a"), edits=(sys.modules[module].Edit(2),))])
    assert load_prompt(row).edits == (sys.modules[module].Edit(2),)
    monkeypatch.delitem(sys.modules, module)
    with pytest.raises(InputError, match="load the attack's file first, from where the run had it"):
        load_prompt(row)


# Folders of others


def forged(folder: Path, reference: str, **fields: object) -> dict[str, Any]:
    """A row whose edit claims to be of a class."""
    plain = {f"0.edits.0.{name}": json.dumps(value) for name, value in fields.items()}
    content = save({"0.soft": torch.ones(1, 8)}, metadata={"0.edits.0": reference, **plain})
    (folder / "cells" / CELL / "tensors" / "x.safetensors").write_bytes(content)
    artifact = {"messages": list(user("a")), "tensors": "x.safetensors:0"}
    return {"run": str(folder), "cell": CELL, "artifact": artifact}


@pytest.mark.parametrize(
    "module",
    [
        "evil",  # importable
        "evil.part",
        "robench_attacks.evil.part",
        "robench_attacksevil",
        "antigravity",
        "",
        ".evil",
    ],
)
def test_a_forged_module_is_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    (tmp_path / "robench_attacksevil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    with pytest.raises(InputError, match="is of no installed attack or defense"):
        load_prompt(forged(folder, f"{module}:Edit", layer=1))
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("os:system", "there is no such dataclass"),
        ("subprocess:Popen", "there is no such dataclass"),
        ("robench:run", "there is no such dataclass"),  # would be imported by getattr
        ("robench.types:Forecast", "there is no such dataclass"),
        ("robench.types:Behavior", "it has no field `layer`"),
        ("robench.types:Behavior.nothing.at.all", "there is no such dataclass"),
        ("robench.types", "there is no such dataclass"),
        ("robench_attacks.scav:Nothing", "there is no such dataclass"),
        ("robench_attacks.nothing:Shift", "fails to import"),
    ],
)
def test_a_name_that_is_no_edit_makes_nothing(folder: Path, reference: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_prompt(forged(folder, reference, layer=1))


def test_fields_that_do_not_fit_are_told(folder: Path) -> None:
    load_class("attack", "repe")
    reference = "robench_attacks.repe:AddVector"
    for fields in (
        {"layer": 1, "roles": [1]},
        {"layer": "x", "roles": [1], "vector": 1},
        {"layer": 1, "roles": 1, "vector": [1]},
    ):
        with pytest.raises(InputError, match="AddVector"):
            load_prompt(forged(folder, reference, **fields))


@pytest.mark.parametrize("tensors", ["gone.safetensors:0", "..:0", ":0", "x.safetensors:7", "/:0"])
def test_tensors_that_are_not_there_are_told(folder: Path, tensors: str) -> None:
    row = forged(folder, "robench_attacks.repe:AddVector")
    row["artifact"]["tensors"] = tensors
    with pytest.raises(InputError, match=r"cannot read the tensors|holds nothing of prompt 7"):
        load_prompt(row)


def test_tensors_are_those_of_the_cell(folder: Path) -> None:
    """A path in the place of a name leads nowhere else."""
    (folder / "elsewhere.safetensors").write_bytes(save({"0.soft": torch.ones(1, 8)}))
    artifact = {"messages": list(user("a")), "tensors": "../../../elsewhere.safetensors:0"}
    with pytest.raises(InputError, match="cannot read the tensors"):
        read_prompt(folder / "cells" / CELL, artifact)


def test_damaged_tensors_are_told(folder: Path) -> None:
    (row,) = stored(folder, [Prompt(user("a"), soft=torch.ones(1, 8))])
    file = folder / "cells" / CELL / "tensors" / "00032.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"cannot read the tensors in .*00032\.safetensors"):
        load_prompt(row)


# Of a run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run three attacks on the organism, in this process; give the exit code."""

    def call(*words: str) -> int:
        line = [
            "robench",
            "run",
            "--matrix",
            "smoke",
            "--defenses",
            "none",
            "--n",
            "2",
            "--threads",
            "1",
            "--out",
        ]
        line += [str(tmp_path / "run"), *words]
        monkeypatch.setattr(sys, "argv", line)
        return cli.main()

    return call


def test_the_prompts_of_a_run_get_the_replies_that_were_recorded(
    call: Callable[..., int], tmp_path: Path
) -> None:
    attacks = ["--attacks", "soft_prompt", "scav", "repe"]
    settings = ["--set", "soft_prompt.steps=3", "scav.p0=[1e-4]"]
    assert call(*attacks, *settings) == 0
    rows = load_rows(tmp_path / "run").query("final and not attack.str.startswith('benign')")
    prompts = [load_prompt(row) for _, row in rows.iterrows()]
    assert [prompt.access for prompt in prompts] == list(rows["access"])
    assert set(rows["access"]) == {"embedding", "activation"}
    model = load_model(find_model("organism"), max_new_tokens=64)
    assert model.generate(prompts) == list(rows["reply"])


SOFT = ("--attacks", "soft_prompt", "--set", "soft_prompt.steps=2")
INTERRUPTED = 130


def cited(run: Path) -> list[Path]:
    """The tensor files that rows of a run cite; every one can be read."""
    found = []
    for cell in run.glob("cells/*"):
        for row in files.read_json_lines(cell / "rows.jsonl"):
            if row["artifact"]["tensors"]:
                found.append(cell / "tensors" / row["artifact"]["tensors"].partition(":")[0])
    for file in found:
        assert load_file(file)
    return found


def test_a_run_that_dies_before_its_tensors_are_written_has_no_row_that_cites_them(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files.write_bytes

    def dying(path: Path, content: bytes) -> None:
        if path.parent.name == "tensors":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_bytes", dying)
        assert call(*SOFT) == INTERRUPTED
    assert cited(tmp_path / "run") == []
    assert call(*SOFT) == 0
    assert len(cited(tmp_path / "run")) >= 2


@pytest.mark.parametrize("written", [False, True])
def test_a_run_that_dies_as_it_appends_rows_has_their_tensors(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    append = files.append_lines
    run = tmp_path / "run"

    def dying(path: Path, lines: Sequence[str]) -> None:
        soft = "soft_prompt" in path.parent.name
        if written or not soft:
            append(path, lines)
        if soft:
            assert list(path.parent.glob("tensors/*.safetensors"))
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "append_lines", dying)
        assert call(*SOFT) == INTERRUPTED
    (file,) = run.glob("cells/*soft_prompt*/tensors/*.safetensors")
    assert load_file(file)
    assert (len(cited(run)) > 0) == written
    before = file.read_bytes()
    assert call(*SOFT) == 0
    assert file.read_bytes() == before and len(cited(run)) >= 2
