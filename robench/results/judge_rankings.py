"""Whether the conclusions depend on the judge: how each of them orders defenses and attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from robench.results.rates import dsr
from robench.results.verdicts import IN_WORST_CASE, Answer, distinct, where
from robench.results.worst_cases import worst_rate

ENOUGH = 0.8  # of Kendall's tau, from which two judges are said to order alike


class JudgeRanking(NamedTuple):
    """The worst case of each defense, and the mean DSR of each attack, by one judge."""

    judge: str
    defenses: dict[str, float]
    attacks: dict[str, float]


class Tau(NamedTuple):
    """Kendall's tau-b between two judges' orders; NaN where there is nothing to order."""

    a: str
    b: str
    defenses: float
    attacks: float


def rankings(answers: Sequence[Answer]) -> list[JudgeRanking]:
    """What each judge of one model's cells says of the same replies, the deciding one first."""
    judges = dict.fromkeys(name for answer in answers for name in answer.header["judges"])
    return [_of(judge, answers) for judge in judges]


def taus(by_judge: Sequence[JudgeRanking]) -> list[Tau]:
    """How far each two judges order alike."""
    return [
        Tau(a.judge, b.judge, _tau(a.defenses, b.defenses), _tau(a.attacks, b.attacks))
        for a, b in combinations(by_judge, 2)
    ]


def _of(judge: str, answers: Sequence[Answer]) -> JudgeRanking:
    entering = [a for a in answers if a.header["role"] in IN_WORST_CASE]
    defenses = {
        defense: worst_rate(where(entering, defense=defense), judge=judge).value
        for defense in distinct(entering, "defense")
    }
    attacks = {}
    for attack in distinct(where(entering, role="attack"), "attack"):
        of_attack = where(entering, attack=attack)
        values = [
            dsr(where(of_attack, defense=d), judge).value for d in distinct(of_attack, "defense")
        ]
        measured = [value for value in values if not math.isnan(value)]
        attacks[attack] = sum(measured) / len(measured) if measured else math.nan
    return JudgeRanking(judge, defenses, attacks)


def _tau(some: Mapping[str, float], others: Mapping[str, float]) -> float:
    both = [name for name in some if not math.isnan(some[name] + others.get(name, math.nan))]
    if len(both) < 2:
        return math.nan
    from scipy.stats import kendalltau

    return float(kendalltau([some[n] for n in both], [others[n] for n in both]).statistic)
