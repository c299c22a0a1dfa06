"""A whole command with many workers against the same one in one process, and whether tables agree.

python -m benchmarks.workers [--workers 2] [--threads 2] [--matrix full] [-- more options of a run]

Both sides have the same number of threads in all. Neither is resumed: what the other side's tables
say is compared without times.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.recording import record

TIMES = ["seconds", "tflop"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help="of a side, in all")
    parser.add_argument("--matrix", default="full")
    parser.add_argument("more", nargs="*")
    args = parser.parse_args()
    each = max(1, args.threads // args.workers)
    sides = {
        "one process": ["--threads", str(args.threads)],
        f"{args.workers} workers": ["--threads", str(each), "--workers", str(args.workers)],
    }
    seconds, tables = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in sides.items():
            out = Path(folder) / name.replace(" ", "-")
            command = ["run", "--matrix", args.matrix, *options, *args.more, "--out", str(out)]
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-m", "robench", *command], check=False)
            seconds[name] = time.perf_counter() - started
            assert done.returncode in (0, 3), f"{name} ended with {done.returncode}"
            table = pd.read_csv(out / "dsr.csv").drop(columns=TIMES)
            tables[name] = table.sort_values(["defense", "attack", "judge"], ignore_index=True)
    one, many = sides
    differing = int((tables[one]["dsr"] != tables[many]["dsr"]).sum())
    record(
        f"workers: {args.matrix}, {args.threads} threads in all",
        ["side", "seconds", "times as fast", "rows of dsr.csv with another DSR"],
        [
            [one, f"{seconds[one]:.0f}", "1", "0"],
            [many, f"{seconds[many]:.0f}", f"{seconds[one] / seconds[many]:.2f}", differing],
        ],
        device="cpu",
    )


if __name__ == "__main__":
    main()
