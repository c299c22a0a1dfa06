"""Bootstrap over behaviors: intervals of mean scores and of ranks.

The behavior is the unit: a resample draws as many behaviors as there are, with replacement, and
keeps all that was measured of each. The resamples are fixed by RESAMPLES and SEED, so the same
cells give the same numbers. Rates have Wilson's interval instead (`rates.interval`), which is right
at 0 and 1, where no resample differs from the sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

RESAMPLES = 4000
SEED = 20260101
TAILS = (0.025, 0.975)


class Range(NamedTuple):
    """The best and the worst rank."""

    low: int
    high: int


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The percentile interval (95 %) of the mean of some behaviors' values.

    NaN where they are all equal: resampling cannot say anything then.
    """
    import numpy as np

    if len(set(values)) < 2:
        return math.nan, math.nan
    means = np.asarray(values) @ _draws(len(values)) / len(values)
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def rank_ranges(values: Floats, last: Sequence[bool]) -> list[Range]:
    """The 95 % range of each row's rank by its mean, the highest mean first.

    In every resample all rows are ranked again; a tie counts as the better rank for `low` and as
    the worse one for `high`.

    Args:
        values: (rows, behaviors); NaN where a behavior was not scored.
        last: the rows that stand after all others, whatever their mean.
    """
    import numpy as np

    draws = _draws(values.shape[1])
    scored = ~np.isnan(values) @ draws
    means = np.nan_to_num(values) @ draws / np.maximum(scored, 1)
    standing = np.round(means, 9) - 2 * np.asarray(last)[:, None]  # means lie in [0, 1]
    better = (standing[None] > standing[:, None]).sum(1)
    equal = (standing[None] == standing[:, None]).sum(1)
    lows = np.quantile(1 + better, TAILS[0], axis=1, method="inverted_cdf")
    highs = np.quantile(better + equal, TAILS[1], axis=1, method="inverted_cdf")
    return [Range(int(low), int(high)) for low, high in zip(lows, highs, strict=True)]


@lru_cache(8)
def _draws(n: int) -> Floats:
    """(n, RESAMPLES) how often each of n behaviors is in each resample."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).T.astype(float)
