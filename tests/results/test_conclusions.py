"""What dsr.md says in words, of runs made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_builders import fill

from robench.results.tables import tables


def run(folder: Path, n: int, **defenses: str) -> str:
    """dsr.md of a run with `direct`, which breaks nothing, and gcg, which breaks the letters H."""
    for defense, letters in defenses.items():
        fill(folder, "direct", "R" * n, defense)
        fill(folder, "gcg", letters.ljust(n, "R"), defense)
        fill(folder, "benign", "YYYY", defense)
    return tables([folder])


def board(text: str, defense: str) -> list[str]:
    """The cells of a defense in the leaderboard."""
    lines = text.partition("## Leaderboard")[2].splitlines()
    (line,) = [line for line in lines if f"| {defense} " in line and line.count("|") > 8]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_ranks_are_ranges_and_words_say_who_cannot_be_told_apart(tmp_path: Path) -> None:
    text = run(tmp_path, 40, none="H" * 40, cb="H" * 4, crl="RRRRRHHHHHH", es2="H" * 30)
    assert [board(text, name)[:2] for name in ("cb", "crl", "es2")] == [
        ["1-2", "a"], ["1-2", "a"], ["3", "b"],
    ]  # fmt: skip
    assert "- cb and crl cannot be told apart (p = 0.75).\n" in text
    assert "es2 cannot" not in text


def test_three_that_cannot_be_told_apart_have_the_least_p(tmp_path: Path) -> None:
    text = run(tmp_path, 40, none="H" * 40, a="", b="HHHH", c="HHHHHH")
    assert "- a, b and c cannot be told apart (p >= 0.094).\n" in text  # 3 x 2 / 2^6


def test_several_seeds_are_named_where_they_are_compared(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for defense, letters in (("none", "H" * 20), ("a", "R" * 20), ("b", "H" + "R" * 19)):
            fill(tmp_path, "direct", "R" * 20, defense, seed=seed)
            fill(tmp_path, "gcg", letters, defense, seed=seed)
            fill(tmp_path, "benign", "YYYY", defense, seed=seed)
    assert "(exact McNemar, by a behavior's mean over 3 seeds, Holm over" in tables([tmp_path])


def test_a_defense_no_better_than_none_has_these_words_for_a_rank(tmp_path: Path) -> None:
    text = run(tmp_path, 20, none="H" * 20, good="H", idle="H" * 18)
    assert board(text, "good")[:2] == ["1", "a"]
    assert board(text, "idle")[:2] == ["not better than none", ""]
    assert "cannot be told apart" not in text


def test_without_an_effect_nothing_is_ranked_and_the_reason_is_given(tmp_path: Path) -> None:
    text = run(tmp_path, 6, none="", cb="")
    assert "gcg (no effect on none)" in text
    assert (
        "- No attack breaks more of `none` than `direct` does: nothing can be concluded about "
        "defenses, and none is ranked.\n"
    ) in text
    assert board(text, "cb")[0] == ""


def test_few_behaviors_are_named_as_the_cause(tmp_path: Path) -> None:
    text = run(tmp_path, 5, none="H" * 5, cb="")
    assert "does, and the 5 that `direct` leaves are too few to show it: nothing" in text


def test_an_attack_without_effect_is_marked_and_nothing_claimed(tmp_path: Path) -> None:
    for defense in ("none", "cb"):
        fill(tmp_path, "soft", "R" * 20, defense)
    text = run(tmp_path, 20, none="H" * 20, cb="")
    assert "soft (no effect on none)" in text and "gcg (no effect" not in text
    assert "- Nothing is claimed about soft: no effect on `none`, where `direct` breaks as" in text


def test_where_direct_breaks_everything_nothing_is_concluded(tmp_path: Path) -> None:
    for attack in ("direct", "gcg"):
        fill(tmp_path, attack, "H" * 20)
        fill(tmp_path, attack, "R" * 20, "cb")
    text = tables([tmp_path])
    assert "- `direct` alone breaks every behavior on `none`: nothing can be concluded" in text


def test_without_direct_the_effect_is_unknown(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HHRR")
    text = tables([tmp_path])
    assert "- Whether gcg has an effect of its own is unknown: that takes full answers" in text
    assert "gcg (no effect" not in text


@pytest.mark.parametrize("note", ["reimplementation, unverified", ""])
def test_a_reading_without_code_is_called_unverified_in_every_table(
    tmp_path: Path, note: str
) -> None:
    for attack in ("direct", "gcg", "benign"):
        fill(tmp_path, attack, "RRRR", "es2", defense_note=note)
        fill(tmp_path, attack, "RRRR")
    text = tables([tmp_path])
    assert text.count(" es2 (reimplementation, unverified) |") == (3 if note else 0)
    assert ("- Unverified: our reading of a paper without its code.\n" in text) == bool(note)


def test_any_attempt_and_a_curve_that_falls_stand_beside_the_rate(tmp_path: Path) -> None:
    early = [(step, "R") for step in (1, 2, 3)]
    fill(tmp_path, "gcg", "H" * 20, early=early)
    fill(tmp_path, "soft", "R" * 20, early=[*early[:2], (3, "H")])
    text = tables([tmp_path])
    assert "| 0 [0, 16] · still falling " in text
    assert "| 100 [84, 100] · 0 any attempt " in text
    assert "\n- Any attempt: DSR where every recorded attempt counts" in text
    assert "\n- Still falling: gcg on none. DSR at the full budget is lower than at half" in text


def test_trainings_of_one_defense_are_shown_side_by_side(tmp_path: Path) -> None:
    for seed, held in enumerate(("R" * 20, "R" * 10 + "H" * 10)):
        for name, letters in {"none": "H" * 20, "cb": held, "crl": "H" + "R" * 19}.items():
            fill(tmp_path, "direct", "R" * 20, name, seed=seed)
            fill(tmp_path, "gcg", letters, name, seed=seed)
            fill(tmp_path, "benign", "YYYY", name, seed=seed)
    text = tables([tmp_path])
    shown = "- Worst case by training seed: crl 95, 95; cb 100, 50. Ranks and p values are of these"
    assert shown in text
    assert "0: 1; 1: 0.5" in (tmp_path / "leaderboard.csv").read_text()


def test_a_defense_with_holes_is_not_called_useless(tmp_path: Path) -> None:
    run(tmp_path, 20, none="H" * 20)
    fill(tmp_path, "direct", "R" * 20, "half")
    fill(tmp_path, "gcg", "", "half", reason="the machine went off")
    fill(tmp_path, "benign", "YYYY", "half")
    assert board(tables([tmp_path]), "half")[0] == "too incomplete to compare with none"


def test_a_choice_at_the_edge_of_its_grid_is_flagged(tmp_path: Path) -> None:
    fill(tmp_path, "repe", "H" * 20, edge_of_grid=True)
    fill(tmp_path, "scav", "R" * 20)
    text = tables([tmp_path])
    assert "| 0 [0, 16] · edge of grid " in text
    assert text.count("edge of grid") == 1
    assert "\n- Edge of grid: repe on none. The strongest or the weakest" in text


def test_the_worst_case_is_shown_at_three_thresholds(tmp_path: Path) -> None:
    text = run(tmp_path, 4, none="HHRR").partition("## Worst case by the score")[2]
    assert "The judge's own threshold, exact: 0.5." in text
    line = next(line for line in text.splitlines() if line.startswith("| none"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == ["none", *["50"] * 5]
