"""The process of one of many workers. Ray imports this file there, so it needs nothing heavy.

torch, the model and files of methods come with `start`, after the environment is as the driver has
it. What the process prints goes to a file of its own; each answer brings what was added to it.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from robench.errors import InputError
from robench.results.store import RunStore
from robench.runs.leftovers import new_folder
from robench.runs.tasks import (
    About,
    Adapter,
    Chunk,
    Failed,
    Result,
    Trained,
    Training,
    read_adapter,
    write_adapter,
)

if TYPE_CHECKING:
    from robench.runs.worker import Worker
    from robench.runs.worker_setup import WorkerSetup


class Place(NamedTuple):
    """Where a worker's process is, and the file on that host that it prints to."""

    host: str
    process: int
    log: str


class Said(NamedTuple):
    """An answer, what was printed since the last one, and how many bytes were printed so far."""

    result: Result | About
    log: str
    read: int


class Actor:
    """A worker behind Ray: one call at a time, each of which gives what it says to each task.

    Args:
        environment: variables as the driver has them.
        path: where the driver finds modules.
    """

    def __init__(self, environment: Mapping[str, str], path: list[str]) -> None:
        os.environ.update(environment)
        sys.path += [folder for folder in path if folder not in sys.path]
        self._scratch = new_folder()
        self._log = self._scratch / "log"
        self._read = 0
        self._worker: Worker | None = None
        handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(handle, stream)

    def place(self) -> Place:
        return Place(socket.gethostname(), os.getpid(), str(self._log))

    def start(self, setup: WorkerSetup) -> list[Said]:
        """Load what a run needs; Failed where this host cannot do it."""

        def load() -> About:
            from robench.runs.worker_setup import ready_worker

            self._worker = ready_worker(setup, self._scratch)
            return self._worker.about()

        return [self._said(load)]

    def train(self, task: Training, adapter: Adapter) -> list[Said]:
        def train() -> Result:
            worker, cache = self._on(task.group, adapter)
            failure = worker.train(task, cache)
            return failure or Trained({} if adapter else read_adapter(cache))

        return [self._said(train)]

    def answer(self, tasks: Sequence[Chunk], adapter: Adapter, memory: bytes | None) -> list[Said]:
        def answer(task: Chunk) -> Result:
            worker, cache = self._on(task.group, adapter)
            return worker.answer(task, cache, memory)

        return [self._said(partial(answer, task)) for task in tasks]

    def _on(self, group: int, adapter: Adapter) -> tuple[Worker, Path]:
        """The worker, and the folder of a defense on this host."""
        assert self._worker is not None
        header = self._worker.job.groups[group].cells[0][0].header
        folder = RunStore(self._scratch).adapter(header)
        write_adapter(adapter, folder)
        return self._worker, folder

    def _said(self, work: Callable[[], Result | About]) -> Said:
        """What some work gives, with its errors in a form that can be sent."""
        try:
            result = work()
        except (Exception, SystemExit) as error:
            result = Failed(str(error) or type(error).__name__, error, always=True)
        if isinstance(result, Failed):
            result = _sendable(result)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        with self._log.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        self._read += len(added)
        return Said(result, added.decode("utf-8", "replace"), self._read)


def _sendable(failed: Failed) -> Failed:
    """A failure whose error another process can read: others than these become text."""
    error = failed.error
    if isinstance(error, OSError):
        error = OSError(error.errno, error.strerror or str(error), error.filename)
    elif isinstance(error, InputError):
        error = InputError(str(error))
    else:
        trace = "".join(traceback.format_exception(error))
        error = RuntimeError(f"{failed.reason}, in a worker:\n{trace}")
    return Failed(failed.reason, error, failed.always, failed.hole)
