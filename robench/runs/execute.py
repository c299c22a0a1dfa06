"""The straight line: apply each defense, run each attack, reply, judge, store.

The driver gives the tasks of a run to workers and writes what they bring; nobody else writes to the
run's folder, but a single worker in this process, which trains in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from robench.errors import Failure
from robench.methods.registry import EXTERNAL, Method
from robench.results.artifacts import merged_memory
from robench.results.store import Cell, RunStore
from robench.results.trainings import RECORD
from robench.runs.journal import Journal
from robench.runs.pool import Pool
from robench.runs.progress import Progress
from robench.runs.schedule import Schedule
from robench.runs.tasks import (
    Answered,
    Chunk,
    Failed,
    Group,
    Lost,
    Result,
    Task,
    Trained,
    Training,
    Unfitted,
    tensors_name,
    write_adapter,
)
from robench.runs.writer import Rows, Writer

Forecasts = tuple[Mapping[str, float], Mapping[str, float]]
AGAIN = 3  # times that a task is given to another worker after the loss of one


@dataclass
class _Open:
    """A cell that is left to do.

    done:   ids of the behaviors whose rows are on the disk
    memory: the file of what it fitted, and `shared`, what workers get it by
    """

    cell: Cell
    attack: Method
    done: set[str]
    memory: bytes | None = None
    shared: Any = None
    unwritten: int = 0  # chunks on their way to the disk
    begun: bool = False
    failed: bool = False

    @property
    def starts(self) -> list[int]:
        return chunks_left(self.cell, self.done)


def chunks_left(cell: Cell, done: set[str]) -> list[int]:
    """The first behavior of each chunk of a cell that is not done whole.

    Args:
        done: ids of the behaviors whose rows are on the disk.
    """
    planned, size = cell.header["planned"], cell.header["chunk"]
    starts = range(0, len(planned), size)
    return [start for start in starts if not done.issuperset(planned[start : start + size])]


@dataclass
class Execution:
    """What is left of a run, while it is worked on.

    groups:     with the cells that are left to do
    seconds:    forecast, of cells and of trainings, as of `Schedule.of`
    keep_going: whether a cell that fails by an unexpected error becomes a hole
    info:       how cells are answered, for their records
    journal:    tells others how far the run is
    """

    store: RunStore
    groups: Sequence[Group]
    seconds: Forecasts
    pool: Pool
    progress: Progress
    keep_going: bool
    info: Mapping[str, Any]
    journal: Journal

    _cells: dict[str, _Open] = field(init=False)
    _schedule: Schedule = field(init=False)
    _writer: Writer = field(init=False)
    _adapters: dict[int, Any] = field(default_factory=dict)
    _of_groups: dict[int, dict[str, Any]] = field(default_factory=dict)
    _out: set[Task] = field(default_factory=set)
    _losses: Counter[Task] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        cells = [pair for group in self.groups for pair in group.cells]
        self._cells = {c.name: _Open(c, attack, self.store.done(c)) for c, attack in cells}
        starts = {name: opened.starts for name, opened in self._cells.items()}
        self._schedule = Schedule.of(self.groups, starts, *self.seconds, self.pool.count)
        self._writer = Writer(self.store, in_thread=self.pool.count > 1)

    def run(self) -> None:
        """Work on all cells; what is already stored is not done again."""
        with self._writer:
            while not self._schedule.finished:
                for slot in self.pool.idle():
                    tasks = self._schedule.next(slot.group)
                    if not tasks:
                        break
                    self._give(slot.worker, tasks)
                self._written()
                self._note()
                for task, result in self.pool.wait():
                    self._take(task, result)
        self._written()
        self._note(at_once=True)

    def _written(self) -> None:
        """End the cells whose last rows have reached the disk."""
        for chunk in self._writer.written():
            opened = self._cells[chunk.cell]
            opened.unwritten -= 1
            self.progress.chunk(opened.cell)
            is_last = self._schedule.by_name[chunk.cell].finished and not opened.unwritten
            if is_last and not opened.failed:
                self.progress.end(opened.cell)

    def _note(self, at_once: bool = False) -> None:
        standing = self.pool.standing()
        running = [
            task.cell
            if isinstance(task, Chunk)
            else f"training {self.groups[task.group].defense.name}"
            for task in self._out
        ]
        self.progress.workers(standing)
        self.journal.note(running, standing, at_once)

    def _give(self, worker: int, tasks: Sequence[Task]) -> None:
        """Hand a training or chunks of one cell to a worker, with what they need besides."""
        self._out.update(tasks)
        task = tasks[0]
        if task.group not in self._adapters:
            self._adapters[task.group] = self.pool.share_adapter(self._folder(task.group))
        adapter = self._adapters[task.group]
        if isinstance(task, Training):
            self.progress.training(self.groups[task.group])
            self.pool.submit(worker, tasks, adapter)
            return
        opened = self._cells[task.cell]
        self._begin(opened, self._of_groups[task.group])
        self.pool.submit(worker, tasks, adapter, opened.shared)

    def _take(self, task: Task, result: Result) -> None:
        """Store what a worker brought; what comes twice counts once."""
        if task not in self._out:
            return
        self._out.remove(task)
        if isinstance(result, Lost):
            self._lost(task, result)
        elif isinstance(task, Training):
            self._trained(task, result)
        else:
            self._answered(task, result)

    def _trained(self, task: Training, result: Result) -> None:
        group = self.groups[task.group]
        self._schedule.trained(task)
        self.progress.trained(group)
        if isinstance(result, Failed):
            self._no_defense(task.group, result)
            return
        assert isinstance(result, Trained)
        if result.adapter:
            write_adapter(result.adapter, self._folder(task.group))
            self._adapters[task.group] = self.pool.share_adapter(self._folder(task.group))
        self._of_groups[task.group] = {
            **self.info,
            "defense_reference": group.defense.base,
            **_training(self._folder(task.group), group.defense.tier == EXTERNAL),
        }
        for cell, _ in group.cells:
            opened = self._cells[cell.name]
            if not opened.starts:  # its rows are there, and an earlier failure stands
                self._begin(opened, self._of_groups[task.group])
                self.progress.end(cell)

    def _answered(self, task: Chunk, result: Result) -> None:
        opened = self._cells[task.cell]
        if isinstance(result, Unfitted):
            self._schedule.back(task, blocked=True)
            return
        self._schedule.done(task)
        if isinstance(result, Failed):
            self._fail(opened, result)
            return
        assert isinstance(result, Answered)
        self._store(opened, task, result)

    def _store(self, opened: _Open, task: Chunk, answered: Answered) -> None:
        """Write the rows of those behaviors that have none yet, after what they need."""
        memory = None
        if answered.memory is not None:
            memory = merged_memory(opened.memory, answered.memory)
            opened.memory, opened.shared = memory, self.pool.share(memory)
        tensors = (tensors_name(task.start), answered.tensors) if answered.tensors else None
        rows = [row for row in answered.rows if row["behavior"] not in opened.done]
        opened.done.update(row["behavior"] for row in rows)
        opened.unwritten += 1
        self._writer.put(Rows(task, opened.cell, rows, tensors, memory))

    def _lost(self, task: Task, lost: Lost) -> None:
        """Have a task done again, or leave a hole where too many workers were lost over it."""
        same = replace(task, fits=True) if isinstance(task, Chunk) else task
        self._losses[same] += 1
        given_up = self._losses[same] > AGAIN
        if isinstance(task, Training):
            self._schedule.train_again(task)
        else:
            self._schedule.back(task)
        if not given_up:
            return
        reason = f"{lost.reason}, {self._losses[same]} times"
        failed = Failed(reason, Failure(reason), hole=True)
        if isinstance(task, Training):
            self._schedule.trained(task)
            self._no_defense(task.group, failed)
        else:
            self._fail(self._cells[task.cell], failed)

    def _begin(self, opened: _Open, info: Mapping[str, Any]) -> None:
        """Open a cell's folder, once."""
        if opened.begun:
            return
        opened.begun = True
        self.progress.begin(opened.cell)
        self.store.open(opened.cell, {**info, "attack_reference": opened.attack.base})
        self.store.clear_failure(opened.cell)
        opened.memory = self.store.memory(opened.cell)
        if opened.memory is not None:
            opened.shared = self.pool.share(opened.memory)
            self._schedule.by_name[opened.cell.name].fitted = True

    def _no_defense(self, number: int, failed: Failed) -> None:
        """A defense that fails is a hole in each of its cells."""
        for cell, _ in self.groups[number].cells:
            self.store.open(cell, self.info)
            self._hole(self._cells[cell.name], failed.reason)
        self._raise_unless_expected(failed)

    def _fail(self, opened: _Open, failed: Failed) -> None:
        if not opened.failed:
            self._hole(opened, failed.reason)
        self._raise_unless_expected(failed)

    def _hole(self, opened: _Open, reason: str) -> None:
        opened.failed = True
        self._schedule.give_up(opened.cell.name)
        self.store.fail(opened.cell, reason)
        self.progress.hole(opened.cell, reason)

    def _raise_unless_expected(self, failed: Failed) -> None:
        """End the run by an error, unless it is to go on."""
        if failed.always or not (self.keep_going or failed.hole):
            raise failed.error

    def _folder(self, group: int) -> Path:
        """The folder of the adapter of a group's defense."""
        return self.store.adapter(self.groups[group].cells[0][0].header)


def _training(cache: Path, external: bool) -> dict[str, float | None]:
    """What a trained defense cost and reached, as its record says; None if others trained it."""
    record = cache / RECORD
    if not record.is_file():
        cost = None if external else 0.0
        return {"train_seconds": cost, "train_tflop": cost}
    stored = yaml.safe_load(record.read_text("utf-8"))
    of_training = {key: stored[key] for key in ("train_seconds", "train_tflop")}
    return {**of_training, "linear_share": stored["linear_weights"]["share_reached"]}
