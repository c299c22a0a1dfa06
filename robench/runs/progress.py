"""What a run prints while it works: bars on a terminal, elsewhere a line per finished cell."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from robench.results.store import Cell
from robench.runs.tasks import Group

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


def in_words(standing: Mapping[str, int]) -> str:
    """Workers by what they do: "2 busy, 1 lost"."""
    return ", ".join(f"{count} {what}" for what, count in standing.items() if count)


class Progress:
    """The progress of some groups of cells: one bar, for cells, where there is a terminal.

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
        self._bar = self._made(len(names), "cells")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def training(self, group: Group) -> None:
        """A defense is about to be put on, which may train it; its first cell counts that time."""
        self._begun[group.cells[0][0].name] = time.perf_counter()
        self._bar.set_postfix_str(group.defense.name)

    def trained(self, group: Group) -> None:
        """A defense was put on, and its cells can begin."""

    def begin(self, cell: Cell) -> None:
        self._begun.setdefault(cell.name, time.perf_counter())
        self._bar.set_postfix_str(f"{cell.defense} x {cell.attack}")

    def chunk(self, cell: Cell) -> None:
        """The rows of a chunk are on the disk."""

    def end(self, cell: Cell) -> None:
        self._advance(cell, "done")

    def hole(self, cell: Cell, reason: str) -> None:
        tqdm.write(f"hole: {cell.defense} x {cell.attack}, seed {cell.seed}: {reason}")
        self._advance(cell, "hole")

    def workers(self, standing: Mapping[str, int]) -> None:
        """What the workers do now."""

    def _made(self, total: int, what: str, place: int = 0) -> Any:
        return tqdm(total=total, desc=what, position=place, disable=not self._terminal)

    def _advance(self, cell: Cell, how: str) -> None:
        now = time.perf_counter()
        self._finished += 1
        self._done += self._weights[cell.name]
        self._bar.update()
        if not self._terminal:
            print(self._line(cell, how, now), flush=True)

    def _line(self, cell: Cell, how: str, now: float) -> str:
        taken = now - self._begun.get(cell.name, now)
        line = (
            f"{self._finished}/{len(self._weights)} {cell.defense} x {cell.attack}, "
            f"seed {cell.seed}: {how} in {duration(taken)}; {duration(now - self._started)} elapsed"
        )
        rest = self._rest(now)
        if self._finished < len(self._weights) and rest is not None:
            line += f", about {duration(rest)} remaining"
        return line

    def _rest(self, now: float) -> float | None:
        """Seconds that remain; None: too little is done to tell."""
        if self._done <= ENOUGH * self._total:
            return None
        return (now - self._started) * (self._total - self._done) / self._done


class ManyProgress(Progress):
    """The progress of many workers: a bar for chunks and one for trainings.

    Args:
        chunks: how many of each cell there are, by its name.
    """

    def __init__(
        self, groups: Sequence[Group], weights: Mapping[str, float], chunks: Mapping[str, int]
    ) -> None:
        super().__init__(groups, weights)
        self._chunks = chunks
        self._bar.close()
        self._bar = self._made(sum(chunks.values()), "chunks")
        self._trainings = self._made(len(groups), "trainings", 1)
        self._standing: Mapping[str, int] = {}
        self._told = 0.0

    def __exit__(self, *error: Any) -> None:
        self._trainings.close()
        super().__exit__(*error)

    def training(self, group: Group) -> None:
        self._begun[group.cells[0][0].name] = time.perf_counter()
        self._trainings.set_postfix_str(group.defense.name)

    def trained(self, group: Group) -> None:
        self._trainings.update()

    def begin(self, cell: Cell) -> None:
        self._begun.setdefault(cell.name, time.perf_counter())

    def chunk(self, cell: Cell) -> None:
        self._done += self._weights[cell.name] / self._chunks[cell.name]
        self._bar.update()

    def workers(self, standing: Mapping[str, int]) -> None:
        self._standing = standing
        now = time.perf_counter()
        if self._terminal and now - self._told > 0.5:
            rest = self._rest(now)
            left = f", about {duration(rest)} remaining" if rest is not None else ""
            self._bar.set_postfix_str(f"{in_words(standing)}{left}")
            self._told = now

    def _advance(self, cell: Cell, how: str) -> None:
        self._finished += 1
        if not self._terminal:
            line = self._line(cell, how, time.perf_counter())
            print(f"{line}; workers: {in_words(self._standing)}", flush=True)
