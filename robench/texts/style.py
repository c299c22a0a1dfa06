"""Style of requests: whether it alone tells harmful from harmless ones, and how to match it.

A direction or probe fitted on harmful imperatives and harmless questions may read the question mark
instead of the harm. Three features of a request, as the user types it, stand for its style: the
number of words, the final mark and the first word.
"""

import math
import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from robench.config import digest
from robench.types import Behavior

FEATURES = ("length", "final mark", "first word")
ENCLOSING = "\"'()[]\u2018\u2019\u201c\u201d\u00ab\u00bb"  # quotes and brackets, no final marks

# Costs of a pair that differs, in standard deviations of the number of words. Marks come first:
# one mark tells two sides apart as no single length or first word does.
MARK_COST = 10.0
WORD_COST = 1.0
ENOUGH = 140  # of a side: RepE and SCAV read no more

FOLDS, REPEATS, SEED = 5, 5, 0
RARE = 3  # first words that occur less often are one category

# Of published sets, those matched stay below this, and questions against imperatives are near 1.
LIMIT = 0.65
# Fewer than 32 of each side need more: 0.5 + CHANCE sqrt(1/n + 1/m). Of 1120 random splits of mixed
# published sets, into sides of 10 to 150, 0.8 % were above both (permutation test).
CHANCE = 0.6


class Style(NamedTuple):
    """words: how many; mark: "", ".", "?", "!" or "other"; first_word: folded, "" if none."""

    words: int
    mark: str
    first_word: str


def style(behavior: Behavior) -> Style:
    """The style of a request with its context."""
    words = behavior.request.split()
    last = behavior.request.rstrip(string.whitespace + ENCLOSING)[-1:]
    mark = last if last in ".?!" else "" if last.isalnum() else "other"
    return Style(len(words), mark, _folded(words[0]) if words else "")


def matched(harmful: Sequence[Behavior], pool: Sequence[Behavior]) -> list[Behavior]:
    """The harmless references of a pool that are most like the harmful ones in style.

    Each harmful reference is paired with a harmless one of its own, such that the pairs' costs sum
    to the least: the difference in words, in standard deviations, plus MARK_COST if their final
    marks differ, plus WORD_COST if their first words do. Pairs whose marks differ are left out
    unless fewer than ENOUGH remain: beyond that, fewer references are better than telling ones.
    The choice depends on the pool's ids, not on its order.

    Returns:
        Distinct references of the pool in the order of their partners, at most one for each.
    """
    if not harmful or not pool:
        return []
    from scipy.optimize import linear_sum_assignment

    pool = sorted(pool, key=lambda b: digest(b.id))  # of equal ones no topic comes first
    cost, same_mark = _pair_costs([style(b) for b in harmful], [style(b) for b in pool])
    pairs = sorted(zip(*linear_sum_assignment(cost), strict=True), key=lambda p: (cost[p], p))
    kept = [pair for rank, pair in enumerate(pairs) if same_mark[pair] or rank < ENOUGH]
    return [pool[column] for _, column in sorted(kept)]


def style_accuracy(
    harmful: Sequence[Behavior],
    harmless: Sequence[Behavior],
    features: Sequence[str] = FEATURES,
) -> float:
    """How well a classifier that sees only the style tells harmful from harmless references.

    Logistic regression on the standardised number of words and one-hot final marks and first words;
    the mean balanced accuracy of repeated, stratified cross-validation with a fixed seed. 0.5 is
    chance; matched sides may lie below, as a held-out text's partner is on the other side.

    Args:
        features: those of FEATURES that the classifier sees.

    Returns:
        The accuracy, NaN if a side has fewer than two references.
    """
    folds = min(FOLDS, len(harmful), len(harmless))
    if folds < 2:
        return float("nan")
    from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score

    styles = np.array([style(b) for b in (*harmful, *harmless)], dtype=object)
    labels = np.repeat([1, 0], [len(harmful), len(harmless)])
    splits = RepeatedStratifiedKFold(n_splits=folds, n_repeats=REPEATS, random_state=SEED)
    scores = cross_val_score(
        _classifier(features), styles, labels, cv=splits, scoring="balanced_accuracy"
    )
    return float(scores.mean())


def style_warning(
    harmful: Sequence[Behavior], harmless: Sequence[Behavior], limit: float = LIMIT
) -> str:
    """One line if style alone tells harmful from harmless references, else "".

    Args:
        limit: the `style_accuracy` from which it does; a higher one is needed where there are so
            few references that chance may exceed it.
    """
    accuracy = style_accuracy(harmful, harmless)
    if math.isnan(accuracy) or accuracy < max(limit, _chance(len(harmful), len(harmless))):
        return ""
    single = {name: style_accuracy(harmful, harmless, [name]) for name in FEATURES}
    ranked = sorted(FEATURES, key=lambda name: -single[name])
    shares = ", ".join(f"{name} {100 * single[name]:.0f} %" for name in ranked)
    return (
        "harmful and harmless references can be told apart by length, final mark or first word "
        f"alone (accuracy {100 * accuracy:.0f} %; {shares}), most of all by {ranked[0]}: "
        "directions and probes may read style instead of harm; provide harmless requests in the "
        "form of the harmful ones with --reference-harmless FILE"
    )


def _chance(n: int, m: int) -> float:
    """The accuracy that about 1 % of random splits into small sides of n and m exceed."""
    return 0.5 + CHANCE * math.sqrt(1 / n + 1 / m)


def _folded(word: str) -> str:
    return word.strip(ENCLOSING + ".,:;!?").casefold()


def _pair_costs(
    harmful: Sequence[Style], harmless: Sequence[Style]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The cost of each pair and whether its marks are the same, both (harmful, harmless)."""
    words = [np.array([s.words for s in side], dtype=float) for side in (harmful, harmless)]
    spread = float(np.concatenate(words).std()) or 1.0
    same_mark = np.equal.outer(*(np.array([s.mark for s in side]) for side in (harmful, harmless)))
    same_word = np.equal.outer(
        *(np.array([s.first_word for s in side]) for side in (harmful, harmless))
    )
    difference = np.abs(np.subtract.outer(*words)) / spread
    return difference + MARK_COST * ~same_mark + WORD_COST * ~same_word, same_mark


def _classifier(features: Sequence[str]) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    encoders = {
        "length": StandardScaler(),
        "final mark": OneHotEncoder(handle_unknown="ignore"),
        "first word": OneHotEncoder(min_frequency=RARE, handle_unknown="infrequent_if_exist"),
    }
    columns = [(name, encoders[name], [FEATURES.index(name)]) for name in features]
    return make_pipeline(
        ColumnTransformer(columns), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
