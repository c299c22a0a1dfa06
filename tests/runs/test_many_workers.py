"""Many workers by Ray: what is lost is done again, what comes twice counts once."""

from __future__ import annotations

import importlib
import json
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

import robench
from robench.errors import InputError
from robench.results.store import RunStore
from robench.runs import workers
from robench.runs.ray_pool import RayPool
from robench.runs.tasks import About, Answered, Chunk, Trained
from robench.runs.workers import Workers, check_answers

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def local_ray(synthetic_runs):
    with synthetic_runs.local_ray(8):
        yield


@pytest.fixture(scope="module")
def lost_workers(synthetic_runs):
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        module = importlib.import_module("lost_workers")
    finally:
        sys.path.pop(0)
    ray.cloudpickle.register_pickle_by_value(synthetic_runs)
    return module


@pytest.fixture
def run(local_ray, synthetic_runs, synthetic, lost_workers, tmp_path):
    """`run(trouble, times, ...)`: a run of workers one of which comes to grief; (store, pool)."""

    def run(trouble: str, times: int, workers=3, behaviors=6, expected=0.0, **more):
        marks = tmp_path / "marks"
        marks.mkdir(exist_ok=True)
        groups, folder = synthetic(2, 2, behaviors), tmp_path / "run"
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        seconds, kind = (0.01, str(marks), trouble, times), lost_workers.Troubled
        pool = synthetic_runs.sleepers(folder, groups, workers, seconds, kind=kind, **more)
        synthetic_runs.work(folder, groups, pool, expected)
        return RunStore(folder), groups, pool

    return run


def rows_of(store: RunStore, groups) -> Counter:
    """How often each behavior of each cell has a row."""
    count: Counter = Counter()
    for group in groups:
        for cell, _ in group.cells:
            lines = (store.path(cell) / "rows.jsonl").read_text().splitlines()
            count.update((cell.name, json.loads(line)["behavior"]) for line in lines)
    return count


def every_row(groups) -> Counter:
    cells = [cell for group in groups for cell, _ in group.cells]
    return Counter((cell.name, name) for cell in cells for name in cell.header["planned"])


@pytest.mark.parametrize(
    ("trouble", "times", "more"),
    [("killed", 3, {}), ("stopped", 1, {"timeout": 2.0}), ("hanging", 1, {"timeout": 2.0})],
)
def test_what_a_lost_worker_had_is_done_again_once(run, trouble, times, more):
    store, groups, pool = run(trouble, times, **more)
    assert rows_of(store, groups) == every_row(groups)
    assert pool.lost == times
    logs = [path.read_text() for path in (store.folder / "logs").iterdir()]
    assert sum(text.count("something happens") for text in logs) == times


@pytest.mark.parametrize(
    ("trouble", "times", "more"), [("killed", 3, {}), ("hanging", 1, {"timeout": 2.0})]
)
def test_short_chunks_that_went_together_are_done_again_once(
    run, monkeypatch, trouble, times, more
):
    sizes = []
    submit = RayPool.submit

    def counted(self, worker, tasks, *shared):
        sizes.append(len(tasks))
        submit(self, worker, tasks, *shared)

    monkeypatch.setattr(RayPool, "submit", counted)
    store, groups, pool = run(trouble, times, workers=2, behaviors=60, expected=0.1, **more)
    assert rows_of(store, groups) == every_row(groups)
    assert pool.lost == times and max(sizes) == 10


def test_a_chunk_that_costs_four_workers_is_a_hole_with_the_reason(run):
    store, groups, pool = run("killed", 4, workers=1)
    (failure,) = store.folder.glob("cells/*/failed.json")
    assert "the worker was lost" in failure.read_text() and "4 times" in failure.read_text()
    assert pool.lost == 4
    whole = {name: n for (name, _), n in rows_of(store, groups).items()}
    assert len(whole) == 4 and set(rows_of(store, groups).values()) == {1}
    again, groups, _ = run("killed", 4, workers=1)
    assert rows_of(again, groups) == every_row(groups)
    assert not list(again.folder.glob("cells/*/failed.json"))


def test_a_bug_in_a_worker_ends_the_run_with_its_traceback(run):
    with pytest.raises(RuntimeError, match=r"KeyError: 'a bug'"):
        run("bug", 1)


