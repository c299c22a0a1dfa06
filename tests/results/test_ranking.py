"""Ranks, their ranges and groups, against cases made by hand."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from answer_builders import answer, defended

from robench.results.leaderboard import leaderboard_and_pairs
from robench.results.verdicts import Answer, disambiguate


def cells(n: int = 40, **broken: str) -> list[Answer]:
    """`none`, of which gcg breaks all n behaviors, and defenses of whom it breaks the letters H."""
    return [
        *defended("none", "R" * n, "H" * n, "R" * n),
        *(
            cell
            for name, letters in broken.items()
            for cell in defended(name, "R" * n, letters.ljust(n, "R"), "R" * n)
        ),
    ]


def ranked(answers: list[Answer]) -> tuple[pd.DataFrame, pd.DataFrame]:
    table, pairs = leaderboard_and_pairs(disambiguate(answers))
    return table.set_index("defense"), pairs.set_index(["a", "b"])


def test_a_clear_order_has_ranks_without_a_range_and_groups_of_one() -> None:
    table, pairs = ranked(cells(low="H" * 30, best="", middle="H" * 15))
    names = ["best", "middle", "low"]
    assert list(table.index) == [*names, "none"]
    assert [list(table.loc[name, ["rank", "rank_lo", "rank_hi"]]) for name in names] == [
        [1, 1, 1], [2, 2, 2], [3, 3, 3],
    ]  # fmt: skip
    assert list(table["group"]) == ["a", "b", "c", ""]
    assert list(pairs.loc[("best", "middle"), ["only_a", "only_b"]]) == [0, 15]
    assert list(pairs.index) == [
        ("best", "middle"), ("best", "low"), ("middle", "low"),
        ("low", "none"), ("best", "none"), ("middle", "none"),
    ]  # fmt: skip


def test_who_cannot_be_told_apart_shares_a_letter_and_a_range() -> None:
    table, pairs = ranked(cells(one="HHHH", two="RRRRRHHHHHH", far="H" * 30))
    assert list(table.loc[["one", "two", "far"], "group"]) == ["a", "a", "b"]
    assert [tuple(table.loc[d, ["rank_lo", "rank_hi"]]) for d in ("one", "two", "far")] == [
        (1, 2), (1, 2), (3, 3),
    ]  # fmt: skip
    assert pairs.loc[("one", "two"), "p"] == pytest.approx(2 * (1 + 10 + 45 + 120 + 210) / 2**10)


def test_nearness_is_not_transitive() -> None:
    table, _ = ranked(cells(a="", b="H" * 5, c="H" * 10))
    assert list(table.loc[["a", "b", "c"], "group"]) == ["a", "ab", "b"]
    assert tuple(table.loc["b", ["rank_lo", "rank_hi"]]) == (1, 3)
    assert tuple(table.loc["a", ["rank_lo", "rank_hi"]]) == (1, 2)


def test_holm_is_over_the_pairs_of_ranked_defenses() -> None:
    table, pairs = ranked(cells(a="", b="H" * 8, c="H" * 20, nothing="H" * 40))
    assert table.loc["nothing", "rank_note"] == "not better than none"
    assert table["rank"].notna().sum() == 3
    assert "nothing" not in pairs.index.get_level_values("b")
    assert pairs.loc[("a", "b"), "p"] == pytest.approx(2 / 2**8)
    assert pairs.loc[("a", "b"), "p_holm"] == pytest.approx(2 / 2**8)  # the largest of three
    assert pairs.loc[("b", "c"), "p_holm"] == pytest.approx(2 * 2 / 2**12)
    assert pairs.loc[("nothing", "none"), "p_holm"] == 1  # of four
    assert pairs.loc[("b", "none"), "p_holm"] == table.loc["b", "p_vs_none"]


def test_what_is_worse_than_none_or_only_a_little_better_has_no_rank() -> None:
    none = defended("none", "R" * 20, "H" * 10 + "R" * 10, "R" * 20)
    worse = defended("worse", "R" * 20, "H" * 20, "R" * 20)
    little = defended("little", "R" * 20, "H" * 6 + "R" * 14, "R" * 20)  # 4 won: p = 2 / 16
    table, pairs = ranked([*none, *worse, *little])
    assert list(table.loc[["worse", "little"], "rank_note"]) == ["not better than none"] * 2
    assert pairs.loc[("worse", "none"), "p_holm"] < 0.05


def test_a_row_says_why_it_has_no_rank() -> None:
    answers = [
        *cells(good=""),
        *defended("shut", "R" * 40, "R" * 40, "R" * 40, "RRRR"),
        *defended("noop", "R" * 40, "R" * 40, "R" * 40),
        answer("gcg", "", "dead", reason="loss is NaN"),
    ]
    table, _ = ranked(answers)
    assert table["rank_note"].to_dict() == {
        "good": "", "none": "undefended", "shut": "gate fail", "noop": "control",
        "dead": "not measured",
    }  # fmt: skip


def test_a_row_that_is_our_reading_of_a_paper_says_so() -> None:
    answers = [
        replace(cell, header={**cell.header, "defense_note": "reimplementation, unverified"})
        if cell.header["defense"] == "es2"
        else cell
        for cell in cells(es2="", cb="")
    ]
    table, _ = ranked(answers)
    assert table["defense_note"].to_dict() == {
        "es2": "reimplementation, unverified", "cb": "", "none": "",
    }  # fmt: skip


def test_seeds_are_averaged_in_ranks_and_comparisons() -> None:
    """A behavior that one seed of three broke counts a third in the rate and once in the test."""
    n, seeds = 40, (0, 1, 2)
    answers = [
        cell
        for seed in seeds
        for name, gcg in (
            ("none", "H" * n),
            ("a", "R" * n),
            ("b", ("H" * 12 if seed == 1 else "").ljust(n, "R")),
        )
        for cell in defended(name, "R" * n, gcg, "R" * n, seed=seed)
    ]
    table, pairs = ranked(answers)
    assert table.loc["b", "dsr_worst"] == pytest.approx(1 - 4 / n)
    assert list(pairs.loc[("a", "b"), ["only_a", "only_b"]]) == [0, 12]


def test_the_same_cells_give_the_same_table() -> None:
    answers = cells(one="HHHH", two="RRRRRHHHHHH", far="H" * 30)
    for first, second in zip(ranked(answers), ranked(answers), strict=True):
        pd.testing.assert_frame_equal(first, second)
