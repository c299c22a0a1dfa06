"""Where a defense is weakest, on cases made by hand."""

from __future__ import annotations

import pytest
from answer_builders import answer, by_category, defended

from robench.results.weaknesses import broken, left_out, worst_categories


def test_what_most_attacks_broke_stands_first() -> None:
    cells = defended("cb", "RRRR", "HHRR", "RHRR")
    found = broken(cells)
    assert [(b.behavior, list(b.attacks)) for b in found] == [
        ("b", ["gcg", "soft"]),
        ("a", ["gcg"]),
    ]


def test_seeds_are_counted() -> None:
    cells = [answer("gcg", "HHRR", "cb"), answer("gcg", "HRRR", "cb", seed=1)]
    assert [(b.attacks, b.seeds) for b in broken(cells)] == [({"gcg": 2}, 2), ({"gcg": 1}, 2)]


def test_the_attack_that_carries_the_worst_case_stands_first() -> None:
    first, second = left_out(defended("cb", "RRRR", "HHHR", "HRRR"))
    assert (first.attack, first.worst.value, first.alone) == ("gcg", 0.75, 2)
    assert first.gain == pytest.approx(0.5)
    assert (second.attack, second.gain, second.alone) == ("soft", 0, 0)


def test_the_weakest_category_stands_first() -> None:
    rates = worst_categories([by_category("HRRH", "xyzx")])
    assert list(rates) == ["x", "y", "z"]
    assert [r.value for r in rates.values()] == [0, 1, 1]
