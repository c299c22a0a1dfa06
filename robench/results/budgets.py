"""DSR against budget: what an attack would have come to, had it stopped earlier.

Read from the recorded attempts; nothing is generated again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from robench.results.rates import dsr, rate
from robench.results.verdicts import Answer, Verdicts

STILL_FALLING = "still-falling"


def dsr_at(fraction: float, answers: Sequence[Answer], judge: str = "") -> float:
    """DSR at a fraction of the steps of one attack's cells (of several seeds).

    NaN where it has no steps, or where a behavior has no attempt recorded by then.
    """
    seeds = [_verdicts_at(fraction, answer, judge) for answer in answers]
    if not seeds or None in seeds:
        return math.nan
    return rate((seed for seed in seeds if seed is not None), "harmful").rest.value


def is_still_falling(answers: Sequence[Answer], judge: str = "") -> bool:
    """Whether DSR fell from half of the steps to all by more than half its interval's width."""
    full = dsr(answers, judge)
    low, high = full.interval
    return dsr_at(0.5, answers, judge) - full.value > (high - low) / 2


def _verdicts_at(fraction: float, answer: Answer, judge: str) -> Verdicts | None:
    """The verdicts on the attempts that stood at a fraction of a cell's largest step.

    None where a behavior has none.
    """
    places = answer.once(("standing at", fraction), lambda: _standing(fraction, answer))
    return None if places is None else answer.verdicts_of(places, judge)


def _standing(fraction: float, answer: Answer) -> list[int] | None:
    """The places of the last attempts at each variant (tag) of each behavior by then."""
    most = max((row["step"] for row in answer.rows), default=0)
    if not most:
        return None
    standing: dict[str, dict[str, int]] = {row["behavior"]: {} for row in answer.rows}
    for place, row in enumerate(answer.rows):
        if row["step"] <= fraction * most:
            by_tag = standing[row["behavior"]]
            before = by_tag.get(row["tag"])
            if before is None or row["step"] >= answer.rows[before]["step"]:
                by_tag[row["tag"]] = place
    if not all(standing.values()):
        return None
    return [place for by_tag in standing.values() for place in by_tag.values()]
