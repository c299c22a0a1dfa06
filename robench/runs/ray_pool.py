"""Many workers, each an actor of Ray in a process of its own, on one host or on several.

Ray places them and tells when one is lost; what to do then is the driver's business. A worker that
is lost is replaced, and the task that it had comes back as Lost.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from robench.errors import InputError
from robench.runs.actor import Actor, Place
from robench.runs.pool import Slot
from robench.runs.tasks import About, Chunk, Lost, Result, Task, Training, read_adapter
from robench.runs.workers import Room, imported_ray

PATIENCE = 1.0  # seconds between looks at the clock
UNREADY = 3  # times as many workers as there are to be, that may be lost before one is ready


@dataclass
class _Member:
    """A worker.

    pending: what it has been asked, in Ray's words; None: it is idle
    tasks:   what it works on; none while it starts, or is idle
    group:   the number of the group whose defense it has on
    since:   when it was asked
    read:    bytes of its log that have come
    """

    number: int
    actor: Any
    pending: Any
    place: Place | None = None
    about: About | None = None
    tasks: Sequence[Task] = ()
    group: int | None = None
    since: float = 0.0
    read: int = 0


class RayPool:
    """Workers behind Ray, which is connected.

    Args:
        room: how many, and of what size.
        setup: what they begin with.
        environment: their variables.
        logs: the folder for what they print.
        timeout: of a chunk, or of short ones that went together, in seconds.
        kind: the class of the actors.
    """

    def __init__(
        self,
        room: Room,
        setup: Any,
        environment: Mapping[str, str],
        logs: Path,
        timeout: float | None = None,
        kind: type[Any] = Actor,
    ) -> None:
        self._ray = imported_ray()
        self.count, self.lost = room.workers, 0
        self._timeout, self._logs = timeout, logs
        options = {"num_cpus": room.cpus, "num_gpus": room.gpus, "scheduling_strategy": "SPREAD"}
        self._kind = self._ray.remote(**options)(kind)
        self._begin = dict(environment), [p for p in sys.path if p]
        self._setup = self._ray.put(setup)
        self._members: dict[int, _Member] = {}
        self._number = self._unready = 0
        self._reason = ""  # of the last loss, in Ray's words
        self._back: list[tuple[Task, Result]] = []

    def __enter__(self) -> RayPool:
        for _ in range(self.count):
            self._add()
        return self

    def __exit__(self, *_: Any) -> None:
        for member in self._members.values():
            self._end(member)

    def about(self) -> list[About]:
        while not (ready := [m.about for m in self._members.values() if m.about]):
            self._collect()
        return ready

    def idle(self) -> list[Slot]:
        members = self._members.values()
        return [Slot(m.number, m.group) for m in members if m.pending is None]

    def submit(
        self, worker: int, tasks: Sequence[Task], adapter: Any = None, memory: Any = None
    ) -> None:
        member, first = self._members[worker], tasks[0]
        if isinstance(first, Training):
            member.pending = member.actor.train.remote(first, adapter)
        else:
            member.pending = member.actor.answer.remote(tasks, adapter, memory)
        member.tasks, member.group, member.since = tasks, first.group, time.monotonic()

    def wait(self) -> list[tuple[Task, Result]]:
        before = len(self.idle())
        while not self._back and len(self.idle()) <= before:
            self._collect()
        back, self._back = self._back, []
        return back

    def share(self, memory: bytes) -> Any:
        return self._ray.put(memory)

    def share_adapter(self, folder: Path) -> Any:
        adapter = read_adapter(folder)
        return self._ray.put(adapter) if adapter else adapter  # what is nothing needs no store

    def standing(self) -> dict[str, int]:
        """How many workers are busy, idle, starting and lost."""
        members = self._members.values()
        idle = len(self.idle())
        starting = sum(m.about is None for m in members)
        return {
            "busy": len(members) - idle - starting,
            "idle": idle,
            "starting": starting,
            "lost": self.lost,
        }

    def _add(self) -> None:
        """One more worker, which Ray starts as soon as there is room for it."""
        actor = self._kind.remote(*self._begin)
        member = _Member(self._number, actor, actor.place.remote())
        self._members[self._number] = member
        self._number += 1

    def _collect(self) -> None:
        """Take what has come; replace workers that are lost, or hang."""
        pending = {m.pending: m for m in self._members.values() if m.pending is not None}
        refs = list(pending)
        done, rest = self._ray.wait(refs, num_returns=1, timeout=PATIENCE)
        if rest and done:
            done = [*done, *self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]]
        for ref, value in zip(done, self._values(done), strict=True):
            self._received(pending[ref], value)
        for member in list(self._members.values()):
            if self._hangs(member):
                self._lose(member, f"a worker had it for more than {self._timeout:g} s", True)

    def _hangs(self, member: _Member) -> bool:
        is_busy = any(isinstance(task, Chunk) for task in member.tasks)
        late = time.monotonic() - member.since
        return self._timeout is not None and is_busy and late > self._timeout

    def _values(self, done: Sequence[Any]) -> list[Any]:
        """What was answered; in the place of what a lost worker had, the error that tells of it."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(done)  # all at once costs less
        except errors.RayError:
            return [self._value(ref) for ref in done]

    def _value(self, ref: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError:
            raise
        except errors.RayError as error:
            return error

    def _received(self, member: _Member, value: Any) -> None:
        if isinstance(value, Exception):
            self._reason = str(value).strip().splitlines()[-1] if str(value).strip() else ""
            self._lose(member, f"the worker was lost ({type(value).__name__})")
            return
        if isinstance(value, Place):
            member.place, member.pending = value, member.actor.start.remote(self._setup)
            return
        member.pending = None
        results = [said.result for said in value]
        self._log(member, "".join(said.log for said in value))
        member.read = value[-1].read
        if isinstance(results[0], About):
            self._is_ready(member, results[0])
        elif not member.tasks:  # it could not be made ready
            raise results[0].error
        else:
            self._back += zip(member.tasks, results, strict=True)
            member.tasks = ()

    def _is_ready(self, member: _Member, about: About) -> None:
        others = {m.about.device for m in self._members.values() if m.about}
        if others and about.device not in others:
            place = member.place.host if member.place else ""
            tqdm.write(
                f"warning: worker {member.number} on {place} has {about.device}, others have "
                f"{', '.join(sorted(others))}: their rows may differ in the last digits"
            )
        member.about, self._unready = about, 0

    def _lose(self, member: _Member, why: str, hangs: bool = False) -> None:
        """Replace a worker."""
        self.lost += 1
        self._end(member, hangs)
        del self._members[member.number]
        if member.tasks:
            self._back += [(task, Lost(why)) for task in member.tasks]
        elif member.about is None:
            self._unready += 1
            if self._unready > UNREADY * self.count:
                raise InputError(
                    "workers are lost before they have the model in memory: is there memory for "
                    f"as many, and is robench on every host? The last one: {self._reason}"
                )
        self._add()

    def _end(self, member: _Member, hangs: bool = False) -> None:
        """End a worker's process; what it printed last is kept."""
        self._ray.kill(member.actor)
        place = member.place
        if place and place.host == socket.gethostname():
            if hangs:  # perhaps stopped, and deaf to Ray
                with suppress(ProcessLookupError):
                    os.kill(place.process, signal.SIGKILL)
            self._last_words(member, Path(place.log))

    def _last_words(self, member: _Member, log: Path) -> None:
        """What a worker on this host printed after its last answer."""
        with suppress(OSError):
            words = log.read_bytes()[member.read :].decode("utf-8", "replace")
            self._log(member, words)
            shutil.rmtree(log.parent)

    def _log(self, member: _Member, words: str) -> None:
        """Add what a worker printed to its file in the run's folder."""
        if words:
            self._logs.mkdir(exist_ok=True)
            with (self._logs / f"worker-{member.number}.log").open("a", encoding="utf-8") as file:
                file.write(words)
