"""Which task comes next: what a worker has a defense on for, else where most is left to do.

Nothing here touches the disk or a model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from robench.results.store import Cell
from robench.runs.tasks import Chunk, Group, Task, Training


@dataclass
class CellWork:
    """What is left of one cell.

    seconds: forecast, per chunk
    waiting: the first behaviors of its chunks that no worker has, in order
    given:   how many chunks workers have
    fitting: the chunk that may fit what the cell fits once; None: none is under way
    fitted:  whether that is done, so that every chunk may go
    blocked: whether a chunk has asked for what is not fitted yet
    """

    cell: Cell
    group: int
    seconds: float
    waiting: deque[int]
    given: int = 0
    fitting: int | None = None
    fitted: bool = False
    blocked: bool = False

    @property
    def finished(self) -> bool:
        return not self.waiting and not self.given

    @property
    def ready(self) -> bool:
        """Whether a chunk may go: one that fits, or others beside it unless they need it."""
        stopped = self.blocked and not self.fitted and self.fitting is not None
        return bool(self.waiting) and not stopped

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
    workers: int = 0  # that have its chunks

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

    in_order: whether they come in the order of the plan, as one worker has them
    """

    groups: list[GroupWork]
    in_order: bool
    by_name: dict[str, CellWork] = field(init=False)

    def __post_init__(self) -> None:
        self.by_name = {work.cell.name: work for group in self.groups for work in group.cells}
        if not self.in_order:
            for group in self.groups:
                group.cells.sort(key=lambda work: -work.seconds)

    @classmethod
    def of(
        cls,
        groups: Sequence[Group],
        starts: Mapping[str, Sequence[int]],
        seconds: Mapping[str, float],
        trainings: Mapping[str, float],
        in_order: bool,
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
        return cls(made, in_order)

    @property
    def finished(self) -> bool:
        return all(group.state == "trained" and _finished(group) for group in self.groups)

    def next(self, worn: int | None) -> Task | None:
        """What a worker does next, None where nothing can be done now.

        Args:
            worn: the number of the group whose defense it has on.
        """
        candidates = list(self._candidates())
        waiting = [number for number in candidates if self.groups[number].state == "waiting"]
        if waiting:
            number = max(waiting, key=lambda n: self.groups[n].seconds)
            self.groups[number].state = "training"
            return Training(number)
        ready = [number for number in candidates if self.groups[number].ready]
        if not ready:
            return None
        number = worn if worn in ready else max(ready, key=self._share)
        group = self.groups[number]
        group.workers += 1
        return next(work for work in group.cells if work.ready).take()

    def _candidates(self) -> Iterator[int]:
        for number, group in enumerate(self.groups):
            if group.state != "trained" or not _finished(group):
                yield number
                if self.in_order:
                    return

    def _share(self, number: int) -> float:
        """What is left for one more worker of a group."""
        group = self.groups[number]
        return group.rest / (1 + group.workers)

    def trained(self, task: Training) -> None:
        self.groups[task.group].state = "trained"

    def train_again(self, task: Training) -> None:
        self.groups[task.group].state = "waiting"

    def done(self, chunk: Chunk) -> None:
        self.groups[chunk.group].workers -= 1
        self.by_name[chunk.cell].done(chunk)

    def back(self, chunk: Chunk, blocked: bool = False) -> None:
        """A chunk that was not done.

        Args:
            blocked: whether it needs what its cell has not fitted yet.
        """
        self.groups[chunk.group].workers -= 1
        work = self.by_name[chunk.cell]
        work.blocked |= blocked
        work.back(chunk)

    def give_up(self, cell: str) -> None:
        """Leave what no worker has of a cell."""
        self.by_name[cell].waiting.clear()


def _finished(group: GroupWork) -> bool:
    return all(work.finished for work in group.cells)
