"""Whether two sides differ on the same behaviors: paired tests, corrected for their number.

The unit is the behavior. With several seeds it counts for the side on which more of the seeds broke
it: the exact sign test of its mean over seeds, which with one seed is McNemar's.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from string import ascii_lowercase
from typing import NamedTuple

LEVEL = 0.05  # below, a p value says that two sides differ

Verdicts = Mapping[str, str]  # behavior id -> outcome
Pair = tuple[str, str]


class Difference(NamedTuple):
    """Two sides on the `n` behaviors that both have a score for.

    only_a: behaviors that were broken on the first side alone
    only_b: likewise, on the second
    """

    only_a: int
    only_b: int
    n: int

    @property
    def p(self) -> float:
        """Two-sided p of the exact McNemar test: as many behaviors on either side.

        1 without a discordant behavior, NaN without a common one.
        """
        from scipy.stats import binomtest

        discordant = self.only_a + self.only_b
        if not self.n:
            return math.nan
        return float(binomtest(self.only_a, discordant, 0.5).pvalue) if discordant else 1.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of how much larger the share held is on the second side.

        Bonett and Price (2012), for paired shares: one is added to each count of discordant
        behaviors and two to n, so that it has a width at 0. NaN without a common behavior.
        """
        if not self.n:
            return math.nan, math.nan
        from scipy.special import ndtri

        more, fewer = (self.only_a + 1) / (self.n + 2), (self.only_b + 1) / (self.n + 2)
        middle = more - fewer
        spread = float(ndtri(0.975)) * math.sqrt((more + fewer - middle**2) / (self.n + 2))
        return max(-1.0, middle - spread), min(1.0, middle + spread)


def compare(seeds: Iterable[tuple[Verdicts, Verdicts]]) -> Difference:
    """Count the behaviors on which two sides differ.

    Args:
        seeds: the verdicts of both sides, seed by seed. A behavior that a side has no score for
            is left out of that seed.
    """
    broken_more: dict[str, int] = {}
    for some, others in seeds:
        for behavior in some.keys() & others.keys():
            sides = (some[behavior], others[behavior])
            if "unscored" not in sides:
                difference = (sides[0] == "harmful") - (sides[1] == "harmful")
                broken_more[behavior] = broken_more.get(behavior, 0) + difference
    differences = broken_more.values()
    return Difference(
        sum(d > 0 for d in differences), sum(d < 0 for d in differences), len(differences)
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected by Holm's step-down rule (1979), in the order given.

    The i-th smallest of m becomes max over j <= i of (m - j + 1) p_j, at most 1. NaN stays NaN, and
    counts among the m: a comparison that was planned and could not be made.
    """
    order = sorted((i for i, p in enumerate(values) if not math.isnan(p)), key=values.__getitem__)
    corrected, highest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[i]))
        corrected[i] = highest
    return corrected


def groups(names: Sequence[str], separated: Collection[Pair]) -> list[list[str]]:
    """The largest groups in which no pair is separated: Piepho's compact letter display (2004).

    A name may be in several groups: a may be near b, b near c, and a far from c.

    Args:
        names: in the order of the table.
        separated: pairs that differ, in either order.
    """
    members = [list(names)] if names else []
    for a, b in separated:
        split = [group for group in members if a in group and b in group]
        members = [group for group in members if group not in split]
        for group in split:
            for left_out in (a, b):
                smaller = [name for name in group if name != left_out]
                if not any(set(smaller) <= set(other) for other in members):
                    members.append(smaller)
        members = [g for g in members if not any(set(g) < set(other) for other in members)]
    return sorted(members, key=lambda group: [names.index(name) for name in group])


def letters(names: Sequence[str], members: Sequence[Sequence[str]]) -> dict[str, str]:
    """The letters of each name's groups: "a" of the first group, "ab" of the first two."""
    labels = [
        ascii_lowercase[i % len(ascii_lowercase)] * (1 + i // len(ascii_lowercase))
        for i in range(len(members))
    ]
    return {
        name: "".join(label for label, group in zip(labels, members, strict=True) if name in group)
        for name in names
    }
