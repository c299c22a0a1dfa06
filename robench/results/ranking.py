"""Which defenses have a rank, and how far the data determine it.

A rank is for a defense that passes the gate and whose worst case is better than that of `none`
(exact McNemar, Holm over the defenses, p < 0.05), in a run in which an attack has an effect.

Two ranked defenses can be told apart if their exact McNemar test on the worst case has p < 0.05
after Holm's correction over all pairs of ranked ones. A rank's range covers the 95 % range of a
bootstrap over behaviors and every rank from one below those that are told apart as better to one
above those that are told apart as worse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from robench.results.bootstrap import rank_ranges
from robench.results.comparison import LEVEL, Difference, groups, holm, letters
from robench.results.worst_cases import WorstCases

PAIRS = ("model", "a", "b", "only_a", "only_b", "p", "p_holm")
NOT_BETTER = "not better than none"
INCOMPLETE = "too incomplete to compare with none"

Row = dict[str, Any]


def against_none(rows: Sequence[Row], cases: WorstCases, none: str | None) -> list[Row]:
    """A row of pairs.csv for each defense and `none`; Holm's family are the defenses.

    Args:
        rows: of one model's leaderboard.
        none: what the undefended model is called; None: there is none.
    """
    if none is None:
        return []
    defenses = [row["defense"] for row in rows if row["defense_role"] == "defense"]
    return _compared([(defense, none) for defense in defenses], cases)


def ranked(rows: Sequence[Row], cases: WorstCases) -> tuple[list[Row], list[Row]]:
    """The rows with their ranks, ranked ones first, and the rows of pairs.csv of these.

    Args:
        rows: of one model's leaderboard; those with a `rank_note` are not ranked.
    """
    entered = sorted((row for row in rows if not row["rank_note"]), key=_standing)
    names = [row["defense"] for row in entered]
    pairs = _compared(list(combinations(names, 2)), cases)
    ranges = _ranges(entered, pairs, cases)
    shown = letters(names, told_together(names, pairs))
    for place, row in enumerate(entered, 1):
        before = entered[place - 2] if place > 1 else None
        row["rank"] = before["rank"] if before and _standing(before) == _standing(row) else place
        low, high = ranges[row["defense"]]
        row["rank_lo"], row["rank_hi"] = min(low, row["rank"]), max(high, row["rank"])
        row["group"] = shown[row["defense"]]
    return entered + [row for row in rows if row["rank_note"]], pairs


def why_unranked(row: Mapping[str, Any], against: Mapping[str, Row], attacks: str) -> str:
    """Why a row of the leaderboard has no rank, "" where it has one.

    Args:
        against: the rows of `against_none`, by defense.
        attacks: why nobody is ranked, "" where the attacks allow it.
    """
    if row["defense_role"] != "defense":
        return "undefended" if row["defense_role"] == "baseline" else str(row["defense_role"])
    if math.isnan(row["dsr_worst"]):
        return "not measured"
    if row["gate"] != "pass":
        return f"gate {row['gate']}"
    if attacks:
        return attacks
    if is_better(against[row["defense"]]):
        return ""
    return INCOMPLETE if row["attacks_missing"] else NOT_BETTER


def is_better(pair: Mapping[str, Any]) -> bool:
    """Whether the first side of a row of pairs.csv is better than the second."""
    return _separated(pair) and pair["only_a"] < pair["only_b"]


def told_together(names: Sequence[str], pairs: Sequence[Mapping[Any, Any]]) -> list[list[str]]:
    """The groups of ranked defenses that no pair tells apart."""
    return groups(names, [(pair["a"], pair["b"]) for pair in pairs if _separated(pair)])


def _compared(pairs: Sequence[tuple[str, str]], cases: WorstCases) -> list[Row]:
    """Rows of pairs.csv without their model; the pairs are Holm's family."""
    differences: list[Difference] = [cases.compare(a, b) for a, b in pairs]
    corrected = holm([difference.p for difference in differences])
    return [
        {"a": a, "b": b, "only_a": d.only_a, "only_b": d.only_b, "p": d.p, "p_holm": p_holm}
        for (a, b), d, p_holm in zip(pairs, differences, corrected, strict=True)
    ]


def _ranges(
    entered: Sequence[Row], pairs: Sequence[Row], cases: WorstCases
) -> dict[str, tuple[int, int]]:
    """The range of each ranked defense's rank."""
    if not entered:
        return {}
    names = [row["defense"] for row in entered]
    better, worse = dict.fromkeys(names, 0), dict.fromkeys(names, 0)  # defenses told apart as such
    for pair in filter(_separated, pairs):
        winner, loser = ("a", "b") if is_better(pair) else ("b", "a")
        better[pair[loser]] += 1
        worse[pair[winner]] += 1
    last = [bool(row["attacks_missing"]) for row in entered]
    drawn = dict(zip(names, rank_ranges(cases.held(names), last), strict=True))
    return {
        name: (
            min(drawn[name].low, 1 + better[name]),
            max(drawn[name].high, len(names) - worse[name]),
        )
        for name in names
    }


def _separated(pair: Mapping[Any, Any]) -> bool:
    return bool(pair["p_holm"] < LEVEL)  # NaN is not


def _standing(row: Mapping[str, Any]) -> tuple[bool, float, float]:
    """What rows are ranked by, the best first: complete ones, then the worst case, the mean."""
    mean = -math.inf if math.isnan(row["dsr_mean"]) else row["dsr_mean"]
    return bool(row["attacks_missing"]), -round(row["dsr_worst"], 9), -round(mean, 9)
