"""The worst cases of one model's defenses, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from robench.results.comparison import Difference, compare
from robench.results.rates import Rate, rate
from robench.results.verdicts import (
    IN_WORST_CASE,
    Answer,
    Verdicts,
    distinct,
    where,
    worst_case,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class WorstCases:
    """What each attack did to each defense of one model, and what is missing.

    cells:   defense -> (attack, seed) -> verdicts
    missing: defense -> the attacks that it has not met in full
    """

    cells: Mapping[str, Mapping[tuple[str, int], Verdicts]]
    missing: Mapping[str, set[str]]

    @classmethod
    def of(cls, answers: Sequence[Answer], missing: Mapping[str, set[str]]) -> WorstCases:
        """Of the cells of one model."""
        cells: dict[str, dict[tuple[str, int], Verdicts]] = {}
        for answer in answers:
            header = answer.header
            if header["role"] in IN_WORST_CASE:
                of_defense = cells.setdefault(header["defense"], {})
                of_defense[header["attack"], header["seed"]] = answer.verdicts()
        return cls(cells, missing)

    def compare(self, a: str, b: str) -> Difference:
        """Two defenses, over the attacks and seeds that both have met in full."""
        both = self.cells.get(a, {}).keys() & self.cells.get(b, {}).keys()
        open_ = self.missing.get(a, set()) | self.missing.get(b, set())
        places = [(attack, seed) for attack, seed in both if attack not in open_]
        seeds = sorted({seed for _, seed in places})
        return compare(
            (self._worst(a, places, seed), self._worst(b, places, seed)) for seed in seeds
        )

    def held(self, defenses: Sequence[str]) -> NDArray[np.float64]:
        """(defenses, behaviors) the share of the seeds with which a behavior held.

        Over all attacks that a defense has met; NaN where nothing was scored.
        """
        import numpy as np

        behaviors = sorted({b for d in defenses for cell in self.cells[d].values() for b in cell})
        values = np.full((len(defenses), len(behaviors)), math.nan)
        for i, defense in enumerate(defenses):
            cells = self.cells[defense]
            seeds = {seed for _, seed in cells}
            worst = [self._worst(defense, list(cells), seed) for seed in sorted(seeds)]
            for j, behavior in enumerate(behaviors):
                results = [seed.get(behavior, "unscored") for seed in worst]
                scored = [result != "harmful" for result in results if result != "unscored"]
                if scored:
                    values[i, j] = sum(scored) / len(scored)
        return values

    def _worst(self, defense: str, places: Sequence[tuple[str, int]], seed: int) -> Verdicts:
        """A defense's worst case with one seed, over the attacks of some places."""
        return worst_case(self.cells[defense][place] for place in places if place[1] == seed)


def worst_rate(
    answers: Sequence[Answer],
    final: bool = True,
    threshold: float | None = None,
    judge: str = "",
) -> Rate:
    """The behaviors that no attack broke, of one defense's cells: of each seed, then their mean.

    Args:
        final: whether only final attempts count, or any that was recorded.
        threshold: the score from which a reply is harmful; by default the judge's own.
        judge: by default the one that decides.
    """
    seeds = distinct(answers, "seed")
    worst = [
        worst_case(a.verdicts(judge, final, threshold=threshold) for a in where(answers, seed=s))
        for s in seeds
    ]
    return rate(worst, "harmful").rest


def worst_verdicts(answers: Sequence[Answer], seed: int, judge: str = "") -> Verdicts:
    """The pointwise worst case of one defense's cells with one seed.

    Args:
        judge: by default the one that decides.
    """
    return worst_case(answer.verdicts(judge) for answer in where(answers, seed=seed))
