"""What the page's template shows of one model: plain values, as text where a reader sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from robench.results import judge_rankings, run_comparison, survival, weaknesses
from robench.results.effects import failures
from robench.results.facts import facts
from robench.results.flags import holes
from robench.results.markdown import figure, percent, with_interval
from robench.results.plots.budget import LABELS, searching
from robench.results.plots.pareto import on_front, usefulness
from robench.results.rates import dsr
from robench.results.run_tables import RunTables
from robench.results.schema import BENIGN
from robench.results.section import leaderboard_lines, named, notes, unscored_harmless
from robench.results.verdicts import (
    ACCESS,
    IN_WORST_CASE,
    Answer,
    attacked,
    distinct,
    where,
)
from robench.results.words import FLAGS
from robench.results.worst_cases import worst_rate

SHOWN_HASH = 12  # characters of a hash
MOST_BROKEN = 40  # behaviors of a defense that are listed as broken

View = dict[str, Any]
Lines = list[list[str]]


def head(tables: RunTables) -> View:
    """The question in one sentence, and the facts under it."""
    answers = tables.answers
    harmful = attacked(answers)
    defenses = where(answers, defense_role="defense")
    counts = {
        "defense": len(distinct(defenses, "defense")),
        "attack": len(distinct(where(harmful, role="attack"), "attack")),
        "harmful request": max((len(a.header["planned"]) for a in harmful), default=0),
    }
    asked = {thing: f"{n} {thing}{'' if n == 1 else 's'}" for thing, n in counts.items()}
    about = facts(answers)
    question = (
        f"How well do {asked['defense']} of {about['model']} hold against {asked['attack']} on "
        f"{asked['harmful request']}?"
    )
    return {
        "question": question,
        "facts": {**about, **_origin(answers)},
        "hashes": _hashes(answers),
    }


def _origin(answers: Sequence[Answer]) -> dict[str, str]:
    """When, with what and on what the cells were answered."""
    infos = [answer.info for answer in answers]
    versions = {
        f"{name} {version}" for info in infos for name, version in info.get("versions", {}).items()
    }
    hardware = {
        ", ".join(
            part
            for part in (
                str(info.get("device", "")),
                f"{info['threads']} threads" if info.get("threads") else "",
                str(answer.header.get("dtype", "")),
            )
            if part
        )
        for answer, info in zip(answers, infos, strict=True)
    }
    commits = {str(info["commit"]) for info in infos if info.get("commit")}
    written = last_recorded(answers)
    date = f"{datetime.fromtimestamp(written, UTC):%Y-%m-%d %H:%M} UTC" if written else ""
    shown = {
        "last recorded": date,
        "commit": ", ".join(sorted(commits)),
        "hardware": "; ".join(sorted(hardware)),
        "versions": ", ".join(sorted(versions)),
    }
    return {name: value for name, value in shown.items() if value}


def last_recorded(answers: Sequence[Answer]) -> float:
    """When the last of some cells' rows was written, in seconds since 1970; 0 without any."""
    rows = (answer.folder / "rows.jsonl" for answer in answers if answer.folder)
    return max((path.stat().st_mtime for path in rows if path.is_file()), default=0.0)


def _hashes(answers: Sequence[Answer]) -> dict[str, str]:
    """The hashes of what all cells share."""
    header: Mapping[str, Any] = answers[0].header
    names = ("weights", "template", "behaviors", "benign", "reference", "train")
    return {name: str(header[name])[:SHOWN_HASH] for name in names if header.get(name)}


def board(tables: RunTables) -> View:
    """The leaderboard as dsr.md has it, with its numbers for the bars."""
    answers = list(tables.answers)
    numbers = {place: number for number, place in enumerate(holes(answers), 1)}
    lines = leaderboard_lines(tables.board, numbers, unscored_harmless(answers))
    bars = [
        None if math.isnan(row["dsr_worst"]) else
        [round(100 * row[f"dsr_worst{end}"], 2) for end in ("", "_lo", "_hi")]
        for row in tables.board.to_dict("records")
    ]  # fmt: skip
    return {"lines": lines, "bars": bars}