@pytest.fixture
def short_lived(local_ray, synthetic_runs, synthetic, lost_workers, tmp_path):
    """`short_lived(lives)`: a run of one worker at a time; (store, groups)."""

    def run(lives: str):
        (tmp_path / "marks").mkdir()
        (tmp_path / "run" / "cells").mkdir(parents=True)
        groups, begun = synthetic(1, 1), (0.01, str(tmp_path / "marks"), lives)
        pool = synthetic_runs.sleepers(
            tmp_path / "run", groups, 1, begun, kind=lost_workers.ShortLived
        )
        synthetic_runs.work(tmp_path / "run", groups, pool)
        return RunStore(tmp_path / "run"), groups

    return run


def test_workers_none_of_which_gets_ready_end_the_run(short_lived):
    with pytest.raises(InputError, match="lost before they have the model in memory"):
        short_lived("xxxx.")


def test_one_that_gets_ready_shows_that_the_others_had_bad_luck(short_lived):
    store, groups = short_lived("xxxkxxx.")
    assert rows_of(store, groups) == every_row(groups)


class Twice:
    """A pool whose results all come twice."""

    count = 2

    def __init__(self):
        self._given = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def about(self):
        return [About("cpu", 1, "none")]

    def idle(self):
        from robench.runs.pool import Slot

        return [Slot(0, None)] if len(self._given) < 2 else []

    def submit(self, worker, tasks, adapter=None, memory=None):
        self._given += tasks

    def wait(self):
        given, self._given = self._given, []
        found = []
        for task in given:
            row = {"behavior": f"b{getattr(task, 'start', 0):05d}"}
            result = Answered([row], None, None) if isinstance(task, Chunk) else Trained({})
            found += [(task, result), (task, result)]
        return found

    def share(self, memory):
        return memory

    def share_adapter(self, folder):
        return None

    def standing(self):
        return {"busy": 2}


def test_a_result_that_comes_twice_counts_once(synthetic_runs, synthetic, tmp_path):
    groups = synthetic(2, 2, chunk=1)
    (tmp_path / "cells").mkdir()
    synthetic_runs.work(tmp_path, groups, Twice())
    assert rows_of(RunStore(tmp_path), groups) == every_row(groups)


# What is wrong is told in one line


def test_without_ray_the_fix_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'robench\[ray\]'"),
        Workers(2).connected("cpu"),
    ):
        pass


def test_an_address_that_nobody_answers():
    with pytest.raises(InputError, match=r"--workers 127.0.0.1:1: nobody answers there"):
        check_answers("127.0.0.1:1")


def test_an_address_where_somebody_else_answers(monkeypatch):
    monkeypatch.setattr(workers, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match=f"--workers {address}: .* no head of a Ray cluster"):
            check_answers(address)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((4, 1.0), r"4 workers with 1 GPUs each want 4, and there are 2: give --workers 2, or"),
        ((4, 1.0), r"--gpus-per-worker 0.5$"),
        ((None, 4.0), r"1 workers with 4 GPUs each want 4"),
    ],
)
def test_more_workers_than_gpus(asked, told):
    count, gpus = asked
    with pytest.raises(InputError, match=told):
        Workers(count, gpus=gpus)._room("cuda", {"CPU": 8, "GPU": 2})
    assert Workers(4, gpus=0.5)._room("cuda", {"GPU": 2}).workers == 4
    assert Workers(None, gpus=2)._room("cuda", {"GPU": 8}).workers == 4
    with pytest.raises(InputError, match="give --device cuda"):
        Workers(2)._room("cuda:1", {"GPU": 8})


@pytest.mark.parametrize(
    "words", ["0", "-1", "two", "ray://head:10001", "head", "head:", "h:99999"]
)
def test_what_is_no_number_and_no_address(words):
    with pytest.raises(InputError, match=f"--workers {words}"):
        Workers.of(words)


def test_companions_need_workers():
    with pytest.raises(InputError, match="--chunk-timeout is of several workers"):
        Workers.of(None, None, 3.0)
    assert Workers.of("auto") == Workers() and Workers.of(3, 0.5) == Workers(3, gpus=0.5)


def test_a_running_cluster_is_found_by_its_variable(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert Workers.of("auto").address == Workers.of(2).address == "10.0.0.1:6379"
    assert Workers.of("10.0.0.2:6379").address == "10.0.0.2:6379"


def test_nothing_is_made_where_no_cluster_answers(tmp_path):
    with pytest.raises(InputError, match=r"--workers 127.0.0.1:1: nobody answers there"):
        robench.run(
            attacks=["direct"], defenses=["none"], n=2, out=tmp_path / "run", workers="127.0.0.1:1"
        )
    assert not (tmp_path / "run").exists()
