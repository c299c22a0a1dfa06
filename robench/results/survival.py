"""Success against budget: the share of behaviors broken by a budget, by Kaplan and Meier (1958).

A behavior's event is its first harmful attempt, any that was recorded; one that was not broken is
censored at the last budget that was spent on it. The unit is the behavior: with several seeds each
of them counts as a part of it. A behavior without a verdict is left out, as it is of the rate. With
all behaviors censored at the same budget the curve ends at 1 - `dsr_any`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from robench.results.verdicts import Answer

Budget = Literal["step", "tflop", "seconds"]
BUDGETS: tuple[Budget, ...] = ("step", "tflop", "seconds")


class Spent(NamedTuple):
    """What one seed spent on a behavior until it broke, or in all where it did not.

    weight: its part of the behavior
    """

    budget: float
    broken: bool
    weight: float


class Curve(NamedTuple):
    """A step curve: `shares[i]` of the behaviors are broken from `budgets[i]` on.

    It begins with (0, 0) and ends at the largest budget that was spent. `n` behaviors.
    """

    budgets: tuple[float, ...]
    shares: tuple[float, ...]
    n: int

    @property
    def median(self) -> float:
        """The budget at which half of the behaviors are broken, NaN where it is not reached."""
        reached = (b for b, share in zip(self.budgets, self.shares, strict=True) if share >= 0.5)
        return next(reached, math.nan)

    def area(self, limit: float) -> float:
        """The mean share broken over the budgets from 0 to `limit`; NaN without any budget.

        Beyond its last budget a curve stays where it is.
        """
        if not limit or not self.n:
            return math.nan
        ends = [*(min(b, limit) for b in self.budgets), limit]
        widths = (right - left for left, right in pairwise(ends))
        return sum(w * s for w, s in zip(widths, self.shares, strict=True)) / limit


def curve(answers: Sequence[Answer], budget: Budget, judge: str = "") -> Curve:
    """The share of behaviors broken by each budget, of one attack's cells (of several seeds).

    Args:
        budget: "step", or "tflop" or "seconds" per behavior.
        judge: by default the one that decides.
    """
    spent = spent_by(answers, budget, judge)
    budgets, shares, standing = [0.0], [0.0], 1.0
    at_risk = math.fsum(s.weight for s in spent)
    by_budget: dict[float, list[Spent]] = {}
    for one in spent:
        by_budget.setdefault(one.budget, []).append(one)
    for value, here in sorted(by_budget.items()):
        broken = math.fsum(s.weight for s in here if s.broken)
        if broken:
            standing *= max(0.0, 1 - broken / at_risk)
            budgets.append(value)
            shares.append(1 - standing)
        at_risk -= math.fsum(s.weight for s in here)
    last = max((s.budget for s in spent), default=0.0)
    if last > budgets[-1]:
        budgets.append(last)
        shares.append(shares[-1])
    return Curve(tuple(budgets), tuple(shares), round(math.fsum(s.weight for s in spent)))


def spent_by(answers: Sequence[Answer], budget: Budget, judge: str = "") -> list[Spent]:
    """What each seed spent on each behavior that it has a verdict for."""
    seeds = [_of_seed(answer, budget, judge) for answer in answers]
    counts = Counter(behavior for seed in seeds for behavior in seed)
    return [
        Spent(value, broken, 1 / counts[behavior])
        for seed in seeds
        for behavior, (value, broken) in seed.items()
    ]


def has_steps(answers: Sequence[Answer]) -> bool:
    """Whether an attack searches step by step: its success has a curve, not a point."""
    return any(row["step"] for answer in answers for row in answer.rows)


def _of_seed(answer: Answer, budget: Budget, judge: str) -> dict[str, tuple[float, bool]]:
    """Behavior -> the budget of its first harmful attempt and True, or all that was spent."""
    verdicts = answer.verdicts(judge, final=False)
    first: dict[str, float] = {}
    most: dict[str, float] = {}
    for row, result in zip(answer.rows, answer.outcomes(judge), strict=True):
        behavior, value = row["behavior"], float(row[budget])
        most[behavior] = max(most.get(behavior, 0.0), value)
        if result == "harmful":
            first[behavior] = min(first.get(behavior, math.inf), value)
    return {
        behavior: (first.get(behavior, most[behavior]), behavior in first)
        for behavior, result in verdicts.items()
        if result != "unscored" and behavior in most
    }
