"""Rows do not depend on how many workers there are, and files of methods reach them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import robench
from robench.errors import InputError
from robench.results.store import RunStore
from robench.runs import chunks, plan, worker_setup
from robench.runs.status import Status

pytest.importorskip("ray")

PLUGIN = """
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
import torch
from beside import WORDS
from robench.types import Attempt, Prompt, user

@dataclass(frozen=True)
class Fits:
    files = (Path(__file__).with_name("words.txt"),)
    def run(self, model, behaviors, ctx):
        def fit():
            return {"noise": torch.rand(3, generator=ctx.rng("fit")),
                    "states": model.hidden([Prompt(user(b.text)) for b in ctx.tune[:2]])[0]}
        noise = ctx.memo("mine", fit)["noise"]
        words = self.files[0].read_text()
        for b in behaviors:
            prompt = Prompt(user(f"{b.text} {WORDS} {words} {noise[0]:.6f}"))
            yield Attempt(b, prompt, trace=tuple(noise.tolist()), final=True)

@dataclass(frozen=True)
class Fails:
    def run(self, model, behaviors, ctx):
        yield from [][1]
"""
OPTIONS = {
    "matrix": "smoke",
    "defenses": ["none", "circuit_breaker"],
    "settings": {"circuit_breaker": {"steps": 3}, "soft_prompt": {"steps": 2}},
    "n": 5,
    "n_benign": 2,
    "max_new_tokens": 12,
    "samples": 1,
    "threads": 1,
}


ALONE = {**OPTIONS, "defenses": ["none"], "settings": {}}


@pytest.fixture(scope="module")
def local_ray(synthetic_runs):
    with synthetic_runs.local_ray(8):
        yield


@pytest.fixture
def plugin(written_plugin, monkeypatch) -> Path:
    monkeypatch.setattr(chunks, "CHUNK", 2)
    return written_plugin(PLUGIN)


def contents(out: Path) -> dict[str, object]:
    """The cells of a run without times: rows in the order of the behaviors, and tensors."""
    found: dict[str, object] = {}
    for path in sorted((out / "cells").rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".safetensors":
            found[name] = path.read_bytes()
        if path.name == "rows.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            assert len({row["behavior"] for row in rows if row["last"]}) == sum(
                row["last"] for row in rows
            )
            found[name] = sorted(
                json.dumps({k: v for k, v in row.items() if k != "seconds"}) for row in rows
            )
    return found


def test_two_and_four_workers_have_the_rows_of_one_process(plugin, local_ray, tmp_path, capfd):
    attacks = ["direct", "soft_prompt", f"{plugin}:Fits"]
    outs = {}
    for workers in (None, 2, 4):
        outs[workers] = tmp_path / f"out{workers}"
        outcome = robench.run(attacks=attacks, out=outs[workers], workers=workers, **OPTIONS)
        assert outcome.holes == 0
        assert "Traceback" not in capfd.readouterr().err
    expected = contents(outs.pop(None))
    assert len([name for name in expected if "/tensors/" in name]) == 2 * 3
    assert len([name for name in expected if "memo" in name]) == 2
    for out in outs.values():
        assert contents(out) == expected
        (adapter,) = (out / "defenses").iterdir()
        assert (adapter / "adapter_model.safetensors").is_file()
    told = str(Status.of(outs[4]))
    assert "nobody works on it" in told and "12 cells: 12 done, 0 failed, 0 left" in told
    (cell,) = (outs[2] / "cells").glob("none__Fits*")
    info = json.loads((cell / "cell.json").read_text())["info"]
    assert info["threads"] == 1 and info["device"] == "cpu"


def test_what_fails_in_a_worker_is_told_as_in_one_process(plugin, local_ray, tmp_path):
    asked = {**ALONE, "attacks": [f"{plugin}:Fails"]}
    with pytest.raises(InputError, match=r"attack 'Fails' \(.*mine/plugin.py:25\): IndexError"):
        robench.run(out=tmp_path / "out", workers=1, **asked)
    assert len(list((tmp_path / "out").glob("cells/*/failed.json"))) == 1
    told = str(Status.of(tmp_path / "out"))
    assert "1 failed" in told and "failed: none x Fails, seed 0: IndexError" in told


@pytest.mark.parametrize("what", ["version", "content"])
def test_a_worker_that_is_not_as_the_driver_is_refused_by_name(
    what, plugin, local_ray, tmp_path, monkeypatch
):
    if what == "version":
        versions = plan._versions()
        monkeypatch.setattr(plan, "_versions", lambda: {**versions, "transformers": "0.1"})
        told = r"worker on .*: transformers is .* there and 0.1 here"
    else:
        original = worker_setup.sources_of
        monkeypatch.setattr(
            worker_setup, "sources_of", lambda m: {**original(m), "attack Fits": "another"}
        )
        told = r"worker on .*: attack Fits has other code or files there"
    asked = {**ALONE, "attacks": [f"{plugin}:Fits"]}
    with pytest.raises(InputError, match=told):
        robench.run(out=tmp_path / "out", workers=1, **asked)
    assert not RunStore(tmp_path / "out").folder.joinpath("cells").exists()
