"""The bootstrap against closed forms."""

from __future__ import annotations

import math
import random
from statistics import fmean, pstdev

import numpy as np
import pytest

from robench.results.bootstrap import mean_interval, rank_ranges


def test_the_interval_of_a_mean_is_the_normal_one_where_n_is_large() -> None:
    rng = random.Random(0)
    values = [rng.random() for _ in range(400)]
    error = pstdev(values) / math.sqrt(len(values))
    expected = (fmean(values) - 1.96 * error, fmean(values) + 1.96 * error)
    assert mean_interval(values) == pytest.approx(expected, abs=error / 5)
    assert mean_interval(values) == mean_interval(values)


def test_the_interval_of_two_values_is_their_range() -> None:
    """Both resample means at the ends have probability 1/4 each."""
    assert mean_interval([0.25, 0.75]) == (0.25, 0.75)


@pytest.mark.parametrize("values", [[], [0.5], [0.0] * 9, [1.0] * 9])
def test_equal_values_have_no_interval(values: list[float]) -> None:
    assert all(map(math.isnan, mean_interval(values)))


def test_rows_that_never_change_places_have_a_rank_without_a_range() -> None:
    values = np.array([[0.0] * 8, [1.0] * 8, [0.5] * 8])
    assert rank_ranges(values, [False] * 3) == [(3, 3), (1, 1), (2, 2)]


def test_equals_share_all_of_their_ranks() -> None:
    values = np.array([[1.0, 0] * 10, [1.0, 0] * 10, [0.0] * 20])
    assert rank_ranges(values, [False] * 3)[:2] == [(1, 2), (1, 2)]


def test_an_incomplete_row_stands_last() -> None:
    values = np.array([[1.0] * 4, [0.0] * 4])
    assert rank_ranges(values, [True, False]) == [(2, 2), (1, 1)]


def test_behaviors_without_a_score_are_left_out_of_a_mean() -> None:
    nan = math.nan
    values = np.array([[1.0] * 3 + [nan] * 3, [0.9] * 6, [nan] * 6])
    assert rank_ranges(values, [False] * 3) == [(1, 1), (2, 2), (3, 3)]
