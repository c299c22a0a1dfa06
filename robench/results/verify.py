"""Whether the numbers of a folder follow from what lies beneath them.

Of a run's folder every file is made again from the rows. Of a folder that has tables alone, as
`results/full`, every number is made again that the tables themselves determine: rates and intervals
from their counts, p values from the discordant behaviors, and what the page of tables prints.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.errors import InputError
from robench.results import markdown
from robench.results.answers import require_cells
from robench.results.comparison import Difference, holm
from robench.results.rates import Rate
from robench.results.report.page import PAGE, render
from robench.results.run_tables import RunTables
from robench.results.tables import texts

if TYPE_CHECKING:
    import pandas as pd

CLOSE = 2e-6  # files have six digits


def verify(folder: Path) -> tuple[int, list[str]]:
    """Make the numbers of a folder again.

    Returns:
        How many values were compared, and a sentence for each that differs.

    Raises:
        InputError: the folder has neither rows nor tables, or no cell yet.
    """
    if (folder / "run.json").is_file():
        return _of_run(folder)
    if (folder / "dsr.csv").is_file():
        return _of_tables(folder)
    raise InputError(f"{folder} has neither a run (run.json) nor tables (dsr.csv)")


def _of_run(folder: Path) -> tuple[int, list[str]]:
    computed = RunTables.of([folder])
    require_cells(computed.answers, folder)
    contents = {**texts(computed), PAGE: render(computed)}
    compared, problems = 0, []
    for name, content in contents.items():
        path = folder / name
        if content is None:
            continue
        if not path.is_file():
            problems.append(f"{name} is missing")
            continue
        stored = path.read_bytes().decode("utf-8", "surrogatepass")
        if name.endswith(".csv"):
            count, found = _tables_differ(name, _csv(stored), _csv(content))
            compared, problems = compared + count, problems + found
        else:
            lines = list(zip(stored.splitlines(), content.splitlines(), strict=False))
            compared += len(lines)
            differs = [number for number, (a, b) in enumerate(lines, 1) if a != b]
            if differs or stored != content:
                place = f"line {differs[0]}" if differs else "its length"
                problems.append(f"{name} differs from what the rows give, first in {place}")
    return compared, problems


def _csv(text: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_csv(io.StringIO(text), keep_default_na=False)


def _tables_differ(name: str, stored: pd.DataFrame, made: pd.DataFrame) -> tuple[int, list[str]]:
    """How many values two tables have, and where they differ."""
    if list(stored) != list(made) or len(stored) != len(made):
        return 0, [f"{name} has other rows or columns than what the rows give"]
    pairs = (
        (row, column, stored[column][row], made[column][row])
        for column in stored
        for row in range(len(stored))
    )
    found = [
        f"{name}, line {row + 2}, {column}: {was} is written, the rows give {now}"
        for row, column, was, now in pairs
        if was != now
    ]
    return stored.size, found


# Tables without rows


def _of_tables(folder: Path) -> tuple[int, list[str]]:
    import pandas as pd

    problems: list[str] = []
    compared = 0
    for name, check in (("dsr.csv", _rates), ("dsr_by_category.csv", _categories),
                        ("pairs.csv", _pairs), ("leaderboard.csv", _board)):  # fmt: skip
        if not (folder / name).is_file():
            problems.append(f"{name} is missing")
            continue
        table = pd.read_csv(folder / name, keep_default_na=False, na_values=[""])
        for row, column, written, given in check(table):
            compared += 1
            both_missing = bool(pd.isna(written)) and math.isnan(given)
            if not both_missing and not abs(float(written) - given) <= CLOSE * max(1, abs(given)):
                problems.append(
                    f"{name}, line {row + 2}, {column}: {written:.6g} is written, "
                    f"its counts give {given:.6g}"
                )
    count, found = _printed(folder)
    return compared + count, problems + found


Checked = Iterator[tuple[int, str, Any, float]]


def _rates(table: pd.DataFrame) -> Checked:
    """asr, dsr and its interval from the counts of outcomes."""
    for number, row in enumerate(table.to_dict("records")):
        counts = [row[o] for o in ("harmful", "refused", "degenerate", "harmless", "unscored")]
        yield number, "n", row["n"], float(sum(counts))
        broken = Rate(row["harmful"], row["n"] - row["unscored"])
        low, high = broken.rest.interval
        for column, value in (("asr", broken.value), ("dsr", 1 - broken.value), ("dsr_lo", low),
                              ("dsr_hi", high)):  # fmt: skip
            yield number, column, row[column], value


def _categories(table: pd.DataFrame) -> Checked:
    """Intervals from rates and counts."""
    for number, row in enumerate(table.to_dict("records")):
        scored = row["n"] - row["unscored"]
        held = Rate(row["dsr"] * scored if scored else 0, scored)
        whole = round(held.hits)
        held = Rate(whole, scored) if abs(whole - held.hits) < 1e-4 else held
        for column, value in zip(("dsr_lo", "dsr_hi"), held.interval, strict=True):
            yield number, column, row[column], value


def _pairs(table: pd.DataFrame) -> Checked:
    """p of every pair that has a discordant behavior, and Holm's correction.

    The pairs of ranked defenses are one family, those against `none` the other.
    """
    rows = table.to_dict("records")
    for number, row in enumerate(rows):
        if row["only_a"] + row["only_b"]:
            p = Difference(row["only_a"], row["only_b"], row["only_a"] + row["only_b"]).p
            yield number, "p", row["p"], p
    families: dict[tuple[str, bool], list[int]] = {}
    for number, row in enumerate(rows):
        families.setdefault((row["model"], row["b"] == "none"), []).append(number)
    for numbers in families.values():
        for number, p in zip(numbers, holm([rows[i]["p"] for i in numbers]), strict=True):
            yield number, "p_holm", rows[number]["p_holm"], p


def _board(table: pd.DataFrame) -> Checked:
    """Intervals of the worst case from its rate and n."""
    for number, row in enumerate(table.to_dict("records")):
        worst = row["dsr_worst"]
        if row["attacks_missing"] == row["attacks_missing"] or math.isnan(worst):
            continue  # n of an open worst case is not in the table
        held = Rate(worst * row["n"], row["n"])
        whole = round(held.hits)
        held = Rate(whole, row["n"]) if abs(whole - held.hits) < 1e-3 else held
        for column, value in zip(("dsr_worst_lo", "dsr_worst_hi"), held.interval, strict=True):
            yield number, column, row[column], value


def _printed(folder: Path) -> tuple[int, list[str]]:
    """Whether dsr.md prints the numbers of dsr.csv and leaderboard.csv."""
    import pandas as pd

    if not (folder / "dsr.md").is_file():
        return 0, ["dsr.md is missing"]
    text = (folder / "dsr.md").read_text("utf-8")
    expected = []
    rates = pd.read_csv(folder / "dsr.csv", keep_default_na=False, na_values=[""])
    single = rates.groupby(["model", "defense", "attack", "judge"])["seed"].transform("count") == 1
    deciding = rates["judge"] == rates["judge"].iloc[0] if len(rates) else single
    for row in rates[single & deciding].to_dict("records"):
        shown = markdown.with_interval(row["dsr"], row["dsr_lo"], row["dsr_hi"])
        expected.append((f"{row['attack']} on {row['defense']}", shown))
    board = pd.read_csv(folder / "leaderboard.csv", keep_default_na=False, na_values=[""])
    for row in board.to_dict("records"):
        shown = markdown.with_interval(row["dsr_worst"], row["dsr_worst_lo"], row["dsr_worst_hi"])
        expected.append((f"the worst case of {row['defense']}", shown))
    missing = [f"dsr.md does not print {shown} of {what}" for what, shown in expected
               if shown not in text]  # fmt: skip
    return len(expected), missing
