"""Whoever does the tasks of a run: one worker in this process, or, in `actors`, many elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

from robench.results.store import RunStore
from robench.runs.tasks import About, Chunk, Failed, Result, Task, Trained, Training
from robench.runs.worker import Worker


class Slot(NamedTuple):
    """A worker that has nothing to do.

    group: the number of the group whose defense it has on; None: none
    """

    worker: int
    group: int | None


class Pool(Protocol):
    """Workers of a run. The driver gives tasks to idle ones and waits for what comes back."""

    count: int

    def __enter__(self) -> Pool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def about(self) -> Sequence[About]:
        """The workers that are ready; waits for the first one.

        Raises:
            InputError: a worker cannot do this run.
        """
        ...

    def idle(self) -> list[Slot]: ...

    def submit(
        self, worker: int, tasks: Sequence[Task], adapter: Any = None, memory: Any = None
    ) -> None:
        """Give a training, or chunks of one cell, to an idle worker.

        Args:
            adapter, memory: of the group and the cell, as they were shared.
        """
        ...

    def wait(self) -> list[tuple[Task, Result]]:
        """What has come back; waits until something has, or until a worker is idle that was not.

        Raises:
            InputError: a worker cannot do this run.
        """
        ...

    def share(self, memory: bytes) -> Any:
        """What a cell has fitted, put where workers get it."""
        ...

    def share_adapter(self, folder: Path) -> Any:
        """What a defense keeps in its folder, if it is there, put where workers get it."""
        ...

    def standing(self) -> dict[str, int]:
        """How many workers are busy, idle, starting and lost; nothing where there is but one."""
        ...


class InProcess:
    """One worker in this process, which trains in the run's folder itself."""

    count = 1

    def __init__(self, worker: Worker, store: RunStore) -> None:
        self._worker, self._store = worker, store
        self._group: int | None = None
        self._given: tuple[Sequence[Task], bytes | None] | None = None

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self._worker.take_off()

    def about(self) -> list[About]:
        return [self._worker.about()]

    def idle(self) -> list[Slot]:
        return [] if self._given else [Slot(0, self._group)]

    def submit(
        self, worker: int, tasks: Sequence[Task], adapter: Any = None, memory: Any = None
    ) -> None:
        self._given = tasks, memory

    def wait(self) -> list[tuple[Task, Result]]:
        assert self._given is not None
        (tasks, memory), self._given = self._given, None
        return [(task, self._done(task, memory)) for task in tasks]

    def _done(self, task: Task, memory: bytes | None) -> Result:
        group = self._worker.job.groups[task.group]
        cache: Path = self._store.adapter(group.cells[0][0].header)
        self._group = task.group
        if isinstance(task, Chunk):
            return self._worker.answer(task, cache, memory)
        failure: Failed | None = self._worker.train(Training(task.group), cache)
        return failure or Trained({})

    def share(self, memory: bytes) -> bytes:
        return memory

    def share_adapter(self, folder: Path) -> None:
        """Nothing, as the worker works in the folder."""

    def standing(self) -> dict[str, int]:
        return {}
