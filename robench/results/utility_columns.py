"""What harmless tasks said of defended models, as columns of the leaderboard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from robench.results.store import RunStore, defended_model_id
from robench.results.verdicts import Answer

if TYPE_CHECKING:
    import pandas as pd

_PREFIX, _DELTA = "utility_", "_delta"  # of the leaderboard's columns

Figures = dict[str, dict[str, Any]]  # task -> `value` and how it came about


def joined(
    board: pd.DataFrame, answers: Sequence[Answer], stores: Sequence[RunStore]
) -> pd.DataFrame:
    """The leaderboard with `utility_TASK` and `utility_TASK_delta` after its own columns.

    A figure is the mean over seeds, NaN where a seed has none; the delta is to the undefended
    model. Without any figure the board is as it was.
    """
    figures: dict[str, Figures] = {}
    for defended_model, tasks in (record for store in stores for record in store.utilities()):
        figures.setdefault(defended_model, {}).update(tasks)
    rows = list(zip(board["model"], board["defense"], strict=True))
    columns: dict[str, list[float]] = {}
    for task in dict.fromkeys(task for tasks in figures.values() for task in tasks):
        means, base = _means(answers, figures, task)
        columns[f"{_PREFIX}{task}"] = [means[row] for row in rows]
        columns[f"{_PREFIX}{task}{_DELTA}"] = [
            means[row] - base.get(row[0], math.nan) for row in rows
        ]
    return board.assign(**columns)


def _means(
    answers: Sequence[Answer], figures: Mapping[str, Figures], task: str
) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """A task's figure for each (model, defense), and for each undefended model."""
    seeds: dict[tuple[str, str], dict[int, float]] = {}
    undefended: dict[str, tuple[str, str]] = {}
    for header in (answer.header for answer in answers):
        row = (header["model"], header["defense"])
        value = figures.get(defended_model_id(header), {}).get(task, {}).get("value")
        seeds.setdefault(row, {})[header["seed"]] = math.nan if value is None else value
        if header["defense_role"] == "baseline":
            undefended.setdefault(row[0], row)
    means = {row: fmean(values.values()) for row, values in seeds.items()}
    return means, {model: means[row] for model, row in undefended.items()}


def measured(board: pd.DataFrame) -> list[str]:
    """The tasks whose figures `joined` put into a leaderboard."""
    ends = [name for name in map(str, board) if name.startswith(_PREFIX) and name.endswith(_DELTA)]
    return [name.removeprefix(_PREFIX).removesuffix(_DELTA) for name in ends]
