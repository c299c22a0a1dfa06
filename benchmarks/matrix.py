"""Where the time of a whole run on the organism goes: training, each attack, and the rest.

python -m benchmarks.matrix [--matrix full] [--device cpu]

An attack's seconds are summed over behaviors; replies, judging and loading are the rest of the wall
clock. TFLOP are by formula.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.recording import record
from robench.results.answers import read_answers
from robench.results.rates import dsr_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrix", default="full", help="full, smoke or FILE.yaml")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        options = ["--matrix", args.matrix, "--device", args.device, "--out", str(folder)]
        begin = time.perf_counter()
        run = subprocess.run([sys.executable, "-m", "robench", "run", *options], check=False)
        wall = time.perf_counter() - begin
        if run.returncode:
            sys.exit(run.returncode)  # the run has printed why
        costs = phases(folder)
    seconds = costs.pivot_table("seconds", "phase", "defense", "sum", sort=False).fillna(0.0)
    total, tflop = seconds.sum(axis=1), costs.groupby("phase")["tflop"].sum()
    rows: list[list[object]] = [
        [phase, *seconds.loc[phase], total[phase], f"{total[phase] / wall:.0%}", tflop[phase]]
        for phase in seconds.index
    ]
    rest, blank = wall - total.sum(), [""] * len(seconds.columns)
    rows.append(["(replies, judging, loading)", *blank, rest, f"{rest / wall:.0%}", ""])
    record(
        f"matrix: {args.matrix} on the organism, seconds by phase and defense",
        ["phase", *seconds.columns, "all", "of the wall clock", "TFLOP"],
        rows,
        f"wall clock: {wall:.0f} s",
        device=args.device,
    )


def phases(folder: Path) -> pd.DataFrame:
    """A row per defense and phase: seconds and TFLOP of a run's training and attacks."""
    answers = read_answers([folder])
    trained = pd.DataFrame(
        {
            "defense": answer.header["defense"],
            "phase": "(training)",
            "seconds": answer.info["train_seconds"],
            "tflop": answer.info["train_tflop"],
        }
        for answer in answers
        if answer.info.get("train_seconds")
    ).drop_duplicates()
    rates = dsr_rows(answers)
    rates = rates[rates["judge"] == rates["judge"].iloc[0]].rename(columns={"attack": "phase"})
    return pd.concat([trained, rates[["defense", "phase", "seconds", "tflop"]]])


if __name__ == "__main__":
    main()
