"""Which task comes next: what a worker has a defense on for, else where most is left to do.

Nothing here touches the disk or a model.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robench.results.store import Cell
from robench.runs.tasks import Chunk, Group, Task, Training

AT_ONCE = 1.0  # seconds of work, by the forecast, up to which a worker is given several chunks


@dataclass
class CellWork:
    """What is left of one cell.

    seconds: forecast, per chunk
    waiting: the first behaviors of its chunks that no worker has, in order
    given:   how many chunks workers have
    fitting: the chunk that may fit what the cell fits once; None: none is under way
    fitted:  whether that is done, so that every chunk may go
    blocked: whether a chunk has asked for what is not fitted yet
    lost:    whether a worker was lost over a chunk: then others do not go together with it
    """

    cell: Cell
    group: int
    seconds: float
    waiting: deque[int]
    given: int = 0
    fitting: int | None = None
    fitted: bool = False
    blocked: bool = False
    lost: bool = False

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.given

    @property
    def ready(self) -> bool:
        """Whether a chunk may go: one that fits, or others beside it unless they need it."""
        stopped = self.blocked and not self.fitted and self.fitting is not None
        return bool(self.waiting) and not stopped

    @property
    def at_once(self) -> int:
        """How many chunks a worker may have at most."""
        return max(1, int(AT_ONCE / self.seconds)) if self.seconds else 1

    @property
    def workers(self) -> int:
        """About how many are at it."""
        return math.ceil(self.given / self.at_once)

    def some(self, seconds: float) -> list[Chunk]:
        """The next chunks, of so many seconds; one where they are long or not sure to be done."""
        number = 1
        if self.fitted and not self.lost and self.seconds:
            number = min(self.at_once, len(self.waiting), math.ceil(seconds / self.seconds))
        return [self.take() for _ in range(number)]

    def take(self) -> Chunk:
        """The next chunk; the first one fits."""
        start = self.waiting.popleft()
        self.given += 1
        fits = self.fitted or self.fitting is None
        if fits and not self.fitted:
            self.fitting = start
        return Chunk(self.group, self.cell.name, start, fits)

    def back(self, chunk: Chunk) -> None:
        """A chunk that has to be done again."""
        self._returned(chunk)
        self.waiting = deque(sorted([*self.waiting, chunk.start]))

    def done(self, chunk: Chunk) -> None:
        """A chunk whose rows are there."""
        self.fitted |= chunk.fits
        self._returned(chunk)

    def _returned(self, chunk: Chunk) -> None:
        self.given -= 1
        if self.fitting == chunk.start and chunk.fits:
            self.fitting = None


@dataclass
class GroupWork:
    """What is left of one defense and seed.

    seconds: forecast, of its training
    state:   of its training
    """

    seconds: float
    cells: list[CellWork]
    state: Literal["waiting", "training", "trained"] = "waiting"

    @property
    def rest(self) -> float:
        """Forecast seconds of the chunks that no worker has."""
        return sum(len(work.waiting) * work.seconds for work in self.cells)

    @property
    def ready(self) -> bool:
        return self.state == "trained" and any(work.ready for work in self.cells)


@dataclass
class Schedule:
    """The tasks of a run, each given out once until it is handed back.

    workers: how many there are; a single one has the tasks one by one, in the order of the plan
    """

    groups: list[GroupWork]
    workers: int
    by_name: dict[str, CellWork] = field(init=False)

    def __post_init__(self) -> None:
        self.by_name = {work.cell.name: work for group in self.groups for work in group.cells}
        if self.workers > 1:
            for group in self.groups:
                group.cells.sort(key=lambda work: -work.seconds)

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        starts: Mapping[str, Sequence[int]],
        seconds: Mapping[str, float],
        trainings: Mapping[str, float],
        workers: int,
    ) -> Schedule:
        """Of the cells that are left to do.

        Args:
            groups: with them.
            starts: the first behavior of each chunk that is to be done, by the cell's name.
            seconds: forecast for each cell as a whole; what is missing counts nothing.
            trainings: likewise for each training, by the name of its group's first cell.
        """

        def work(cell: Cell, number: int) -> CellWork:
            chunks = -(-len(cell.header["planned"]) // cell.header["chunk"])
            each = seconds.get(cell.name, 0.0) / max(1, chunks)
            return CellWork(cell, number, each, deque(starts[cell.name]))

        made = [
            GroupWork(
                trainings.get(group.cells[0][0].name, 0.0) if group.cells else 0.0,
                [work(cell, number) for cell, _ in group.cells],
            )
            for number, group in enumerate(groups)
        ]
        return cls(made, workers)

    @property
    def finished(self) -> bool:
        return all(group.state == "trained" and _finished(group) for group in self.groups)

    def next(self, worn: int | None) -> Sequence[Task]:
        """What a worker does next: a training, or chunks of one cell; none if all have to wait.

        Args:
            worn: the number of the group whose defense it has on.
        """
        candidates = list(self._candidates())
        waiting = [number for number in candidates if self.groups[number].state == "waiting"]
        if waiting:
            number = max(waiting, key=lambda n: self.groups[n].seconds)
            self.groups[number].state = "training"
            return [Training(number)]
        ready = [number for number in candidates if self.groups[number].ready]
        if not ready:
            return []
        number = worn if worn in ready else max(ready, key=self._share)
        work = next(work for work in self.groups[number].cells if work.ready)
        if self.workers == 1:
            return [work.take()]
        rest = sum(self.groups[number].rest for number in ready)
        return work.some(rest / self.workers)

    def _candidates(self) -> Iterator[int]:
        for number, group in enumerate(self.groups):
            if group.state != "trained" or not _finished(group):
                yield number
                if self.workers == 1:
                    return

    def _share(self, number: int) -> float:
        """What is left for one more worker of a group."""
        group = self.groups[number]
        return group.rest / (1 + sum(work.workers for work in group.cells))

    def trained(self, task: Training) -> None:
        self.groups[task.group].state = "trained"

    def train_again(self, task: Training) -> None:
        self.groups[task.group].state = "waiting"

    def done(self, chunk: Chunk) -> None:
        self.by_name[chunk.cell].done(chunk)

    def back(self, chunk: Chunk, blocked: bool = False) -> None:
        """A chunk that was not done.

        Args:
            blocked: whether it needs what its cell has not fitted yet; else its worker was lost.
        """
        work = self.by_name[chunk.cell]
        work.blocked |= blocked
        work.lost |= not blocked
        work.back(chunk)

    def give_up(self, cell: str) -> None:
        """Leave what no worker has of a cell."""
        self.by_name[cell].waiting.clear()


def _finished(group: GroupWork) -> bool:
    return all(work.finished for work in group.cells)
