"""Two real processes on one folder, the first in the middle of a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from robench import load_rows

TRAINING = "circuit_breaker.steps=26"  # a checkpoint is written after 25
RUN = ["run", "--matrix", "smoke", "--attacks", "direct", "--defenses", "circuit_breaker", "--n",
       "2", "--n-benign", "2", "--threads", "1", "--set", TRAINING, "--out", "out"]  # fmt: skip
TRAIN = ["train", "circuit_breaker", "--threads", "1", "--set", TRAINING, "--out", "out"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a process cannot be stopped there")


def robench(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "robench", *words],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@contextmanager
def stopped_in_training(folder: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A process that stands still as soon as its training has written a checkpoint."""
    process = robench(folder, *words)
    try:
        end = time.monotonic() + 240
        while not list(folder.rglob("*.checkpoint.safetensors")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=240)


@pytest.mark.parametrize("words", [RUN, TRAIN], ids=["run", "train"])
def test_a_second_process_during_a_training_changes_nothing(
    words: list[str], tmp_path: Path
) -> None:
    with stopped_in_training(tmp_path, *words) as first:
        (checkpoint,) = tmp_path.rglob("*.checkpoint.safetensors")
        before = checkpoint.read_bytes()
        second = robench(tmp_path, *words)
        _, err = second.communicate(timeout=240)
        assert second.returncode == 2
        assert f"out is in use by process {first.pid} on " in err and err.count("\n") == 1
        assert checkpoint.read_bytes() == before
    assert first.returncode == 0
    assert not list(tmp_path.rglob("*.checkpoint.safetensors"))
    if words is RUN:
        rows = load_rows(tmp_path / "out")
        assert not rows.duplicated(["attack", "behavior", "step"]).any()
    else:
        third = robench(tmp_path, *words)
        _, err = third.communicate(timeout=240)
        assert third.returncode == 2 and "out already exists" in err
