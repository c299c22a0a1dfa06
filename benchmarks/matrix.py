"""Where the time of a run went: seconds of training, of each attack, and TFLOP by formula.

python -m benchmarks.matrix results/runs/full
"""

import sys
from pathlib import Path

import pandas as pd

from robench.metrics import dsr_rows
from robench.store import RunStore


def phases(folder: Path) -> pd.DataFrame:
    """A row per defense and phase; replies and judging are not in an attack's seconds."""
    cells = list(RunStore(folder).cells())
    trained = pd.DataFrame(
        {
            "defense": header["defense"],
            "phase": "(training)",
            "seconds": info["train_seconds"],
            "tflop": info["train_tflop"],
        }
        for header, info, _, _ in cells
        if info.get("train_seconds")
    ).drop_duplicates()
    rates = dsr_rows(cells)
    rates = rates[rates["judge"] == rates["judge"].iloc[0]].rename(columns={"attack": "phase"})
    return pd.concat([trained, rates[["defense", "phase", "seconds", "tflop"]]])


if __name__ == "__main__":
    print(phases(Path(sys.argv[1])).to_string(index=False))
