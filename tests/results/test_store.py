"""What is written stays, what is torn goes, and a folder answers one question only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robench.errors import InputError
from robench.results.store import Cell, RunStore, write_atomically

QUESTION = {"model": "organism", "n": 40}


def cell(attack: str = "gcg", defense: str = "none", **header: Any) -> Cell:
    asked = {"attack": attack, "defense": defense, "planned": ["a", "b"], **header}
    return Cell("organism", defense, attack, 0, asked)


def row(behavior: str, **fields: Any) -> dict[str, Any]:
    return {"behavior": behavior, "final": True, "reply": "words", **fields}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    store = RunStore(tmp_path / "run")
    store.open_for(QUESTION, {"torch": "2.13.0"})
    return store


def test_a_folder_is_claimed_once_and_for_the_same_question(store: RunStore) -> None:
    assert store.open_for(QUESTION, {"torch": "2.13.0"}) == []
    assert store.question() == QUESTION


def test_another_question_is_refused_and_the_difference_named(store: RunStore) -> None:
    with pytest.raises(InputError, match="made for n = 40, not 41; choose another --out"):
        store.open_for({**QUESTION, "n": 41}, {})
    assert store.question() == QUESTION


def test_other_versions_only_warn(store: RunStore) -> None:
    (warning,) = store.open_for(QUESTION, {"torch": "2.14.0", "peft": "1"})
    assert warning == "torch was 2.13.0 here, is now 2.14.0"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty and is no run"):
        RunStore(tmp_path).open_for(QUESTION, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_without_a_run_has_no_cells(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run"):
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


def test_a_failed_write_leaves_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, {"n": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_atomically(path, {"n": float("nan")})
    assert json.loads(path.read_text()) == {"n": 1}


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


def test_cells_come_in_the_same_order_whenever_they_were_made(store: RunStore) -> None:
    for attack in ("soft_prompt", "direct", "gcg"):
        store.open(cell(attack), {})
    assert [header["attack"] for header, *_ in store.cells()] == ["direct", "gcg", "soft_prompt"]
