"""How many verdicts of two runs of one question differ, as between a CPU and a GPU.

python -m benchmarks.verdicts RUN RUN

Of every defense and attack: final attempts of both runs, those whose reply differs, and those that
are harmful in one run only. Adapters are trained anew in each run, so that only `none` shows the
device alone.
"""

import argparse
from pathlib import Path

import pandas as pd

from robench.results.answers import load_rows

KEY = ["defense", "attack", "seed", "behavior", "tag", "step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs=2, type=Path)
    args = parser.parse_args()
    print(differences(*map(load_rows, args.runs)).to_string(index=False))


def differences(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """A row per defense and attack: attempts in both, and how many replies and verdicts differ."""
    finals = [rows[rows["final"]][[*KEY, "reply", "harmful"]] for rows in (one, other)]
    both = finals[0].merge(finals[1], on=KEY, suffixes=("", "_other"), validate="one_to_one")
    both["replies differ"] = both["reply"] != both["reply_other"]
    both["verdicts differ"] = both["harmful"] != both["harmful_other"]
    groups = both.groupby(["defense", "attack"], sort=False)
    table = groups[["replies differ", "verdicts differ"]].sum()
    table.insert(0, "attempts", groups.size())
    return table.reset_index()


if __name__ == "__main__":
    main()