def matrix(tables: RunTables, cells: dict[str, list[Answer]]) -> View:
    """DSR of every attack on every defense, attacks grouped by access.

    Args:
        cells: filled with the cells of each place of the matrix that a click opens, by its id.
    """
    answers = list(tables.answers)
    gaps, failed = holes(answers), failures(answers)
    harmful = attacked(answers)
    groups: dict[str, list[str]] = {}
    for attack in distinct(harmful, "attack"):
        access = max((a.access for a in where(harmful, attack=attack)), key=_weight)
        groups.setdefault(access or "not run", []).append(attack)
    ordered = {a: groups[a] for a in (*ACCESS, "not run") if a in groups}
    controls = distinct(where(answers, role="control"), "attack")
    marks = {
        attack: "control" if attack in controls else "no effect on none"
        for attack in distinct(harmful, "attack")
        if attack in controls or failed.get(attack)
    }
    rows = []
    for defense in distinct(answers, "defense"):
        mine = where(answers, defense=defense)
        row = [
            _cell(where(mine, attack=attack), gaps.get((defense, attack), ()), cells)
            for attacks in ordered.values()
            for attack in attacks
        ]
        rows.append({"defense": named(defense, mine[0].header["defense_note"]), "cells": row})
    reasons = [
        f"{'harmless requests' if attack == BENIGN else attack} on {defense}, {cause}"
        for (defense, attack), causes in gaps.items()
        for cause in causes
    ]
    return {"groups": ordered, "marks": marks, "rows": rows, "holes": reasons}


def _weight(access: str) -> int:
    return ACCESS.index(access) if access in ACCESS else -1


def _cell(cells: list[Answer], causes: Sequence[str], opened: dict[str, list[Answer]]) -> View:
    """One place of the matrix."""
    if not any(answer.rows for answer in cells):
        return {"text": "hole", "notes": list(causes), "heat": None, "id": ""}
    rate = dsr(cells)
    name = f"cell-{len(opened)}"
    opened[name] = cells
    low, high = rate.interval
    return {
        "text": percent(rate.value),
        "interval": "" if math.isnan(low) else f"[{percent(low)}, {percent(high)}]",
        "notes": [*("hole: " + cause for cause in causes), *notes(cells)],
        "heat": None if causes or math.isnan(rate.value) else round(10 * rate.value),
        "id": name,
    }


def flags(tables: RunTables) -> list[View]:
    """Each flag that was raised, once: what it means, what to do, and where it stands."""
    places: dict[str, list[str]] = {}
    for flag in tables.flags[tables.models[0]]:
        places.setdefault(flag.name, []).append(flag.place)
    return [
        {"name": name, "meaning": FLAGS[name].meaning, "action": FLAGS[name].action, "places": on}
        for name, on in places.items()
    ]


def worst(tables: RunTables) -> list[View]:
    """Each defense's weak places: behaviors, categories, and the attacks that carry its case."""
    shown = []
    for defense in distinct(tables.answers, "defense"):
        mine = where(tables.answers, defense=defense)
        broken = weaknesses.broken(mine)
        carried = weaknesses.left_out(mine)
        shown.append(
            {
                "defense": defense,
                "broken": _broken_in_words(mine, broken),
                "behaviors": [
                    [b.behavior, b.category, ", ".join(_times(b, a) for a in b.attacks)]
                    for b in broken[:MOST_BROKEN]
                ],
                "more": max(0, len(broken) - MOST_BROKEN),
                "attacks": [
                    [
                        one.attack,
                        with_interval(one.worst.value, *one.worst.interval),
                        f"+{100 * one.gain:.1f}" if one.gain > 0 else "0",
                        f"{one.alone:.3g}",
                    ]
                    for one in carried
                    if not math.isnan(one.worst.value)
                ],
                "categories": [
                    [kind or "(none)", str(rate.n), with_interval(rate.value, *rate.interval)]
                    for kind, rate in weaknesses.worst_categories(mine).items()
                ],
            }
        )
    return shown


def _broken_in_words(mine: Sequence[Answer], broken: Sequence[weaknesses.Broken]) -> str:
    """How many behaviors of a defense broke, as its worst case counts them."""
    case = worst_rate([a for a in mine if a.header["role"] in IN_WORST_CASE]).rest
    behaviors = f"{case.hits:.4g} of {case.n} behaviors broken"
    seeds = len(distinct(mine, "seed"))
    if seeds == 1:
        return behaviors
    return f"{behaviors}, a mean over {seeds} seeds; {len(broken)} broke with one or more of them"


