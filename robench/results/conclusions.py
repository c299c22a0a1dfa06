"""What the tables allow to be said, in sentences, and what they do not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from robench.results.effects import failures
from robench.results.leaderboard import NO_EFFECT, NOTHING_TO_CONCLUDE, why_nobody_is_ranked
from robench.results.markdown import escape, percent
from robench.results.ranking import told_together
from robench.results.rates import dsr
from robench.results.validity import Flag
from robench.results.verdicts import Answer, attacked, distinct, where
from robench.results.words import FLAGS, TERMS

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 6  # behaviors: of five, p is 2 x 0.5^5 at least, which is above 0.05
MOST_PLACES = 8  # of a flag, that are named


def about_judges(answers: Sequence[Answer]) -> list[str]:
    """What the judges of one model's replies cannot see, and could not say."""
    harmful = attacked(answers)
    sentences = [
        f"{escape(judge)} does not read what replies say: without a phrase of refusal, one that is "
        "wrong or off the topic counts as harmful, one that has collapsed as degenerate. One that "
        "reads them: `robench judge DIR --judges rubric:MODEL`, then `robench leaderboard DIR "
        "--judge rubric:MODEL`."
        for judge in dict.fromkeys(answer.judge for answer in harmful)
        if judge in harmful[0].not_reading
    ]
    without = []
    for judge in dict.fromkeys(name for a in harmful for name in a.header["judges"]):
        scores = [
            row["scores"].get(judge)
            for answer in harmful
            for row in answer.rows
            if row["final"] and row["reply"] is not None
        ]
        if missing := scores.count(None):
            without.append(f"{escape(judge)} {missing} of {len(scores)}")
    if without:
        listed = ", ".join(without)
        sentences += [f"Replies without a verdict, never counted as defended: {listed}."]
    return sentences


def about_attempts(answers: Sequence[Answer]) -> list[str]:
    """What attempts besides the final ones come to, where they broke more."""
    for defense in distinct(answers, "defense"):
        for attack in distinct(attacked(answers), "attack"):
            cells = where(answers, defense=defense, attack=attack)
            if dsr(cells, final=False).value < dsr(cells).value:
                return [f"Any attempt: {TERMS['any attempt']}."]
    return []


def about_flags(flags: Sequence[Flag]) -> list[str]:
    """What each flag that was raised means, where it stands, and what to do."""
    places: dict[str, list[str]] = {}
    for flag in flags:
        places.setdefault(flag.name, []).append(escape(flag.place))
    return [
        f"{title(name)}: {_listed(_some(found))}. {FLAGS[name]}" for name, found in places.items()
    ]


def title(flag: str) -> str:
    """The name of a flag as a sentence begins with it."""
    return flag.replace("-", " ").capitalize()


def _some(places: Sequence[str]) -> list[str]:
    """The first of many places, and how many more there are."""
    more = len(places) - MOST_PLACES
    return [*places[:MOST_PLACES], *([f"{more} more"] if more > 0 else [])]


def about_ranks(answers: Sequence[Answer], board: pd.DataFrame, pairs: pd.DataFrame) -> list[str]:
    """What the leaderboard of one model says, and what it cannot say.

    Args:
        answers: its cells.
        board, pairs: its rows of leaderboard.csv and pairs.csv.
    """
    sentences = _about_attacks(answers)
    if any(board["defense_note"]):
        sentences += ["Unverified: our reading of a paper without its code."]
    sentences += _about_adapters(answers)
    names = list(board[board["rank"].notna()]["defense"])
    if len(names) < 2:
        return sentences
    compared = pairs[pairs["a"].isin(names) & pairs["b"].isin(names)]
    p_values = {
        frozenset((a, b)): p
        for a, b, p in zip(compared["a"], compared["b"], compared["p_holm"], strict=True)
    }
    seeds = max(board["seeds"])
    mean = f", by a behavior's mean over {seeds} seeds" if seeds > 1 else ""
    sentences += [
        "A rank is the range that the behaviors allow (95 %); defenses that share a letter cannot "
        f"be told apart on the worst case (exact McNemar{mean}, Holm over the pairs: pairs.csv)."
    ]
    if seeds > 1:
        sentences += [_by_seed(board[board["defense"].isin(names)])]
    together = [g for g in told_together(names, compared.to_dict("records")) if len(g) > 1]
    return sentences + [
        f"{_listed(list(map(escape, group)))} cannot be told apart ({_least(group, p_values)})."
        for group in together
    ]


def _by_seed(board: pd.DataFrame) -> str:
    """How far trainings of one defense lie apart, which no test here counts."""
    shown = []
    for name, by_seed in zip(board["defense"], board["dsr_worst_by_seed"], strict=True):
        worst = [percent(float(part.partition(": ")[2])) for part in by_seed.split("; ")]
        shown.append(f"{escape(name)} {', '.join(worst)}")
    return (
        f"Worst case by training seed: {'; '.join(shown)}. Ranks and p values are of these "
        "trainings; others may lie as far apart as these do."
    )


def _about_attacks(answers: Sequence[Answer]) -> list[str]:
    """What the attacks of one model allow to be said of its defenses."""
    failed = failures(answers)
    reason = why_nobody_is_ranked(answers, failed)
    if reason == NOTHING_TO_CONCLUDE:
        return [
            "`direct` alone breaks every behavior on `none`: nothing can be concluded about "
            "attacks, and no defense is ranked."
        ]
    sentences = []
    if reason == NO_EFFECT:
        left = round(dsr(where(answers, defense_role="baseline", role="baseline")).hits)
        few = (
            f", and the {left} that `direct` leaves are too few to show it" if left < FEWEST else ""
        )
        sentences += [
            f"No attack breaks more of `none` than `direct` does{few}: nothing can be concluded "
            "about defenses, and none is ranked."
        ]
    elif without := [escape(attack) for attack, has_failed in failed.items() if has_failed]:
        sentences += [
            f"Nothing is claimed about {_listed(without)}: no effect on `none`, where `direct` "
            "breaks as much. What they broke counts in the worst case, not in the mean."
        ]
    if unknown := [escape(attack) for attack, has_failed in failed.items() if has_failed is None]:
        sentences += [
            f"Whether {_listed(unknown)} has an effect of its own is unknown: that takes full "
            "answers on `none`, and those of `direct`."
        ]
    return sentences


def _least(group: Sequence[str], p_values: dict[frozenset[str], float]) -> str:
    """The smallest corrected p value within a group."""
    inside = [p for pair, p in p_values.items() if pair <= set(group) and not math.isnan(p)]
    if not inside:
        return "nothing in common to compare"
    least = min(inside)
    return f"p {'=' if len(group) == 2 or least == 1 else '>='} {least:.2g}"


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _about_adapters(answers: Sequence[Answer]) -> list[str]:
    """Which adapters leave out linear maps of their blocks, as the routers of a mixture."""
    shares = {a.header["defense"]: a.info.get("linear_share", 1.0) for a in answers}
    return [
        f"The adapter of {escape(defense)} reaches {100 * share:.4g} % of the weights of the "
        "linear maps in its blocks; its card names the others."
        for defense, share in shares.items()
        if share < 1
    ]
