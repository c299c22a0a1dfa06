"""Workers and drivers are killed at random moments: no row is lost, none is double, and the tables
are those of an undisturbed run. Linux, with Ray; not a part of the test suite but for a short form.

python tests/soak.py [--worker-kills 50] [--driver-kills 10] [--workers 2] [--seed 0] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARK = "ROBENCH_SOAK"  # the variable by which the processes of a run are known
SMALL = ["run", "--matrix", "smoke", "--n", "4", "--n-benign", "4", "--threads", "1"]
HOLES = 3  # the exit code of a run with holes
SIGNALS = {"driver": signal.SIGKILL, "interrupt": signal.SIGINT}


def processes(mark: str) -> dict[int, str]:
    """The command lines of all processes with a mark in their environment."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                if line:  # else it has ended, and nobody has asked how
                    found[int(folder.name)] = line
        except OSError:  # it has gone, or is another user's
            continue
    return found


def workers_of(mark: str) -> list[int]:
    return [number for number, line in processes(mark).items() if line.startswith("ray::Actor")]


@dataclass
class Disturbed:
    """A run whose processes are killed, and begun again until it ends.

    moment: waits until the next one is to be killed; gives False where the run has ended before
    codes:  with which its drivers ended
    """

    out: Path
    command: Sequence[str]
    moment: Callable[[Disturbed], bool]
    killed: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    driver: subprocess.Popen[bytes] | None = None

    @property
    def mark(self) -> str:
        return str(self.out)

    def begin(self) -> None:
        """Start the command, or start it again."""
        log = self.out.with_suffix(".log").open("ab")
        self.driver = subprocess.Popen(
            [sys.executable, "-m", "robench", *self.command, "--out", str(self.out)],
            stdout=log,
            stderr=log,
            env={**os.environ, MARK: self.mark},
        )

    @property
    def ended(self) -> bool:
        assert self.driver is not None
        return self.driver.poll() is not None

    def run(self, victims: Iterator[str]) -> int:
        """Kill victims ("worker", "driver" or "interrupt") until the run ends; its exit code."""
        self.begin()
        assert self.driver is not None
        for victim in victims:
            if not self.moment(self):
                break
            if victim == "worker":
                if not (workers := workers_of(self.mark)):
                    continue
                os.kill(random.choice(workers), signal.SIGKILL)
            else:
                self.driver.send_signal(SIGNALS[victim])
                self.codes.append(self.driver.wait(60))
                self.begin()
            self.killed.append(victim)
        self.codes.append(self.driver.wait(600))
        return self.codes[-1]


def rows(out: Path) -> dict[str, list[str]]:
    """The rows of each cell without their times, in the order of the behaviors."""
    found = {}
    for path in out.glob("cells/*/rows.jsonl"):
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        kept = [{name: row[name] for name in row if name != "seconds"} for row in lines]
        found[path.parent.name] = sorted(json.dumps(row, sort_keys=True) for row in kept)
    return found


def leftover(mark: str, seconds: float) -> dict[int, str]:
    """The processes that are still there after so many seconds, but for agents.

    The agents of an instance of Ray whose driver was killed end by themselves, minutes later.
    """

    def found() -> dict[int, str]:
        return {n: line for n, line in processes(mark).items() if not line.endswith("Agent")}

    end = time.monotonic() + seconds
    while found() and time.monotonic() < end:
        time.sleep(0.5)
    return found()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker-kills", type=int, default=50)
    parser.add_argument("--driver-kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=36.0, help="seconds between two kills")
    parser.add_argument("--out", type=Path, help="a new folder; by default a temporary one")
    args = parser.parse_args()
    random.seed(args.seed)
    base = args.out or Path(tempfile.mkdtemp())
    base.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-m", "robench", *SMALL, "--out", str(base / "undisturbed")], check=True
    )
    expected = rows(base / "undisturbed")
    left = ["worker"] * args.worker_kills + ["driver"] * args.driver_kills
    random.shuffle(left)

    def moment(run: Disturbed) -> bool:
        end = time.monotonic() + random.uniform(0.5, args.longest)
        while time.monotonic() < end and not run.ended:
            time.sleep(0.05)
        return not run.ended

    started, total = time.monotonic(), len(left)
    for number in range(10 * total):
        if not left:
            break
        run = Disturbed(base / f"run{number}", [*SMALL, "--workers", str(args.workers)], moment)
        code = run.run(iter(list(left)))
        for victim in run.killed:
            left.remove(victim)
        if code == HOLES:  # four workers were lost over the same thing: the same command goes on
            code = run.run(iter(()))
        found = rows(run.out)
        lost = sum(len(set(expected[name]) - set(found.get(name, ()))) for name in expected)
        double = sum(len(lines) - len(set(lines)) for lines in found.values())
        print(
            f"run {number}: exit codes {run.codes}, killed {len(run.killed)}, {len(left)} of "
            f"{total} left, {lost} rows lost, {double} double, equal: {found == expected}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
        assert code == 0 and found == expected


if __name__ == "__main__":
    main()
