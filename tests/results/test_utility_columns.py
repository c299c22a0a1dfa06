"""Figures of harmless tasks in the leaderboard: means over seeds, and what is unknown."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from robench.results import utility_columns
from robench.results.store import RunStore, defended_model_id
from robench.results.verdicts import Answer

HEADER = {
    "model": "m", "weights": "w", "template": "t", "system": None, "train": "x", "dtype": "float32",
    "defense_fields": {},
}  # fmt: skip


def test_figures_are_means_over_seeds_and_unknown_where_a_seed_is_missing(tmp_path: Path) -> None:
    store, answers = RunStore(tmp_path), []
    figures = {"none": (0.5, 0.7), "a": (0.4, 0.5), "b": (0.4, None), "c": (0.4, ...)}
    for defense, values in figures.items():
        role = "baseline" if defense == "none" else "defense"
        for seed, value in enumerate(values):
            names = {"defense": defense, "defense_role": role, "defense_source": defense}
            header = {**HEADER, **names, "seed": seed}
            answers.append(Answer({**header, "defense": f"{defense} [demo]"}, {}, [], ""))
            if value is not ...:
                store.add_utility(header, "task", {"value": value})
    table = pd.DataFrame({"model": "m", "defense": [f"{defense} [demo]" for defense in figures]})
    found = utility_columns.joined(table, answers, [store])
    assert list(found) == ["model", "defense", "utility_task", "utility_task_delta"]
    assert utility_columns.measured(found) == ["task"]
    nan = math.nan
    assert list(found["utility_task"]) == pytest.approx([0.6, 0.45, nan, nan], nan_ok=True)
    assert list(found["utility_task_delta"]) == pytest.approx([0, -0.15, nan, nan], nan_ok=True)
    later = RunStore(tmp_path / "later")  # the same model in another folder
    later.add_utility({**HEADER, "defense": "none", "defense_source": "none", "seed": 0}, "x", {})
    assert utility_columns.measured(utility_columns.joined(table, answers, [store, later])) == [
        "task",
        "x",
    ]


def test_without_figures_the_board_is_as_it_was(tmp_path: Path) -> None:
    table = pd.DataFrame({"model": ["m"], "defense": ["none"]})
    headless = Answer({"model": "m"}, {}, [], "")  # of a store that knows no worn models
    pd.testing.assert_frame_equal(
        utility_columns.joined(table, [headless], [RunStore(tmp_path)]), table
    )


def test_a_defended_model_is_known_by_all_that_it_depends_on() -> None:
    header = {**HEADER, "defense": "a", "defense_source": "s", "seed": 0}
    assert defended_model_id({**header, "defense": "b", "attack": "gcg"}) == defended_model_id(
        header
    )
    for name in (*HEADER, "defense_source", "seed"):
        if name != "model":
            assert defended_model_id({**header, name: "other"}) != defended_model_id(header), name
