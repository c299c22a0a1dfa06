"""Killed workers, an interrupted and a killed driver: the same command resumes, nothing is left."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def soak(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    return importlib.import_module("soak")


def robench(*words: object) -> str:
    command = [sys.executable, "-m", "robench", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_kills_and_an_interruption_cost_nothing(soak, tmp_path):
    asked = [*soak.SMALL, "--set", "dpo.steps=10"]
    robench(*asked, "--out", tmp_path / "undisturbed")
    told = []

    def moment(run) -> bool:
        """As soon as workers have more rows to their credit than at the last kill."""
        end = time.monotonic() + 480  # busy machines load models slowly
        before = sum(map(len, soak.rows(run.out).values()))
        while not run.ended and time.monotonic() < end:
            count = sum(map(len, soak.rows(run.out).values()))
            if soak.workers_of(run.mark) and count > before:
                if not run.killed:
                    told.append(robench("status", run.out))
                return True
            time.sleep(0.05)
        return False

    run = soak.Disturbed(tmp_path / "run", [*asked, "--workers", "2"], moment)
    code = run.run(iter(["worker", "interrupt", "driver", "worker"]))
    log = (tmp_path / "run.log").read_text()
    assert code == 0, log
    assert run.killed == ["worker", "interrupt", "driver", "worker"]
    assert run.codes == [130, -9, 0]
    assert "robench: interrupted; the same command resumes" in log and "Traceback" not in log
    assert soak.rows(run.out) == soak.rows(tmp_path / "undisturbed")
    assert ": running, process " in told[0] and "workers: " in told[0] and "10 cells: " in told[0]
    assert not soak.leftover(run.mark, 20)
