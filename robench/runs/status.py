"""How far a run is, from its folder alone: `robench status`, from any shell that sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from robench import files, locks
from robench.errors import InputError
from robench.results.store import RunStore, done_in
from robench.runs.journal import FILE, PlannedCell, ProgressRecord
from robench.runs.progress import ENOUGH, duration, in_words


@dataclass(frozen=True)
class CellStatus:
    """A cell of the last command: how many of its behaviors are done, and why it failed, if so."""

    planned: PlannedCell
    done: int
    reason: str

    @property
    def title(self) -> str:
        return f"{self.planned['defense']} x {self.planned['attack']}, seed {self.planned['seed']}"

    @property
    def finished(self) -> bool:
        return not self.reason and self.done >= self.planned["behaviors"]

    def share(self, done: int) -> float:
        """Forecast seconds of so many of its behaviors."""
        return (self.planned["seconds"] or 0.0) * done / max(1, self.planned["behaviors"])


@dataclass(frozen=True)
class Status:
    """How far the last command on a folder is."""

    folder: Path
    record: ProgressRecord
    cells: list[CellStatus]
    holder: str

    @classmethod
    def of(cls, folder: Path) -> Status:
        """Of a run's folder.

        Raises:
            InputError: it is not a run's, or nothing was begun in it.
        """
        RunStore(folder).question()
        if not (folder / FILE).is_file():
            raise InputError(f"{folder} has no {FILE}: no cell was begun there")
        record: ProgressRecord = files.read_json(folder / FILE)
        cells = [_cell(folder, planned) for planned in record["cells"]]
        return cls(folder, record, cells, locks.holder(folder))

    @property
    def rest(self) -> float | None:
        """Seconds to the end at the pace so far; by the forecast where there is no pace yet."""
        before = self.record["done_before"]
        made = sum(c.share(c.done - before.get(c.planned["name"], 0)) for c in self.cells)
        left = sum(c.share(c.planned["behaviors"] - c.done) for c in self.cells if not c.reason)
        if not left:
            return None
        is_enough = made > ENOUGH * (made + left) and self.record["elapsed"] > 0
        return left * (self.record["elapsed"] / made if is_enough else 1.0)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        done = [cell for cell in self.cells if cell.finished]
        failed = [cell for cell in self.cells if cell.reason]
        age = datetime.now(UTC) - datetime.fromisoformat(self.record["updated"])
        yield (
            f"{self.folder}: running, {self.holder}; {duration(age.total_seconds())} old"
            if self.holder
            else f"{self.folder}: nobody works on it"
        )
        if self.holder and self.record["workers"]:
            yield f"workers: {in_words(self.record['workers'])}"
        yield (
            f"{len(self.cells)} cells: {len(done)} done, {len(failed)} failed, "
            f"{len(self.cells) - len(done) - len(failed)} left; "
            f"{sum(c.done for c in self.cells)} of "
            f"{sum(c.planned['behaviors'] for c in self.cells)} requests done"
        )
        yield from self._running()
        yield from (f"failed: {cell.title}: {cell.reason}" for cell in failed)
        if self.rest is not None:
            what = "to the end" if self.holder else "are left"
            yield f"about {duration(self.rest)} {what}"

    def _running(self) -> Iterator[str]:
        if not self.holder:
            return
        names = self.record["running"]
        cells = {cell.planned["name"]: cell for cell in self.cells}
        for name in dict.fromkeys(names):
            cell = cells.get(name)
            if cell is None:
                yield f"running: {name}"
            elif not cell.finished:
                yield f"running: {cell.title}: {cell.done} of {cell.planned['behaviors']}"


def _cell(folder: Path, planned: PlannedCell) -> CellStatus:
    path = folder / "cells" / Path(planned["name"]).name
    failure = path / "failed.json"
    reason = files.read_json(failure)["reason"] if failure.is_file() else ""
    return CellStatus(planned, len(done_in(path)), reason)
