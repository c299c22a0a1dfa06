"""Safety against usefulness: which defenses no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Point = tuple[float, float]  # the more the better, in both


def front(points: Mapping[str, Point]) -> list[str]:
    """The names of the points that no other dominates, from left to right.

    A point dominates another that it is at least as good as in both, and better than in one.
    Those with a NaN are left out.
    """
    known = {name: p for name, p in points.items() if not any(map(math.isnan, p))}
    kept = [name for name, p in known.items() if not any(_dominates(q, p) for q in known.values())]
    return sorted(kept, key=lambda name: (known[name][0], -known[name][1]))


def _dominates(some: Sequence[float], others: Sequence[float]) -> bool:
    return some != others and all(a >= b for a, b in zip(some, others, strict=True))
