"""How judges order defenses and attacks, on cases made by hand."""

from __future__ import annotations

import math

import pytest
from answer_builders import BEHAVIORS, answer, row

from robench.results.judge_rankings import rankings, taus
from robench.results.verdicts import Answer


def cell(defense: str, exact: str, keyword: str, attack: str = "gcg") -> Answer:
    rows = [
        row(b, "R", scores={"exact": float(e == "H"), "keyword": float(k == "H")})
        for b, e, k in zip(BEHAVIORS, exact, keyword, strict=True)
    ]
    return answer(attack, rows, defense)


def test_judges_that_order_alike_have_tau_1_and_opposite_ones_minus_1() -> None:
    alike = [cell("none", "HHHH", "HHHH"), cell("a", "HHRR", "HHHR"), cell("b", "RRRR", "RRRR")]
    (tau,) = taus(rankings(alike))
    assert (tau.a, tau.b, tau.defenses) == ("exact", "keyword", pytest.approx(1))
    opposite = [cell("none", "HHHH", "RRRR"), cell("a", "RRRR", "HHHH")]
    assert taus(rankings(opposite))[0].defenses == pytest.approx(-1)


def test_attacks_are_ordered_by_their_mean_over_defenses() -> None:
    cells = [cell("none", "HHHH", "RRRR"), cell("none", "HRRR", "HHRR", "soft")]
    exact, keyword = rankings(cells)
    assert exact.attacks == {"gcg": 0, "soft": 0.75}
    assert keyword.attacks == {"gcg": 1, "soft": 0.5}


def test_one_defense_has_no_order() -> None:
    assert math.isnan(taus(rankings([cell("none", "HHRR", "HRRR")]))[0].defenses)
