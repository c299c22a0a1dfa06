"""Two runs side by side: what changed on the same behaviors, and whether it is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from robench.results.comparison import LEVEL, Difference, compare, holm
from robench.results.rates import Rate, dsr
from robench.results.verdicts import Answer, attacked, distinct, where
from robench.results.worst_cases import worst_rate, worst_verdicts

WORST = "worst case"


class Change(NamedTuple):
    """What became of one attack, or of the worst case, on one defense.

    before, now: DSR in each run
    difference:  the behaviors that both runs have a verdict for; `only_a` broke before alone
    low, high:   paired 95 % interval of the change of DSR
    p_holm:      of the exact McNemar test, corrected for all rows of the comparison
    """

    model: str
    defense: str
    attack: str
    before: Rate
    now: Rate
    difference: Difference
    low: float
    high: float
    p_holm: float

    @property
    def verdict(self) -> str:
        """What the change amounts to, in words."""
        if not self.difference.n:
            return "nothing in common"
        if math.isnan(self.p_holm) or self.p_holm >= LEVEL:
            return "within noise"
        return "better" if self.difference.only_a > self.difference.only_b else "worse"


def changes(before: Sequence[Answer], now: Sequence[Answer]) -> list[Change]:
    """What changed from one run to another, of what both have: attacks first, then worst cases."""
    found = [*_attacks(before, now), *_worst_cases(before, now)]
    corrected = holm([change.difference.p for change in found])
    return [c._replace(p_holm=p) for c, p in zip(found, corrected, strict=True)]


def missing(before: Sequence[Answer], now: Sequence[Answer]) -> list[str]:
    """What one of the runs has and the other has not, in words."""
    old, new = _places(before), _places(now)
    return [f"{a} on {d} was not run before" for _, d, a in new if (_, d, a) not in old] + [
        f"{a} on {d} is not in this run" for _, d, a in old if (_, d, a) not in new
    ]


def _places(answers: Iterable[Answer]) -> list[tuple[str, str, str]]:
    found = [(a.header["model"], a.header["defense"], a.header["attack"]) for a in answers]
    return list(dict.fromkeys(found))


def _attacks(before: Sequence[Answer], now: Sequence[Answer]) -> Iterator[Change]:
    old = _places(attacked(before))
    for model, defense, attack in _places(attacked(now)):
        if (model, defense, attack) not in old:
            continue
        cells = [where(run, model=model, defense=defense, attack=attack) for run in (before, now)]
        seeds = [s for s in distinct(cells[1], "seed") if where(cells[0], seed=s)]
        pairs = [
            (where(cells[0], seed=s)[0].verdicts(), where(cells[1], seed=s)[0].verdicts())
            for s in seeds
        ]
        yield _change(model, defense, attack, dsr(cells[0]), dsr(cells[1]), compare(pairs))


def _worst_cases(before: Sequence[Answer], now: Sequence[Answer]) -> Iterator[Change]:
    """Over the attacks that a defense met in both runs."""
    for model in distinct(now, "model"):
        for defense in distinct(where(now, model=model), "defense"):
            sides = [where(run, model=model, defense=defense) for run in (before, now)]
            shared = set(distinct(sides[0], "attack")) & set(distinct(sides[1], "attack"))
            old, new = ([a for a in s if a.header["attack"] in shared] for s in sides)
            seeds = [s for s in distinct(new, "seed") if where(old, seed=s)]
            if seeds:
                pairs = [(worst_verdicts(old, s), worst_verdicts(new, s)) for s in seeds]
                yield _change(
                    model, defense, WORST, worst_rate(old), worst_rate(new), compare(pairs)
                )


def _change(
    model: str, defense: str, attack: str, before: Rate, now: Rate, difference: Difference
) -> Change:
    low, high = difference.interval
    return Change(model, defense, attack, before, now, difference, low, high, math.nan)
