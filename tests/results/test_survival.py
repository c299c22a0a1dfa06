"""Success against budget against curves worked out by hand."""

from __future__ import annotations

import math

import pytest
from answer_builders import answer, row

from robench.results.rates import dsr
from robench.results.survival import curve, has_steps


def search(*steps: tuple[str, int, str], **fields: object) -> list[dict[str, object]]:
    """Rows of (behavior, step, letter)."""
    return [row(b, letter, step=step, **fields) for b, step, letter in steps]


def test_a_curve_steps_where_behaviors_break() -> None:
    rows = search(("a", 1, "H"), ("a", 4, "H"), ("b", 1, "R"), ("b", 4, "H"),
                  ("c", 4, "R"), ("d", 4, "R"))  # fmt: skip
    found = curve([answer("gcg", rows)], "step")
    assert found.budgets == (0, 1, 4)
    assert found.shares == pytest.approx((0, 0.25, 0.5))
    assert (found.n, found.median, found.area(4)) == (4, 4, pytest.approx(0.25 * 3 / 4))


def test_the_product_limit_knows_who_left_before() -> None:
    """b is censored at 2: of the two at risk at 3 one breaks (Kaplan and Meier, 1958)."""
    rows = search(("a", 1, "H"), ("b", 2, "R"), ("c", 3, "H"), ("d", 4, "R"))
    found = curve([answer("gcg", rows)], "step")
    assert found.shares == pytest.approx((0, 1 / 4, 1 - 3 / 4 * 1 / 2, 1 - 3 / 8))


def test_seeds_are_parts_of_a_behavior() -> None:
    first = answer("gcg", search(*((b, 1, "H") for b in "abcd")))
    second = answer("gcg", search(*((b, 1, "R") for b in "abcd")), seed=1)
    found = curve([first, second], "step")
    assert (found.n, found.shares[-1]) == (4, pytest.approx(0.5))


def test_a_curve_ends_at_the_rate_of_any_attempt() -> None:
    rows = search(
        ("a", 1, "H"), *((b, 3, letter) for b, letter in zip("abcd", "RHRR", strict=True))
    )
    cells = [answer("gcg", rows)]
    assert curve(cells, "step").shares[-1] == pytest.approx(1 - dsr(cells, final=False).value)


def test_what_is_unscored_is_left_out() -> None:
    rows = search(("a", 1, "?"), ("b", 1, "H"), ("c", 1, "R"), ("d", 1, "R"))
    assert curve([answer("gcg", rows)], "step").n == 3


def test_without_events_the_median_is_not_reached() -> None:
    found = curve([answer("gcg", search(*((b, 5, "R") for b in "abcd")))], "step")
    assert found.shares == (0, 0)
    assert math.isnan(found.median)
    assert found.area(5) == 0


def test_an_attack_without_steps_has_no_curve() -> None:
    assert not has_steps([answer("gcg", "RRRR")])
    assert has_steps([answer("gcg", search(("a", 2, "R")))])
