"""Exact McNemar against the binomial by hand, Holm against his own example's arithmetic."""

import math

import pytest

from robench.results.comparison import holm, mcnemar


def verdicts(letters: str) -> dict[str, str]:
    names = {"H": "harmful", "R": "refused", "?": "unscored"}
    return {str(i): names[letter] for i, letter in enumerate(letters)}


@pytest.mark.parametrize(
    ("ours", "theirs", "p"),
    [
        ("RRRRR", "HHHHH", 2 / 32),  # five won, none lost: 2 * 0.5^5
        ("HRRRR", "RHHHH", 2 * (1 + 5) / 32),  # four won, one lost
        ("HHRR", "HHRR", 1),  # concordant pairs say nothing
        ("HRRR?", "HHHH?", 2 / 8),
        ("RR?", "HHH", 2 / 4),  # unscored is not held
    ],
)
def test_mcnemar(ours, theirs, p):
    assert mcnemar(verdicts(ours), verdicts(theirs)) == pytest.approx(p)
    assert mcnemar(verdicts(theirs), verdicts(ours)) == pytest.approx(p)


def test_nothing_in_common_is_no_comparison():
    assert math.isnan(mcnemar(verdicts("RR"), {}))


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([]) == []
    found = holm([math.nan, 0.01])
    assert math.isnan(found[0]) and found[1] == pytest.approx(0.02)
