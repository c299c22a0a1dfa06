"""How far judges agree on the same replies: pure functions of their scores.

NaN is a score that is missing. Cohen's kappa (1960) and the share of agreement compare verdicts,
scores from a judge's threshold being harmful; Krippendorff's alpha ("Content Analysis", 2004, ch.
11) takes any number of judges and leaves out what is missing. Both are 1 for full agreement, 0 for
what chance would bring, and NaN where all verdicts are the same, so that chance explains
everything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from robench.results.verdicts import attacked, distinct, where
from robench.types import HARMFUL

if TYPE_CHECKING:
    import pandas as pd

    from robench.results.verdicts import Answer

COLUMNS = (
    "model", "judges", "n", "unscored", "agreement", "kappa", "alpha_verdicts", "alpha_scores",
)  # fmt: skip

Scores = Sequence[float]  # of one judge, a reply each


def rows(answers: Iterable[Answer]) -> pd.DataFrame:
    """The table judge_agreement.csv: a row per model and pair of judges, then one for all of them.

    The unit is the final reply to a harmful request. `n` counts the replies that every judge of
    the row scored, `unscored` is the share of the others. Empty where one judge scored.
    """
    import pandas as pd

    answers = attacked(answers)
    table = [
        {"model": model, **row}
        for model in distinct(answers, "model")
        for row in _of(where(answers, model=model))
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))


def scores(answers: Iterable[Answer]) -> dict[str, list[float]]:
    """The scores of each judge on the final replies, all in the same order."""
    replies = [
        row["scores"]
        for answer in answers
        for row in answer.rows
        if row["final"] and row["reply"] is not None
    ]
    judges = dict.fromkeys(judge for by_judge in replies for judge in by_judge)
    return {judge: [_score(by_judge.get(judge)) for by_judge in replies] for judge in judges}


def kappa(some: Scores, others: Scores) -> float:
    """Cohen's kappa of two judges' verdicts, on the replies that both scored."""
    pairs = [(a >= HARMFUL, b >= HARMFUL) for a, b in _both(some, others)]
    if len({verdict for pair in pairs for verdict in pair}) < 2:
        return math.nan  # scikit-learn would warn and say the same
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score([a for a, _ in pairs], [b for _, b in pairs]))


def agreement(some: Scores, others: Scores) -> float:
    """The share of replies with the same verdict, of those that both judges scored."""
    same = [(a >= HARMFUL) == (b >= HARMFUL) for a, b in _both(some, others)]
    return sum(same) / len(same) if same else math.nan


def alpha(judges: Sequence[Scores]) -> float:
    """Krippendorff's alpha with the interval metric, (a - b)^2.

    On verdicts, 0 or 1, this metric is the nominal one: alpha is then the nominal alpha.
    """
    replies = zip(*judges, strict=True)
    given = [[score for score in unit if not math.isnan(score)] for unit in replies]
    units = [unit for unit in given if len(unit) > 1]
    pooled = [score for unit in units for score in unit]
    if len(set(pooled)) < 2:
        return math.nan
    observed = sum(_spread(unit) / (len(unit) - 1) for unit in units) / len(pooled)
    expected = _spread(pooled) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / expected


def verdicts(judge: Scores, threshold: float = HARMFUL) -> list[float]:
    """1 for a harmful score, 0 for another, NaN for a missing one."""
    return [score if math.isnan(score) else float(score >= threshold) for score in judge]


def _of(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """The rows of one model."""
    scored = scores(answers)
    thresholds = {judge: t for answer in answers for judge, t in answer.thresholds.items()}
    decided = {
        judge: verdicts(given, thresholds.get(judge, HARMFUL)) for judge, given in scored.items()
    }
    groups: list[tuple[str, ...]] = list(combinations(scored, 2))
    if len(scored) > 2:
        groups.append(tuple(scored))
    table = []
    for names in groups:
        judges = [scored[name] for name in names]
        harmful = [decided[name] for name in names]
        n = sum(not any(map(math.isnan, unit)) for unit in zip(*judges, strict=True))
        pair = len(names) == 2
        table.append(
            {
                "judges": ";".join(names),
                "n": n,
                "unscored": 1 - n / len(judges[0]),
                "agreement": agreement(*harmful) if pair else math.nan,
                "kappa": kappa(*harmful) if pair else math.nan,
                "alpha_verdicts": alpha(harmful),
                "alpha_scores": alpha(judges),
            }
        )
    return table


def _both(some: Scores, others: Scores) -> list[tuple[float, float]]:
    pairs = zip(some, others, strict=True)
    return [(a, b) for a, b in pairs if not (math.isnan(a) or math.isnan(b))]


def _spread(values: Scores) -> float:
    """The sum of (a - b)^2 over all ordered pairs, about the mean, which keeps it exact."""
    mean = math.fsum(values) / len(values)
    return 2 * len(values) * math.fsum((value - mean) ** 2 for value in values)


def _score(stored: float | None) -> float:
    return math.nan if stored is None else stored
