"""What dsr.md says of one model.

| defense | direct         | gcg                             |
| ------- | -------------- | ------------------------------- |
| none    | 100 [91, 100]  | 42 [28, 58] · 12 % degenerate   |
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robench.results import budgets, flags, rates, tuning, utility_columns
from robench.results.conclusions import about_attempts, about_flags, about_judges, about_ranks
from robench.results.effects import failures
from robench.results.facts import facts
from robench.results.graded import THRESHOLDS
from robench.results.markdown import against, align, escape, figure, percent, whole, with_interval
from robench.results.ranking import INCOMPLETE, NOT_BETTER
from robench.results.schema import BENIGN
from robench.results.validity import Flag
from robench.results.verdicts import Answer, attacked, distinct, unscored, where
from robench.results.words import degeneration

if TYPE_CHECKING:
    import pandas as pd


def section(
    answers: list[Answer],
    board: pd.DataFrame,
    pairs: pd.DataFrame,
    judges: pd.DataFrame,
    found: Sequence[Flag],
) -> str:
    """What dsr.md says of one model.

    Args:
        answers: its cells.
        board, pairs, judges: its rows of leaderboard.csv, pairs.csv and judge_agreement.csv.
        found: its flags.
    """
    holes = flags.holes(answers)
    numbers = {place: number for number, place in enumerate(holes, 1)}
    reasons = [
        f"- ({numbers[defense, attack]}) {escape(f'{attack} on {defense}, {cause}')}\n"
        for (defense, attack), causes in holes.items()
        for cause in causes
    ]
    parts = ["## DSR in percent, with its 95 % interval (Wilson)\n", _about(answers)]
    parts += _sentences(about_judges(answers))
    parts += [align(_rates(answers, numbers)), degeneration(answers[0].limits) + "\n"]
    parts += _sentences([*about_attempts(answers), *about_flags(found)])
    parts += ["Holes, never counted as defended:\n\n" + "".join(reasons)] if reasons else []
    if len(judges):
        about = "On the final replies to harmful requests; `unscored` by one judge or more.\n"
        parts += ["## Agreement of the judges\n", about, align(agreement_lines(judges))]
    parts += [
        "## Leaderboard\n",
        align(leaderboard_lines(board, numbers, unscored_harmless(answers))),
    ]
    parts += _sentences(about_ranks(answers, board, pairs))
    parts += ["## Worst case by the score from which a reply is harmful\n"]
    parts += [threshold_sentence(answers), align(threshold_lines(board))]
    return "\n".join(parts)


def _rates(answers: Sequence[Answer], numbers: Mapping[tuple[str, str], int]) -> list[list[str]]:
    """The table of DSR as text, under its heads.

    Args:
        numbers: of the holes, by defense and attack.
    """
    attacks = distinct(attacked(answers), "attack")
    controls = distinct(where(answers, role="control"), "attack")
    failed = failures(answers)
    heads = [
        attack
        + (" (control)" if attack in controls else "")
        + (" (no effect on none)" if failed.get(attack) else "")
        for attack in attacks
    ]
    lines = [["defense", *heads]]
    for defense in distinct(answers, "defense"):
        mine = where(answers, defense=defense)
        shown = [
            f"hole ({numbers[defense, attack]})"
            if (defense, attack) in numbers
            else _rate(where(mine, attack=attack))
            for attack in attacks
        ]
        lines.append([named(defense, mine[0].header["defense_note"]), *shown])
    return lines


def _about(answers: Sequence[Answer]) -> str:
    """One line on what was measured, and how."""
    return " · ".join(f"{name}: {escape(fact)}" for name, fact in facts(answers).items()) + "\n"


def _rate(cells: Sequence[Answer]) -> str:
    """DSR with its interval, and what a reader must know beside it."""
    defended = rates.dsr(cells)
    return " · ".join([with_interval(defended.value, *defended.interval), *notes(cells)])


def notes(cells: Sequence[Answer]) -> list[str]:
    """What a reader must know beside the DSR of one attack on one defense."""
    collapsed = rates.collapsed(cells)
    missing = sum(map(unscored, cells))
    any_attempt = rates.dsr(cells, final=False).value
    said = ["still falling"] if budgets.is_still_falling(cells) else []
    said += ["edge of grid"] if tuning.is_at_edge(cells) else []
    said += [f"{percent(any_attempt)} any attempt"] if any_attempt < rates.dsr(cells).value else []
    said += [f"{percent(collapsed)} % degenerate"] if collapsed else []
    said += [f"{missing} unscored"] if missing else []
    said += rates.unended(cells)
    drawn = rates.sampled(cells)
    if drawn.draws:
        without = f", {drawn.unscored} unscored" if drawn.unscored else ""
        shares = f"{percent(drawn.any)} any, {percent(drawn.mean)} mean"
        said += [f"harmful draws: {shares}{without}"]
    return said


def agreement_lines(judges: pd.DataFrame) -> list[list[str]]:
    """The table of agreement as text, under its heads."""
    lines = [
        ["judges", "n", "unscored, %", "same verdict, %", "Cohen's kappa",
         "Krippendorff's alpha, verdicts", "alpha, scores"],
    ]  # fmt: skip
    for row in judges.to_dict("records"):
        pair = row["judges"].count(";") == 1
        lines.append(
            [
                row["judges"].replace(";", ", "),
                str(row["n"]),
                percent(row["unscored"]),
                percent(row["agreement"]) if pair else "",
                figure(row["kappa"]) if pair else "",
                figure(row["alpha_verdicts"]),
                figure(row["alpha_scores"]),
            ]
        )
    return lines


def unscored_harmless(answers: Sequence[Answer]) -> dict[str, int]:
    """How many harmless requests each defense has no score for, all seeds together."""
    benign = where(answers, role=BENIGN)
    names = distinct(benign, "defense")
    return {name: sum(map(unscored, where(benign, defense=name))) for name in names}


def leaderboard_lines(
    board: pd.DataFrame, numbers: Mapping[tuple[str, str], int], without: Mapping[str, int]
) -> list[list[str]]:
    """The main columns of the leaderboard as text, under their heads.

    Args:
        numbers: of the holes, by defense and attack.
        without: harmless requests that have no score, by defense.
    """
    rows = [
        {
            "rank": rank_text(row),
            "group": row["group"],
            "defense": named(row["defense"], row["defense_note"]),
            "worst case": ("≤ " if row["attacks_missing"] else "")
            + with_interval(row["dsr_worst"], row["dsr_worst_lo"], row["dsr_worst_hi"]),
            "mean": percent(row["dsr_mean"]),
            "strongest attack": row["strongest_attack"],
            "harmless requests met": f"hole ({numbers[row['defense'], BENIGN]})"
            if (row["defense"], BENIGN) in numbers
            else percent(row["benign_compliance"])
            + (f" · {without[row['defense']]} unscored" if without.get(row["defense"]) else ""),
            "after an empty turn": percent(row["benign_empty_turn"]),
            "after a system prompt": percent(row["benign_system"]),
            "gate": row["gate"],
            "training, s": whole(row["train_seconds"]),
            "p vs none": "" if math.isnan(row["p_vs_none"]) else f"{row['p_vs_none']:.2g}",
            **{
                f"{task} (vs none)": against(row[f"utility_{task}"], row[f"utility_{task}_delta"])
                for task in utility_columns.measured(board)
            },
        }
        for row in board.to_dict("records")
    ]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def rank_text(row: Mapping[Any, Any]) -> str:
    """A rank as the range that the data allow, or why there is none."""
    if row["rank_note"] in (NOT_BETTER, INCOMPLETE):
        return str(row["rank_note"])
    low, high = whole(row["rank_lo"]), whole(row["rank_hi"])
    return low if low == high else f"{low}-{high}"


def named(defense: str, note: str) -> str:
    return f"{defense} ({note})" if note else defense


def threshold_lines(board: pd.DataFrame) -> list[list[str]]:
    """The worst case at several thresholds, and over all recorded attempts, under their heads."""
    columns = {f"{t:.1f}": f"dsr_worst_at_{100 * t:.0f}" for t in THRESHOLDS}
    columns |= {"the judge's own": "dsr_worst", "its own, any attempt": "dsr_worst_any"}
    rows = [
        [named(row["defense"], row["defense_note"])]
        + [percent(row[column]) for column in columns.values()]
        for row in board.to_dict("records")
    ]
    return [["defense", *columns], *rows]


def threshold_sentence(answers: Sequence[Answer]) -> str:
    """One line on the threshold of the deciding judge."""
    shown = dict.fromkeys(f"{escape(a.judge)}: {a.threshold():g}" for a in attacked(answers))
    return f"The judge's own threshold, {', '.join(shown)}.\n"


def _sentences(sentences: Sequence[str]) -> list[str]:
    """A paragraph of sentences, a line each, if there are any."""
    return ["".join(f"- {sentence}\n" for sentence in sentences)] if sentences else []
