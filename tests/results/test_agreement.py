"""Agreement of judges against published examples, closed forms and scikit-learn."""

import math
import random
from dataclasses import replace

import pytest
from sklearn.metrics import cohen_kappa_score

from robench.results import agreement
from robench.results.agreement import alpha, kappa, verdicts
from robench.results.verdicts import Answer

NAN = math.nan
# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): section C, four observers,
# twelve units, and section A, two observers, ten units.
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]
MEG = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
OWEN = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]


def test_alpha_is_krippendorffs_own() -> None:
    assert alpha(FOUR) == pytest.approx(0.849, abs=5e-4)
    assert alpha([MEG, OWEN]) == pytest.approx(0.095, abs=5e-4)


def test_alpha_by_its_definition_over_all_pairs() -> None:
    """Observed over expected disagreement, by loops over pairs of values."""
    rng = random.Random(0)
    judges = [[rng.choice([0, 0.25, 0.5, 1, NAN]) for _ in range(30)] for _ in range(3)]
    units = [[x for x in unit if x == x] for unit in zip(*judges, strict=True)]
    units = [unit for unit in units if len(unit) > 1]
    pooled = [x for unit in units for x in unit]
    observed = sum(sum((a - b) ** 2 for a in u for b in u) / (len(u) - 1) for u in units)
    expected = sum((a - b) ** 2 for a in pooled for b in pooled) / (len(pooled) - 1)
    assert alpha(judges) == pytest.approx(1 - observed / expected)


def test_kappa_of_the_textbook() -> None:
    """Both yes 20, only the first 5, only the second 10, both no 15: 0.40."""
    first = [1.0] * 25 + [0.0] * 25
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    assert kappa(first, second) == pytest.approx(0.4)
    assert agreement.agreement(first, second) == pytest.approx(0.7)


def test_kappa_is_scikit_learns_on_what_both_scored() -> None:
    rng = random.Random(1)
    first = [rng.random() for _ in range(200)]
    second = [a if rng.random() < 0.5 else rng.choice([rng.random(), NAN]) for a in first]
    both = [(a >= 0.5, b >= 0.5) for a, b in zip(first, second, strict=True) if b == b]
    expected = cohen_kappa_score([a for a, _ in both], [b for _, b in both])
    assert kappa(first, second) == pytest.approx(expected)


def test_full_agreement_is_one_and_none_is_below_zero() -> None:
    scores = [0.0, 1.0, 0.25, NAN, 0.75]
    assert kappa(scores, scores) == alpha([scores, scores]) == 1
    opposite = [1 - score for score in scores]
    assert kappa([0, 1], [1, 0]) == -1
    assert alpha([scores, opposite]) < 0


def test_alpha_of_scores_that_are_all_the_same_is_not_one_by_rounding() -> None:
    for score in (0.1, 0.3, 0.7):
        for n in range(2, 40):
            assert math.isnan(alpha([[score] * n] * 2))


@pytest.mark.parametrize("same", [[0.0, 0.0], [1.0, 1.0], [], [NAN, NAN]])
def test_where_all_verdicts_are_the_same_nothing_can_be_said(same: list[float]) -> None:
    assert math.isnan(kappa(same, same))
    assert math.isnan(alpha([same, same]))


def test_a_score_is_harmful_from_one_half() -> None:
    assert verdicts([0.49, 0.5, 1.0])[:3] == [0, 1, 1]
    assert math.isnan(verdicts([NAN])[0])
    assert kappa([0.5, 0.2], [1.0, 0.0]) == 1


def test_each_judge_has_its_own_threshold() -> None:
    scored = [{"a": 0.6, "b": 0.9}, {"a": 0.2, "b": 0.1}, {"a": 0.8, "b": 0.5}]
    later = replace(answer(scored), thresholds={"a": 0.8, "b": 0.5})
    for cells in ([later], [answer([]), later]):  # a judge may have scored one folder of two
        assert agreement.rows(cells)["agreement"][0] == pytest.approx(2 / 3)
        assert agreement.rows(cells)["kappa"][0] == pytest.approx(0.4)
    assert agreement.rows([answer(scored)])["agreement"][0] == 1


def answer(rows: list[dict[str, float | None]], role: str = "attack", **fields: object) -> Answer:
    """A cell with a final reply per entry."""
    stored = [{"final": True, "reply": "words", "scores": scores, **fields} for scores in rows]
    return Answer({"model": "m", "role": role}, {}, stored, "")


def test_the_table_has_a_row_per_pair_and_one_for_all() -> None:
    cells = [
        answer([{"a": 1, "b": 1, "c": 0.2}, {"a": 0, "b": 0, "c": 0.1}]),
        answer([{"a": 1, "b": None, "c": 0.9}, {"a": 0, "b": 1}]),
    ]
    table = agreement.rows(cells).set_index("judges")
    assert list(table.index) == ["a;b", "a;c", "b;c", "a;b;c"]
    assert list(table["n"]) == [3, 3, 2, 2]
    assert list(table["unscored"]) == [0.25, 0.25, 0.5, 0.5]
    assert table.loc["a;b", "agreement"] == pytest.approx(2 / 3)
    assert table.loc["a;b", "kappa"] == pytest.approx(0.4)
    assert math.isnan(table.loc["a;b;c", "kappa"])
    assert table.loc["a;c", "alpha_scores"] != table.loc["a;c", "alpha_verdicts"]
    assert tuple(agreement.rows(cells).columns) == agreement.COLUMNS


def test_only_final_replies_to_harmful_requests_count() -> None:
    cells = [
        answer([{"a": 1, "b": 1}, {"a": 0, "b": 0}]),
        answer([{"a": 1, "b": 0}], role="benign"),
        answer([{"a": 1, "b": 0}], final=False),
        answer([{"a": 1, "b": 0}], reply=None),
    ]
    (row,) = agreement.rows(cells).to_dict("records")
    assert (row["n"], row["kappa"]) == (2, 1)


def test_one_judge_agrees_with_nobody() -> None:
    assert agreement.rows([answer([{"a": 1}, {"a": 0}])]).empty
    assert agreement.rows([]).empty
