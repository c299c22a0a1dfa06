"""Asking a finished run's model again: does a stored prompt still bring the recorded reply?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from robench.config import suggestion
from robench.errors import InputError
from robench.methods.registry import load_class
from robench.results.artifacts import read_prompt
from robench.results.schema import StoredCell
from robench.results.store import RunStore
from robench.runs.finished import FinishedRun
from robench.runs.question import ModelSpec


class Replayed(NamedTuple):
    """An attempt of a run with the reply that its prompt brings now."""

    tag: str
    step: int
    recorded: str | None
    reply: str | None

    @property
    def same(self) -> bool:
        return self.recorded == self.reply


def replay(folder: str | Path, cell: str, behavior: str, spec: ModelSpec) -> list[Replayed]:
    """Generate again from the final prompts of a behavior in a cell.

    Args:
        folder: of a run.
        cell: the name of its folder under cells/, or as much of its beginning as is unique.
        behavior: the id of a request.
        spec: where the model works.

    Raises:
        InputError: there is no such run, cell or behavior, or the model has changed.
        Failure: the defense has changed or its adapter is gone.
    """
    store = RunStore(Path(folder))
    path, (header, info, rows, _) = _cell(store, cell)
    finals = [row for row in rows if row["behavior"] == behavior and row["final"]]
    if not finals:
        ids = list(dict.fromkeys(row["behavior"] for row in rows))
        raise InputError(f"{path.name} has no behavior {behavior!r}{suggestion(behavior, ids)}")
    load_class("attack", info["attack_reference"])  # the classes of its edits
    prompts = [read_prompt(path, row["artifact"]) for row in finals]
    run = FinishedRun.load(store, spec)
    with run.defended(header, info) as target:
        replies = target.replies(prompts)
    return [
        Replayed(row["tag"], row["step"], row["reply"], reply.answer)
        for row, reply in zip(finals, replies, strict=True)
    ]


def _cell(store: RunStore, name: str) -> tuple[Path, StoredCell]:
    cells = {path.name: (path, cell) for path, cell in store.located_cells()}
    matching = [name] if name in cells else [found for found in cells if found.startswith(name)]
    if len(matching) != 1:
        what = "several cells" if matching else "no cell"
        raise InputError(f"{store.folder} has {what} called {name!r}{suggestion(name, cells)}")
    return cells[matching[0]]
