"""Runs without a model: cells of chunks that only sleep, and workers that sleep over them.

For what the driver of many workers costs, and for what it does when workers are lost.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray

from robench.methods.method import Method
from robench.results.store import Cell, RunStore
from robench.runs.actor import Actor, Said
from robench.runs.journal import Journal
from robench.runs.progress import Progress
from robench.runs.ray_pool import RayPool
from robench.runs.tasks import About, Adapter, Answered, Chunk, Group, Trained, Training
from robench.runs.workers import Room


class Sleeper(Actor):
    """A worker that sleeps over each chunk, and answers with rows that say nothing.

    What it begins with: the groups, seconds per chunk and rows per behavior.
    """

    def start(self, setup: tuple[list[Group], float, int]) -> list[Said]:
        groups, self._seconds, self._rows = setup
        self._headers = {cell.name: cell.header for group in groups for cell, _ in group.cells}
        return [self._said(lambda: About("cpu", 1, "none"))]

    def train(self, task: Training, adapter: Adapter) -> list[Said]:
        return [self._said(lambda: Trained({}))]

    def answer(self, tasks: Sequence[Chunk], adapter: Adapter, memory: bytes | None) -> list[Said]:
        return [self._said(partial(self._slept, task)) for task in tasks]

    def _slept(self, task: Chunk) -> Answered:
        time.sleep(self._seconds)
        header = self._headers[task.cell]
        ids = header["planned"][task.start : task.start + header["chunk"]]
        rows: list[Any] = [{"behavior": name, "step": k} for name in ids for k in range(self._rows)]
        return Answered(rows, None, None)


def synthetic_groups(defenses: int, attacks: int, behaviors: int, chunk: int) -> list[Group]:
    """Cells of no model, with what the driver and the store read of a header."""
    nothing = SimpleNamespace()
    groups = []
    for d in range(defenses):
        defense = Method("defense", f"defense{d}", f"defense{d}", "demo", nothing)
        cells = []
        for a in range(attacks):
            header: Any = {
                **dict.fromkeys(("weights", "template", "system", "train", "dtype"), ""),
                "model": "none",
                "defense": defense.name,
                "attack": f"attack{a}",
                "seed": 0,
                "defense_fields": {},
                "defense_source": str(d),
                "role": "attack",
                "planned": [f"b{k:05d}" for k in range(behaviors)],
                "chunk": chunk,
            }
            attack = Method("attack", f"attack{a}", f"attack{a}", "demo", nothing)
            cells.append((Cell("none", defense.name, attack.name, 0, header), attack))
        groups.append(Group(defense, 0, tuple(cells)))
    return groups


def sleepers(
    folder: Path,
    groups: list[Group],
    workers: int,
    seconds: float,
    *,
    rows: int = 1,
    timeout: float | None = None,
    cpus: float = 0.01,
    kind: type[Actor] = Sleeper,
) -> RayPool:
    """Workers that sleep, of Ray, which is connected.

    Args:
        folder: of the run.
        seconds: per chunk.
        rows: per behavior.
        timeout: of a chunk.
        cpus: of a worker, in Ray's words.
        kind: the class of the workers.
    """
    ray.cloudpickle.register_pickle_by_value(sys.modules[kind.__module__])
    room, setup = Room(workers, cpus, 0), (groups, seconds, rows)
    return RayPool(room, setup, {}, folder / "logs", timeout, kind)


def work(
    folder: Path, groups: list[Group], pool: Any, seconds: float = 0.0, told: Any = None
) -> None:
    """Do what is left of synthetic cells.

    Args:
        seconds: forecast for a chunk.
        told: is called with the execution before it begins.
    """
    from robench.runs.execute import Execution, chunks_left

    store = RunStore(folder)
    left = [
        replace(group, cells=tuple(pair for pair in group.cells if not store.complete(pair[0])))
        for group in groups
    ]
    left = [group for group in left if group.cells]
    done = {cell.name: len(store.done(cell)) for group in left for cell, _ in group.cells}
    with pool, Progress(left, {}) as progress:
        pool.about()
        journal = Journal(folder, left, {}, done)
        cells = [cell for group in left for cell, _ in group.cells]
        expected = {cell.name: seconds * len(chunks_left(cell, set())) for cell in cells}
        run = Execution(store, left, (expected, {}), pool, progress, False, {}, journal)
        if told:
            told(run)
        run.run()


@contextmanager
def local_ray(cpus: int, store: int = 100 * 2**20) -> Iterator[None]:
    """Ray on this machine alone, without its pages."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=cpus,
        object_store_memory=store,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        yield
    finally:
        ray.shutdown()
