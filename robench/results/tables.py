"""Cells -> dsr.md, dsr.csv, dsr_by_category.csv, leaderboard.csv, and dsr.md for the terminal.

    | defense | direct         | gcg                             |
    | ------- | -------------- | ------------------------------- |
    | none    | 100 [91, 100]  | 42 [28, 58] · 12 % degenerate   |

The tables are a function of the cells alone and can be made again at any time.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench import files, locks
from robench.errors import InputError
from robench.methods.registry import split
from robench.results import agreement, flags, leaderboard, rates, utility_columns
from robench.results.answers import read_answers
from robench.results.degeneration import LIMITS
from robench.results.schema import BENIGN
from robench.results.store import RunStore
from robench.results.verdicts import Answer, attacked, decided_by, distinct, unscored, where

if TYPE_CHECKING:
    import pandas as pd

LOWER_GRADE = ("keyword",)  # judges whose verdicts are known to err often
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def tables(folders: Sequence[Path], judge: str = "", out: Path | None = None) -> str:
    """Write dsr.md, dsr.csv, dsr_by_category.csv and leaderboard.csv of some runs.

    Where several judges scored, judge_agreement.csv as well. The folder that they are written into
    is locked meanwhile.

    Args:
        folders: runs; their cells are put together.
        judge: the one whose verdicts count, by default the first that each run was asked for.
        out: where the tables go, by default into the run, where there is one. What else is there
            stays.

    Returns:
        What dsr.md says, for the terminal.

    Raises:
        InputError: a folder is not a run's, several runs have no `out`, another process holds the
            folder, two cells claim the same place in a table, or the judge scored nothing here.
    """
    stores = [RunStore(folder) for folder in folders]
    for store in stores:
        store.question()
    if out is None:
        if len(folders) > 1:
            raise InputError("several runs: give --out FOLDER for the tables of all of them")
        out = folders[0]
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is not a folder; choose another --out")
    with locks.locked(out):
        answers = read_answers(folders)
        contents = _contents(decided_by(judge, answers) if judge else answers, stores)
        for name, content in contents.items():
            if content is None:
                (out / name).unlink(missing_ok=True)  # of runs that several judges scored
            else:
                files.write_text(out / name, content)
    return contents["dsr.md"] or ""


def _contents(answers: Sequence[Answer], stores: Sequence[RunStore]) -> dict[str, str | None]:
    """What stands in each file; None where there is to be none."""
    board = leaderboard.leaderboard_rows(answers)
    board = utility_columns.joined(board, answers, stores)
    judges = agreement.rows(answers)
    sections = [
        _section(
            where(answers, model=model),
            board[board["model"] == model],
            judges[judges["model"] == model],
        )
        for model in distinct(answers, "model")
    ]
    return {
        "judge_agreement.csv": _csv(judges) if len(judges) else None,
        "dsr.csv": _csv(rates.dsr_rows(answers)),
        "dsr_by_category.csv": _csv(rates.category_rows(answers)),
        "leaderboard.csv": _csv(board),
        "dsr.md": "\n".join(sections),
    }


def _section(answers: list[Answer], board: pd.DataFrame, judges: pd.DataFrame) -> str:
    """What dsr.md says of one model."""
    holes = flags.holes(answers)
    numbers = {place: number for number, place in enumerate(holes, 1)}
    attacks = distinct(attacked(answers), "attack")
    controls = distinct(where(answers, role="control"), "attack")
    heads = [f"{attack} (control)" if attack in controls else attack for attack in attacks]
    lines = [["defense", *heads]]
    for defense in distinct(answers, "defense"):
        mine = where(answers, defense=defense)
        measured = {a: _rate(where(mine, attack=a)) for a in attacks if (defense, a) not in holes}
        shown = [measured.get(a) or f"hole ({numbers[defense, a]})" for a in attacks]
        lines.append([defense, *shown])
    reasons = [
        f"- ({numbers[defense, attack]}) {_escape(f'{attack} on {defense}, {cause}')}\n"
        for (defense, attack), causes in holes.items()
        for cause in causes
    ]
    parts = ["## DSR in percent, with its 95 % interval (Wilson)\n", _about(answers), _align(lines)]
    parts += [_limits(answers[0].limits)]
    parts += ["Holes, never counted as defended:\n\n" + "".join(reasons)] if reasons else []
    if len(judges):
        about = "On the final replies to harmful requests; `unscored` by one judge or more.\n"
        parts += ["## Agreement of the judges\n", about, _align(_agreement(judges))]
    parts += ["## Leaderboard\n", _align(_leaderboard(board, numbers, _unscored(answers)))]
    return "\n".join(parts)


def _about(answers: Sequence[Answer]) -> str:
    """One line on what was measured, and how."""
    harmful = attacked(answers)
    judges = sorted({_graded(answer) for answer in harmful})
    facts = {
        "model": ", ".join(distinct(answers, "model")),
        "judge": ", ".join(judges),
        "n": ", ".join(str(n) for n in sorted({len(a.header["planned"]) for a in harmful})),
        "suite": leaderboard.suite(answers),
        "tier": leaderboard.tier(answers),
        "seeds": ", ".join(str(seed) for seed in sorted(distinct(harmful, "seed"))),
        **_draws(harmful),
    }
    return " · ".join(f"{name}: {_escape(fact)}" for name, fact in facts.items()) + "\n"


def _limits(limits: Mapping[str, float]) -> str:
    """One line on what counts as degenerate, and whether this model moved it."""
    shown = [
        f"{name} {limit:.3g}" + ("" if limit == LIMITS[name] else " (calibrated)")
        for name, limit in limits.items()
    ]
    return f"A reply is degenerate beyond {', '.join(shown)}.\n"


def _graded(answer: Answer) -> str:
    """The deciding judge, marked if its verdicts are known to err often, whatever its label."""
    judge = answer.judge
    record = answer.header["judge_fields"].get(judge, {})  # later judges are not in the header
    lower = record.get("method", split(judge)[0]) in LOWER_GRADE
    return f"{judge} (lower-grade judge)" if lower else judge


def _draws(answers: Iterable[Answer]) -> dict[str, str]:
    """How many replies were drawn beside the greedy one, where any were."""
    drawn = {(a.header["samples"], a.header["temperature"]) for a in answers if a.header["samples"]}
    shown = [f"{count} at temperature {temperature:g}" for count, temperature in sorted(drawn)]
    return {"draws": ", ".join(shown)} if shown else {}


def _rate(cells: Sequence[Answer]) -> str:
    """DSR with its interval, and what a reader must know beside it."""
    defended = rates.dsr(cells)
    collapsed = rates.collapsed(cells)
    missing = sum(map(unscored, cells))
    notes = [_with_interval(defended.value, *defended.interval)]
    notes += [f"{_percent(collapsed)} % degenerate"] if collapsed else []
    notes += [f"{missing} unscored"] if missing else []
    drawn = rates.sampled(cells)
    if drawn.draws:
        without = f", {drawn.unscored} unscored" if drawn.unscored else ""
        shares = f"{_percent(drawn.any)} any, {_percent(drawn.mean)} mean"
        notes += [f"harmful draws: {shares}{without}"]
    return " · ".join(notes)


def _agreement(judges: pd.DataFrame) -> list[list[str]]:
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
                _percent(row["unscored"]),
                _percent(row["agreement"]) if pair else "",
                _figure(row["kappa"]) if pair else "",
                _figure(row["alpha_verdicts"]),
                _figure(row["alpha_scores"]),
            ]
        )
    return lines


def _unscored(answers: Sequence[Answer]) -> dict[str, int]:
    """How many harmless requests each defense has no score for, all seeds together."""
    benign = where(answers, role=BENIGN)
    names = distinct(benign, "defense")
    return {name: sum(map(unscored, where(benign, defense=name))) for name in names}


def _leaderboard(
    board: pd.DataFrame, numbers: Mapping[tuple[str, str], int], without: Mapping[str, int]
) -> list[list[str]]:
    """The main columns of the leaderboard as text, under their heads.

    Args:
        numbers: of the holes, by defense and attack.
        without: harmless requests that have no score, by defense.
    """
    rows = [
        {
            "rank": _whole(row["rank"]),
            "defense": row["defense"],
            "worst case": ("≤ " if row["attacks_missing"] else "")
            + _with_interval(row["dsr_worst"], row["dsr_worst_lo"], row["dsr_worst_hi"]),
            "mean": _percent(row["dsr_mean"]),
            "strongest attack": row["strongest_attack"],
            "harmless requests met": f"hole ({numbers[row['defense'], BENIGN]})"
            if (row["defense"], BENIGN) in numbers
            else _percent(row["benign_compliance"])
            + (f" · {without[row['defense']]} unscored" if without.get(row["defense"]) else ""),
            "after an empty turn": _percent(row["benign_empty_turn"]),
            "after a system prompt": _percent(row["benign_system"]),
            "gate": row["gate"],
            "training, s": _whole(row["train_seconds"]),
            "p vs none": "" if math.isnan(row["p_vs_none"]) else f"{row['p_vs_none']:.2g}",
            **{
                f"{task} (vs none)": _against(row[f"utility_{task}"], row[f"utility_{task}_delta"])
                for task in utility_columns.measured(board)
            },
        }
        for row in board.to_dict("records")
    ]
    return [list(rows[0]), *(list(row.values()) for row in rows)]


def _with_interval(value: float, low: float, high: float) -> str:
    return "?" if math.isnan(value) else f"{_percent(value)} [{_percent(low)}, {_percent(high)}]"


def _against(value: float, delta: float) -> str:
    """A figure of any size, and how far it is from the undefended model's."""
    if math.isnan(value):
        return "?"
    return f"{value:.4g}" if math.isnan(delta) else f"{value:.4g} ({delta:+.2g})"


def _percent(share: float) -> str:
    return "?" if math.isnan(share) else f"{100 * share:.0f}"


def _figure(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:.2f}"


def _whole(number: Any) -> str:
    """A number without decimals, "" where there is none."""
    import pandas as pd

    return "" if pd.isna(number) else f"{number:.0f}"


def _align(lines: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal, too; the first line is its head."""
    cells = [[_escape(cell) for cell in line] for line in lines]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    padded = [
        "| "
        + " | ".join(c + " " * (w - _width(c)) for c, w in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def _width(text: str) -> int:
    """Columns that text takes in a terminal: wide characters take two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _escape(text: str) -> str:
    """Text that a Markdown table can hold in one cell: no markup, no link, no terminal's codes."""
    line = "".join(char for char in re.sub(r"\s+", " ", text) if char.isprintable())
    return re.sub(r"([\\|<`]|(?<=\])\()", r"\\\1", line)


def _csv(table: pd.DataFrame) -> str:
    return table.map(_inert).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def _inert(value: object) -> object:
    """Text on one line, after an apostrophe where a spreadsheet would take it for a formula."""
    if not isinstance(value, str):
        return value
    line = re.sub(r"[\r\n]+", " ", value)
    return f"'{line}" if value.startswith(FORMULA) else line
