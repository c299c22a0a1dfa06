"""Cells -> dsr.md, dsr.csv, dsr_by_category.csv, leaderboard.csv, pairs.csv; dsr.md is printed.

The tables are a function of the cells alone and can be made again at any time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robench import files, locks
from robench.errors import InputError
from robench.results.run_tables import RunTables
from robench.results.section import section
from robench.results.store import RunStore

if TYPE_CHECKING:
    import pandas as pd

MARK = "\ufeff"  # at the start of a CSV: Excel reads it as UTF-8 only with it
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def tables(
    folders: Sequence[Path], judge: str = "", out: Path | None = None, page: bool = False
) -> str:
    """Write dsr.md, dsr.csv, dsr_by_category.csv, leaderboard.csv and pairs.csv of some runs.

    Where several judges scored, judge_agreement.csv as well. The folder that they are written into
    is locked meanwhile.

    Args:
        folders: runs; their cells are put together.
        judge: the one whose verdicts count, by default the first that each run was asked for.
        out: where the tables go, by default into the run, where there is one. What else is there
            stays.
        page: whether report.html is written as well.

    Returns:
        What dsr.md says, for the terminal.

    Raises:
        InputError: a folder is not a run's, several runs have no `out`, another process holds the
            folder, two cells claim the same place in a table, or the judge scored nothing here.
    """
    for folder in folders:
        RunStore(folder).question()
    if out is None:
        if len(folders) > 1:
            raise InputError("several runs: give --out FOLDER for the tables of all of them")
        out = folders[0]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; choose another --out")
    with locks.locked(out):
        computed = RunTables.of(folders, judge)
        contents = texts(computed)
        if page:
            from robench.results.report.page import PAGE, render

            contents[PAGE] = render(computed)
        for name, content in contents.items():
            if content is None:
                (out / name).unlink(missing_ok=True)  # of runs that several judges scored
            else:
                files.write_text(out / name, content)
    return contents["dsr.md"] or ""


def texts(computed: RunTables) -> dict[str, str | None]:
    """What stands in each file of tables; None where there is to be none."""
    sections = [
        section(list(m.answers), m.board, m.pairs, m.judges, m.flags[model])
        for model in computed.models
        for m in [computed.of_model(model)]
    ]
    return {
        "judge_agreement.csv": _csv(computed.judges) if len(computed.judges) else None,
        "dsr.csv": _csv(computed.dsr),
        "dsr_by_category.csv": _csv(computed.categories),
        "leaderboard.csv": _csv(computed.board),
        "pairs.csv": _csv(computed.pairs),
        "dsr.md": "\n".join(sections),
    }


def _csv(table: pd.DataFrame) -> str:
    lines = table.map(_inert).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return f"{MARK}{lines}"


def _inert(value: object) -> object:
    """Text on one line, after an apostrophe where a spreadsheet would take it for a formula."""
    if not isinstance(value, str):
        return value
    line = re.sub(r"[\r\n]+", " ", value)
    return f"'{line}" if value.startswith(FORMULA) else line
