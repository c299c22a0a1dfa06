"""What a run prints while it works: a bar on a terminal, elsewhere a line per finished cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from robench.results.store import Cell
from robench.runs.cells import Group

ENOUGH = 0.05  # of the forecast work, before which the time that remains would be a guess


def duration(seconds: float) -> str:
    """A time for people: "0.5 s", "12 s", "3 min", "2.5 h"."""
    if seconds < 9.5:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h"


class Progress:
    """The progress of some groups of cells.

    Args:
        groups: with the cells that are left to do.
        weights: forecast seconds of each cell, training included, by the cell's name; a cell
            without a forecast counts as much as the mean of the others.
    """

    def __init__(self, groups: Sequence[Group], weights: Mapping[str, float]) -> None:
        names = [cell.name for group in groups for cell, _ in group.cells]
        mean = sum(weights.values()) / len(weights) if weights else 1.0
        self._weights = {name: weights.get(name, mean) for name in names}
        self._total = sum(self._weights.values())
        self._done = 0.0
        self._finished = 0
        self._started = time.perf_counter()
        self._begun: dict[str, float] = {}
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=len(names), desc="cells", disable=not self._terminal)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def training(self, group: Group) -> None:
        """A defense is about to be put on, which may train it; its first cell counts that time."""
        if group.cells:
            self._begun[group.cells[0][0].name] = time.perf_counter()
        self._bar.set_postfix_str(group.defense.name)

    def trained(self, group: Group) -> None:
        """A defense is on for the first time."""

    def chunk(self, cell: Cell, behaviors: int) -> None:
        """Rows of so many more behaviors of a cell are on the disk."""

    def begin(self, cell: Cell) -> None:
        self._begun.setdefault(cell.name, time.perf_counter())
        self._bar.set_postfix_str(f"{cell.defense} x {cell.attack}")

    def end(self, cell: Cell) -> None:
        self._advance(cell, "done")

    def hole(self, cell: Cell, reason: str) -> None:
        tqdm.write(f"hole: {cell.defense} x {cell.attack}, seed {cell.seed}: {reason}")
        self._advance(cell, "hole")

    def _advance(self, cell: Cell, how: str) -> None:
        now = time.perf_counter()
        self._finished += 1
        self._done += self._weights[cell.name]
        self._bar.update()
        if not self._terminal:
            print(self._line(cell, how, now), flush=True)

    def _line(self, cell: Cell, how: str, now: float) -> str:
        elapsed = now - self._started
        taken = now - self._begun.get(cell.name, now)
        line = (
            f"{self._finished}/{len(self._weights)} {cell.defense} x {cell.attack}, "
            f"seed {cell.seed}: {how} in {duration(taken)}; "
            f"{duration(elapsed)} elapsed"
        )
        rest = self._total - self._done
        if self._finished < len(self._weights) and self._done > ENOUGH * self._total:
            line += f", about {duration(elapsed * rest / self._done)} remaining"
        return line
