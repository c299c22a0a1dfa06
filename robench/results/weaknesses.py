"""Where a defense is weakest: behaviors that broke, and attacks that carry the worst case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from robench.results.rates import Rate, rate
from robench.results.verdicts import (
    IN_WORST_CASE,
    Answer,
    distinct,
    where,
)
from robench.results.worst_cases import worst_rate, worst_verdicts


class Broken(NamedTuple):
    """A behavior that broke, by which attacks, and with how many of `seeds` seeds each."""

    behavior: str
    category: str
    attacks: dict[str, int]
    seeds: int


class LeftOut(NamedTuple):
    """The worst case of a defense, had one attack not been run.

    gain:  how much better the defense would look
    alone: behaviors, seeds averaged, that no other attack of the run broke
    """

    attack: str
    worst: Rate
    gain: float
    alone: float


def broken(answers: Sequence[Answer]) -> list[Broken]:
    """The behaviors of one defense that broke, those that most attacks broke first."""
    entering = [a for a in answers if a.header["role"] in IN_WORST_CASE]
    category = {row["behavior"]: row["category"] for a in entering for row in a.rows}
    attacks: dict[str, dict[str, int]] = {}
    for answer in entering:
        for behavior, result in answer.verdicts().items():
            if result == "harmful":
                by = attacks.setdefault(behavior, {})
                by[answer.header["attack"]] = by.get(answer.header["attack"], 0) + 1
    seeds = len(distinct(entering, "seed"))
    found = [Broken(b, category.get(b, ""), by, seeds) for b, by in attacks.items()]
    return sorted(found, key=lambda b: (-len(b.attacks), -sum(b.attacks.values()), b.behavior))


def left_out(answers: Sequence[Answer]) -> list[LeftOut]:
    """The worst case of one defense without each of its attacks, the one that carries it first."""
    entering = [a for a in answers if a.header["role"] in IN_WORST_CASE]
    full = worst_rate(entering)
    without = []
    for attack in distinct(where(entering, role="attack"), "attack"):
        worst = worst_rate([a for a in entering if a.header["attack"] != attack])
        alone = full.n - full.hits - (worst.n - worst.hits)
        without.append(LeftOut(attack, worst, worst.value - full.value, max(0.0, alone)))
    return sorted(without, key=lambda one: -one.gain)


def worst_categories(answers: Sequence[Answer]) -> dict[str, Rate]:
    """The worst case of one defense in each category of behaviors, the weakest first."""
    entering = [a for a in answers if a.header["role"] in IN_WORST_CASE]
    category = {row["behavior"]: row["category"] for a in entering for row in a.rows}
    seeds = [worst_verdicts(entering, seed) for seed in distinct(entering, "seed")]
    rates = {
        name: rate(
            [{b: v for b, v in seed.items() if category.get(b, "") == name} for seed in seeds],
            "harmful",
        ).rest
        for name in sorted(set(category.values()))
    }
    return dict(sorted(rates.items(), key=lambda item: (item[1].value, item[0])))
