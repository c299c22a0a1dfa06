"""The flag of settings chosen at an edge of what was tried."""

from __future__ import annotations

from answer_builders import answer, behaviors, row

from robench.results.dsr_table import dsr_rows
from robench.results.tuning import is_at_edge


def test_one_seed_at_the_edge_is_enough() -> None:
    inside = answer("repe", "HHRR")
    at_edge = answer("repe", [row(b, "H", edge_of_grid=True) for b in "abcd"], seed=1)
    assert not is_at_edge([inside])
    assert is_at_edge([inside, at_edge])
    table = dsr_rows([inside, at_edge])
    assert set(table[table["seed"] == 0]["flags"]) == {""}
    assert set(table[table["seed"] == 1]["flags"]) == {"edge-of-grid"}


def test_flags_stand_side_by_side() -> None:
    """Of 20 behaviors all are broken in the second half, by the weakest setting."""
    rows = [
        row(b, letter, step=step, final=step == 4, edge_of_grid=True)
        for b in behaviors(20)
        for step, letter in enumerate("RRRH", 1)
    ]
    assert set(dsr_rows([answer("gcg", rows, planned=list(behaviors(20)))])["flags"]) == {
        "still-falling; edge-of-grid"
    }
