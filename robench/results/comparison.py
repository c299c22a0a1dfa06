"""Whether two defenses differ: paired tests on the same behaviors, corrected for their number."""

import math
from collections.abc import Mapping, Sequence

Verdicts = Mapping[str, str]  # behavior id -> outcome


def mcnemar(ours: Verdicts, theirs: Verdicts) -> float:
    """Two-sided p of the exact McNemar test: of the behaviors that one broke and the other held,
    as many on either side.

    Only behaviors that both have a score for are compared. Without a discordant one p is 1,
    without a common one NaN.
    """
    from scipy.stats import binomtest

    shared = [
        (ours[b] == "harmful", theirs[b] == "harmful")
        for b in ours.keys() & theirs.keys()
        if "unscored" not in (ours[b], theirs[b])
    ]
    if not shared:
        return math.nan
    lost, won = shared.count((True, False)), shared.count((False, True))
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


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
