"""Two runs side by side, against counts made by hand."""

from __future__ import annotations

import pytest
from answer_builders import answer

from robench.results.comparison import Difference
from robench.results.run_comparison import WORST, changes, missing


def test_a_change_that_the_behaviors_show_is_told_from_noise() -> None:
    before = [answer("gcg", "H" * 20, "cb"), answer("soft", "H" + "R" * 19, "cb")]
    now = [answer("gcg", "R" * 20, "cb"), answer("soft", "R" * 20, "cb")]
    by_attack = {change.attack: change for change in changes(before, now)}
    assert by_attack["gcg"].verdict == "better"
    assert by_attack["soft"].verdict == "within noise"
    assert by_attack[WORST].difference == Difference(20, 0, 20)
    assert changes(now, before)[0].verdict == "worse"


def test_holm_is_over_all_rows() -> None:
    before = [answer("gcg", "H" * 6 + "R" * 4, "cb")]
    now = [answer("gcg", "R" * 10, "cb")]
    found = changes(before, now)
    assert [c.difference.p for c in found] == pytest.approx([0.03125, 0.03125])
    assert [c.p_holm for c in found] == pytest.approx([0.0625, 0.0625])


def test_what_one_run_lacks_is_said() -> None:
    assert missing([answer("gcg", "RRRR")], [answer("soft", "RRRR")]) == [
        "soft on none was not run before",
        "gcg on none is not in this run",
    ]


def test_the_paired_interval_is_bonett_and_prices() -> None:
    """b = 6, c = 1 of 40: (7 - 2) / 42 and z sqrt((7 + 2 - 25 / 42) / 42 / 42)."""
    low, high = Difference(6, 1, 40).interval
    assert (low, high) == pytest.approx((-0.01624, 0.25434), abs=1e-4)
    low, high = Difference(0, 0, 40).interval
    assert low < 0 < high
