"""What is written stays, what is torn goes, and a folder answers one question only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robench.errors import InputError
from robench.results.store import Cell, RunStore

QUESTION = {"model": "organism", "n": 40}
ORDER: dict[str, list[str]] = {"defenses": ["none"], "attacks": ["direct", "gcg", "soft_prompt"]}


def cell(attack: str = "gcg", defense: str = "none", **header: Any) -> Cell:
    asked = {
        "model": "organism",
        "defense": defense,
        "attack": attack,
        "seed": 0,
        "planned": ["a", "b"],
        "judges": ["exact"],
        **header,
    }
    return Cell("organism", defense, attack, asked["seed"], asked)


def row(behavior: str, **fields: Any) -> dict[str, Any]:
    return {"behavior": behavior, "final": True, "reply": "words", "samples": [], **fields}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    store.open_for(QUESTION, {"torch": "2.13.0"}, ORDER)
    return store


def test_a_folder_is_claimed_once_and_for_the_same_question(store: RunStore) -> None:
    before = (store.folder / "run.json").stat()
    assert store.open_for(QUESTION, {"torch": "2.13.0"}, ORDER) == []
    assert (store.folder / "run.json").stat().st_ino == before.st_ino  # nothing to write
    assert store.question() == QUESTION


def test_another_question_is_refused_and_the_difference_named(store: RunStore) -> None:
    with pytest.raises(InputError, match="made with n = 40, not 41; choose another --out"):
        store.open_for({**QUESTION, "n": 41}, {}, ORDER)
    assert store.question() == QUESTION


def test_other_versions_only_warn(store: RunStore) -> None:
    (warning,) = store.open_for(QUESTION, {"torch": "2.14.0", "peft": "1"}, ORDER)
    assert warning == "torch was 2.13.0 here, is now 2.14.0"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not empty and is not a run folder"):
        RunStore(tmp_path).open_for(QUESTION, {}, ORDER)
    with pytest.raises(InputError, match="is not empty and is not a run folder"):
        RunStore(tmp_path).locked(new=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_without_a_run_has_no_cells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a run folder \(no run\.json\)"):
        list(RunStore(tmp_path).cells())


def test_a_damaged_record_is_named(store: RunStore) -> None:
    (store.folder / "run.json").write_text('{"question": ')
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        store.question()


def test_what_is_appended_comes_back(store: RunStore) -> None:
    first, second = (
        row("a", reply="two\nlines \u2028 \r and \ud83d"),
        row("b", scores={"exact": None}),
    )
    store.open(cell(), {"device": "cpu"})
    store.append(cell(), [first])
    store.append(cell(), [second])
    ((header, info, rows, reason),) = store.cells()
    assert (header, info) == (cell().header, {"device": "cpu"})
    assert (rows, reason) == ([{**first, "last": True}, {**second, "last": True}], "")


def test_a_cell_is_complete_when_every_planned_behavior_is_done(store: RunStore) -> None:
    assert not store.complete(cell())
    store.open(cell(), {})
    store.append(cell(), [row("a", final=False), row("a")])
    assert store.done(cell()) == {"a"}
    assert not store.complete(cell())
    store.append(cell(), [row("b")])
    assert store.complete(cell())


def test_a_failure_stands_until_the_cell_is_mended(store: RunStore) -> None:
    store.open(cell(), {})
    store.append(cell(), [row("a"), row("b")])
    store.fail(cell(), "loss is NaN")
    assert not store.complete(cell())
    assert [reason for *_, reason in store.cells()] == ["loss is NaN"]
    store.clear_failure(cell())
    store.clear_failure(cell())
    assert store.complete(cell())


@pytest.mark.parametrize("cut", range(1, 20, 3))
def test_a_torn_last_line_is_not_a_row_and_is_cut_off(store: RunStore, cut: int) -> None:
    path = store.open(cell(), {}) / "rows.jsonl"
    store.append(cell(), [row("a"), row("b")])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert store.done(cell()) == {"a"}
    store.open(cell(), {})
    store.append(cell(), [row("b")])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", range(1, 400, 19))
def test_a_behavior_with_several_rows_is_whole_or_not_there(store: RunStore, cut: int) -> None:
    """A tear between two tags, even at the end of a line, leaves neither of them."""
    path = store.open(cell(), {}) / "rows.jsonl"
    rows = [row("a"), row("b", tag="x"), row("b", tag="y"), row("b", tag="z")]
    store.append(cell(), rows)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    torn = store.done(cell())
    assert torn <= {"a"}
    store.open(cell(), {})
    store.append(cell(), [r for r in rows if r["behavior"] not in torn])
    assert path.read_bytes() == whole


def test_a_file_that_holds_only_a_torn_line_is_emptied(store: RunStore) -> None:
    path = store.open(cell(), {}) / "rows.jsonl"
    path.write_text('{"behavior": "a", "fin')
    store.open(cell(), {})
    assert path.read_bytes() == b""


def test_rows_that_cannot_be_written_leave_the_file_alone(store: RunStore) -> None:
    path = store.open(cell(), {}) / "rows.jsonl"
    store.append(cell(), [row("a")])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        store.append(cell(), [row("b"), row("c", loss=float("nan"))])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "name",
    ["../../x", "/etc/passwd", "..", "mine.py:Random Suffix", "été 守る", "a" * 300, "-rf", ""],
)
def test_names_are_safe_as_folders(store: RunStore, name: str) -> None:
    path = store.open(cell(name, name), {})
    assert path.resolve().parent == (store.folder / "cells").resolve()
    assert path.name.isascii()
    assert " " not in path.name
    assert not path.name.startswith((".", "-"))
    assert len(path.name) <= 100


def test_names_tell_cells_apart_whatever_their_readable_part() -> None:
    assert cell("a b").name != cell("a-b").name
    assert cell().name != cell(steps=100).name
    assert cell().name == cell().name


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (lambda s: s.open_for(QUESTION, {}, ORDER), lambda s: s.locked(new=True)):
        with pytest.raises(InputError, match="cannot make the folder"):
            make(RunStore(tmp_path / "file" / "run"))


def test_a_locked_folder_is_one_that_may_be_claimed(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "new" / "run")
    with store.locked(new=True):
        store.open_for(QUESTION, {}, ORDER)
    with store.locked():
        assert store.question() == QUESTION
    RunStore(tmp_path / "left").folder.mkdir()
    with RunStore(tmp_path / "left").locked(new=True):
        pass
    assert RunStore(tmp_path / "left").open_for(QUESTION, {}, ORDER) == []


def test_a_folder_that_is_not_there_is_not_made_for_a_reader(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "mistyped"):
        with pytest.raises(InputError, match="is not a run folder"):
            RunStore(folder).locked()
    assert not list(tmp_path.iterdir())


# The order of cells


def cells(store: RunStore) -> list[tuple[str, str, int]]:
    return [(h["defense"], h["attack"], h["seed"]) for h, *_ in store.cells()]


def test_cells_come_as_they_were_asked_for_whenever_they_were_made(store: RunStore) -> None:
    wanted = [
        (defense, attack, seed)
        for defense in ("es2", "none")
        for attack in ("benign", "soft_prompt", "direct", "gcg")
        for seed in (0, 1)
    ]
    for defense, attack, seed in sorted(wanted, key=lambda w: w[::-1]):
        store.open(cell(attack, defense, seed=seed), {})
    order = {"defenses": ["es2", "none"], "attacks": ["soft_prompt", "direct", "gcg"]}
    store.open_for(QUESTION, {}, order)
    assert cells(store) == wanted


def test_a_later_command_puts_its_names_first_and_forgets_none(store: RunStore) -> None:
    for attack in ("gcg", "soft_prompt", "direct", "new"):
        store.open(cell(attack), {})
    store.open_for(QUESTION, {}, {"defenses": ["cb"], "attacks": ("new", "gcg")})
    record = json.loads((store.folder / "run.json").read_text())
    assert record["order"] == {
        "defenses": ["cb", "none"],
        "attacks": ["new", "gcg", "direct", "soft_prompt"],
    }
    assert [attack for _, attack, _ in cells(store)] == record["order"]["attacks"]


def test_a_cell_that_the_order_does_not_name_comes_last(store: RunStore) -> None:
    for attack in ("another", "gcg"):
        store.open(cell(attack), {})
    assert [attack for _, attack, _ in cells(store)] == ["gcg", "another"]


# Cells that were asked otherwise


def test_a_cell_that_was_asked_otherwise_is_refused_with_both_ways_out(store: RunStore) -> None:
    store.open(cell(attack_fields={"steps": 2}), {})
    store.check_cells([cell(attack_fields={"steps": 2}), cell("direct", attack_fields={})])
    told = (
        "holds none x gcg with attack_fields.steps = 2, not 3; "
        "give --replace to run it again, or choose another --out"
    )
    with pytest.raises(InputError, match=told):
        store.check_cells([cell(attack_fields={"steps": 3})])
    with pytest.raises(InputError, match="with a different attack_source;"):
        store.open(cell("direct", attack_source="0" * 64), {})
        store.check_cells([cell("direct", attack_source="1" * 64)])


def test_a_field_that_is_no_longer_asked_is_a_difference(store: RunStore) -> None:
    store.open(cell(attack_fields={"steps": 2, "old": 1}), {})
    with pytest.raises(InputError, match=r"attack_fields\.old = 1, not null"):
        store.check_cells([cell(attack_fields={"steps": 2})])


def test_replacing_removes_such_cells_and_no_others(store: RunStore) -> None:
    old, new = cell(attack_fields={"steps": 2}), cell(attack_fields={"steps": 3})
    for kept in (old, cell("direct"), cell(defense="cb"), cell(seed=1)):
        path = store.open(kept, {})
        (path / "tensors" / "00000.safetensors").write_bytes(b"tensors")
        store.append(kept, [row("a"), row("b")])
    store.check_cells([new, cell("direct"), cell(defense="cb"), cell(seed=1)], replace=True)
    assert not store.path(old).exists()
    assert not store.complete(new)
    assert cells(store) == [("none", "direct", 0), ("none", "gcg", 1), ("cb", "gcg", 0)]
    store.open(new, {})
    assert store.done(new) == set()
    assert len(list((store.folder / "cells").iterdir())) == 4


def test_a_removal_that_is_killed_leaves_nothing_that_counts(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = cell(attack_fields={"steps": 2}), cell(attack_fields={"steps": 3})
    store.open(old, {})
    store.append(old, [row("a"), row("b")])

    def killed(folder: Path, **options: Any) -> None:
        if Path(folder).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("shutil.rmtree", killed)
        store.check_cells([new], replace=True)
    assert cells(store) == [] and not store.complete(old)
    store.check_cells([old], replace=True)
    store.open(old, {})
    store.check_cells([new], replace=True)  # what the first removal left is in nobody's way
    assert not list((store.folder / "cells").iterdir())


# Scores of later judges


def test_a_score_names_a_row_that_is_there(store: RunStore) -> None:
    path = store.open(cell(), {})
    store.append(cell(), [row("a", scores={}), row("b", scores={})])
    line = {"row": 1, "behavior": "b", "sample": None, "judge": "later", "score": 1.0}
    file = path / "scores-later.jsonl"
    file.write_text(json.dumps(line) + "\n")
    ((header, _, rows, _),) = store.cells()
    assert header["judges"] == ["exact", "later"]
    assert [r["scores"] for r in rows] == [{}, {"later": 1.0}]
    for wrong in ({"row": 2}, {"row": -1}, {"behavior": "a"}, {"sample": 0}):
        file.write_text(json.dumps({**line, **wrong}) + "\n")
        with pytest.raises(InputError, match="does not belong to the rows beside it"):
            list(store.cells())


def test_requests_are_kept_as_they_were(store: RunStore) -> None:
    store.save_behaviors([{"id": "a", "text": "words \ud83d"}])
    store.save_behaviors([{"id": "b"}])
    assert store.behaviors() == [{"id": "a", "text": "words \ud83d"}]
