"""The Pareto front."""

import math

from robench.results.pareto import front


def test_a_point_that_another_beats_in_both_is_off_the_front() -> None:
    points = {"a": (1.0, 0.1), "b": (0.5, 0.9), "c": (0.4, 0.8), "d": (0.9, 0.1)}
    assert front(points) == ["b", "a"]


def test_equal_points_are_both_on_it_and_unknown_ones_are_not() -> None:
    points = {"a": (0.5, 0.5), "b": (0.5, 0.5), "c": (math.nan, 1.0)}
    assert front(points) == ["a", "b"]