def _times(broken: weaknesses.Broken, attack: str) -> str:
    if broken.seeds == 1:
        return attack
    return f"{attack} ({broken.attacks[attack]} of {broken.seeds} seeds)"


def budgets(tables: RunTables) -> Lines:
    """The median and the area of each curve of success against budget."""
    lines = [["attack", "defense", "n", "broken in all, %"]]
    lines[0] += [f"median, {label}" for label in LABELS.values()]
    lines[0] += ["area over the steps, %"]
    for attack in searching(tables):
        of_attack = where(tables.answers, attack=attack)
        most = max(row["step"] for answer in of_attack for row in answer.rows)
        for defense in distinct(of_attack, "defense"):
            cells = where(of_attack, defense=defense)
            curves = {by: survival.curve(cells, by) for by in survival.BUDGETS}
            steps = curves["step"]
            medians = [
                "not reached" if math.isnan(c.median) else f"{c.median:.3g}"
                for c in curves.values()
            ]
            lines.append(
                [attack, defense, str(steps.n), percent(steps.shares[-1]), *medians,
                 percent(steps.area(most))]
            )  # fmt: skip
    return lines


def usefulness_lines(tables: RunTables) -> Lines:
    """Each defense's worst case beside what it costs, and whether it is on the Pareto front."""
    columns = usefulness(tables)
    fronts = {column: on_front(tables, column) for column in columns}
    lines = [["defense", "worst case"]]
    for label in columns.values():
        lines[0] += [label, "on the front"]
    for row in tables.board.to_dict("records"):
        line = [row["defense"],
                with_interval(row["dsr_worst"], row["dsr_worst_lo"],
                              row["dsr_worst_hi"])]  # fmt: skip
        for column in columns:
            value = row[column]
            as_share = column.startswith("benign")
            line += [
                percent(value) if as_share else "?" if math.isnan(value) else f"{value:.4g}",
                "yes" if row["defense"] in fronts[column] else "no",
            ]
        lines.append(line)
    return lines


def judges(tables: RunTables) -> View | None:
    """How each judge ranks, and how far they agree; None where one judge scored."""
    if not len(tables.judges):
        return None
    by_judge = judge_rankings.rankings(tables.answers)
    first = by_judge[0]
    defenses = [["defense", *(r.judge for r in by_judge)]]
    defenses += [[d, *(_placed(r.defenses, d) for r in by_judge)] for d in first.defenses]
    attacks = [["attack", *(r.judge for r in by_judge)]]
    attacks += [[a, *(_placed(r.attacks, a) for r in by_judge)] for a in first.attacks]
    taus = [["judges", "tau, defenses", "tau, attacks"]]
    taus += [
        [f"{tau.a}, {tau.b}", figure(tau.defenses), figure(tau.attacks)]
        for tau in judge_rankings.taus(by_judge)
    ]
    return {"defenses": defenses, "attacks": attacks, "taus": taus}


def _placed(values: Mapping[str, float], name: str) -> str:
    """A value with its place among the others, the highest first."""
    value = values.get(name, math.nan)
    if math.isnan(value):
        return "?"
    place = 1 + sum(other > value for other in values.values())
    return f"{percent(value)} ({place})"


def compared(before: RunTables, now: RunTables) -> View:
    """What changed from one run to another."""
    lines = [["model", "defense", "attack", "before", "now", "difference, 95 % interval", "p",
              "n", "verdict"]]  # fmt: skip
    for change in run_comparison.changes(before.answers, now.answers):
        low, high = (f"{100 * end:+.0f}" for end in (change.low, change.high))
        lines.append(
            [
                change.model,
                change.defense,
                change.attack,
                percent(change.before.value),
                percent(change.now.value),
                f"{100 * (change.now.value - change.before.value):+.0f} [{low}, {high}]",
                "" if math.isnan(change.p_holm) else f"{change.p_holm:.2g}",
                str(change.difference.n),
                change.verdict,
            ]
        )
    return {
        "folders": [str(store.folder) for store in before.stores],
        "lines": lines,
        "missing": run_comparison.missing(before.answers, now.answers),
    }
