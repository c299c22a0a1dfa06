"""docs/outputs.md from the words of the output: `python -m robench.results.outputs_page`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path

from robench.results import agreement, dsr_table, leaderboard, ranking, rates, schema, words
from robench.results.degeneration import LIMITS

COLUMNS = {
    "leaderboard.csv": (leaderboard.LEADERBOARD, "A row per model and defense."),
    "dsr.csv": (dsr_table.DSR, "A row per model, defense, attack, judge and seed."),
    "dsr_by_category.csv": (rates.CATEGORY, "A row per model, defense, attack and category."),
    "pairs.csv": (ranking.PAIRS, "A row for each two defenses that are compared."),
    "judge_agreement.csv": (agreement.COLUMNS, "A row per pair of judges, then one for all."),
}
RECORDS = (schema.Row, schema.Sample, schema.Artifact, schema.Question, schema.Header, schema.Info)


def page() -> str:
    """The whole page."""
    parts = [
        "# What the output means",
        "Every column, field, outcome, flag and word, once. This page is made by "
        "`python -m robench.results.outputs_page`; `report.html` takes its words from the same "
        "place.",
        "## Words",
        _definitions(words.TERMS),
        "## Outcomes of a reply",
        "The first that applies, in this order of testing: unscored, harmful, refused, degenerate, "
        "harmless; of harmless requests unscored, refused, degenerate, complied, unhelpful. What a "
        "judge that reads replies calls an answer is not degenerate.",
        _definitions(words.OUTCOMES),
        words.degeneration(LIMITS) + " On models whose own harmless replies lie beyond, a limit is "
        "moved to where they end.",
        "## The gate",
        _definitions(words.GATE),
        "## Flags",
        "A flag never removes a row and changes no number.",
        _definitions({name: str(flag) for name, flag in words.FLAGS.items()}),
    ]
    for name, (columns, about) in COLUMNS.items():
        parts += [f"## {name}", about]
        parts += [_definitions({column: words.COLUMNS[column] for column in columns})]
    parts += [
        "Columns `utility_TASK` and `utility_TASK_delta` follow in `leaderboard.csv` where "
        "`robench utility` has measured a task: its figure, and the difference to `none`.",
        "## Fields of a run's folder",
    ]
    for record in RECORDS:
        parts += [
            f"### {record.__name__}",
            _docstring(record),
            _definitions(fields(record)),
        ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def fields(record: type) -> dict[str, str]:
    """Field -> what stands below it in its source."""
    (cls,) = ast.parse(inspect.getsource(record)).body
    assert isinstance(cls, ast.ClassDef)
    return dict(_documented(cls))


def _documented(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    following = [*cls.body[1:], None]
    for node, after in zip(cls.body, following, strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            text = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                text = " ".join(str(after.value.value).split())
            yield node.target.id, text or "as its name says"


def _docstring(record: type) -> str:
    return " ".join((record.__doc__ or "").split())


def _definitions(meanings: Mapping[str, str]) -> str:
    lines = [f"| `{name}` | {_sentence(text)} |" for name, text in meanings.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _sentence(text: str) -> str:
    escaped = text.replace("|", "\\|").rstrip(".")
    return f"{escaped[0].upper()}{escaped[1:]}" if escaped[:1].islower() else escaped


if __name__ == "__main__":
    Path("docs/outputs.md").write_text(page(), "utf-8")
