"""Which behaviors flip between two defenses, on cases made by hand."""

from __future__ import annotations

import pytest
from answer_builders import answer, defended

from robench.errors import InputError
from robench.results.flips import flips


def test_behaviors_flip_to_either_side() -> None:
    found = flips(
        [*defended("x", "RRRR", "HHRR", "RRRR"), *defended("y", "RRRR", "RRRH", "HRRR")], "x", "y"
    )
    assert (found.broke_a, found.broke_b) == (("b",), ("d",))
    assert found.attacks == ("direct", "gcg", "soft")
    assert (found.difference.only_a, found.difference.only_b, found.difference.n) == (1, 1, 4)
    assert "+0 points of DSR" in str(found) and "cannot be told apart" in str(found)


def test_an_attack_that_one_did_not_meet_is_left_out() -> None:
    cells = [*defended("x", "RRRR", "HHHH", "RRRR"), *defended("y", "RRRR", "RRRR", "RRRR")[::2]]
    assert flips(cells, "x", "y").attacks == ("direct", "soft")


def test_seeds_are_balanced() -> None:
    cells = [
        answer("gcg", "HHRR", "x"), answer("gcg", "RHRR", "x", seed=1),
        answer("gcg", "RHRR", "y"), answer("gcg", "HRRR", "y", seed=1),
    ]  # fmt: skip
    found = flips(cells, "x", "y")
    assert (found.broke_a, found.broke_b) == (("b",), ())


def test_many_behaviors_are_told_apart() -> None:
    cells = [answer("gcg", "H" * 30, "x"), answer("gcg", "R" * 30, "y")]
    said = str(flips(cells, "x", "y"))
    assert "+100 points of DSR" in said and "they can be told apart" in said
    assert "and 10 more" in said


def test_an_unknown_defense_is_told() -> None:
    with pytest.raises(InputError, match=r"no defense called 'crll'.*did you mean 'crl'"):
        flips([answer("gcg", "RRRR", "crl")], "crll", "crl")
