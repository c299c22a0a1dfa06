"""The rows and numbers of a run in formats of others: Parquet, Every Eval Ever 0.3.0, inspect_ai.

Every Eval Ever (arXiv 2606.14516) wants a record per model; here it is one per defended model. Its
package is not needed: the records are plain JSON, and a test holds them to the published schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from robench import files
from robench.config import suggestion
from robench.errors import InputError
from robench.results.answers import load_rows, read_answers, requests, require_cells
from robench.results.inspect_log import logs
from robench.results.report.views import last_recorded
from robench.results.run_tables import RunTables
from robench.results.store import Cell
from robench.results.verdicts import where

FORMATS = ("parquet", "every-eval-ever", "inspect")
SCHEMA = "0.3.0"


def export(folder: Path, format: str, out: Path | None = None, replies: bool = False) -> list[Path]:
    """Write a run in another format.

    Args:
        format: "parquet": every attempt as a row, with its prompt and reply; "every-eval-ever": a
            JSON record per defended model; "inspect": a log per attack and defended model, for
            `inspect view`.
        out: a file for Parquet, a folder for the others; by default in the run's folder.
        replies: whether "inspect" shows prompts and replies of models that are not make-believe.

    Returns:
        What was written.

    Raises:
        InputError: no such format, no run, or a package that is needed is not installed.
    """
    if format == "parquet":
        return [_parquet(folder, out or folder / "rows.parquet")]
    if format == "every-eval-ever":
        tables = RunTables.of([folder])
        require_cells(tables.answers, folder)
        return _records(records(tables), out or folder / format)
    if format == "inspect":
        answers = read_answers([folder])
        require_cells(answers, folder)
        return _records(logs(answers, requests([folder]), replies), out or folder / format)
    raise InputError(f"no format called {format!r}{suggestion(format, FORMATS)}")


def _records(named: Iterable[tuple[str, dict[str, Any]]], folder: Path) -> list[Path]:
    """Write each as a file of its name."""
    written = []
    for name, record in named:
        path = folder / f"{Cell.slug(name)}.json"
        files.write_json(path, record)
        written.append(path)
    return written


def _parquet(folder: Path, out: Path) -> Path:
    """Every attempt; what is nested is JSON text, so that any reader has it."""
    import io

    rows = load_rows(folder)
    for column in ("artifact", "scores", "samples", "text", "trace"):
        if column in rows:
            rows[column] = [json.dumps(value) for value in rows[column]]
    content = io.BytesIO()
    try:
        rows.to_parquet(content, index=False)
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'robench[parquet]'") from error
    files.write_bytes(out, content.getvalue())
    return out


def records(tables: RunTables) -> Iterator[tuple[str, dict[str, Any]]]:
    """A name and a record of Every Eval Ever for each defended model."""
    for board in tables.board.to_dict("records"):
        name = f"{board['model']}-{board['defense']}"
        answers = where(tables.answers, model=board["model"], defense=board["defense"])
        stamp = f"{last_recorded(answers):.0f}"
        version = str(board["harness_version"])
        details = {
            "deployment_type": "self_deployed", "model_availability": "open_weights",
            "defense": board["defense"], "suite": board["suite"], "tier": board["tier"],
        }  # fmt: skip
        yield (
            name,
            {
                "schema_version": SCHEMA,
                "evaluation_id": f"robench/{name}/{stamp}",
                "retrieved_timestamp": stamp,
                "source_metadata": {
                    "source_type": "evaluation_run",
                    "source_organization_name": "robench user",
                    "evaluator_relationship": "other",
                },
                "eval_library": {"name": "robench", "version": version},
                "model_info": {
                    "name": name,
                    "id": board["model"],
                    "additional_details": details,
                },
                "evaluation_results": [*_worst(board), *_attacks(tables, board)],
            },
        )


def _worst(board: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """The worst case and the share of harmless requests met."""
    yield from _result(
        "worst case over all attacks", board["dsr_worst"], board["dsr_worst_lo"],
        board["dsr_worst_hi"], board["n"],
    )  # fmt: skip
    compliance = board["benign_compliance"]
    yield from _result("harmless requests met", compliance, math.nan, math.nan, 0)


def _attacks(tables: RunTables, board: dict[Any, Any]) -> Iterator[dict[str, Any]]:
    """DSR under each attack, judge and seed."""
    mine = (tables.dsr["model"] == board["model"]) & (tables.dsr["defense"] == board["defense"])
    for row in tables.dsr[mine].to_dict("records"):
        name = f"{row['attack']}, judged by {row['judge']}, seed {row['seed']}"
        yield from _result(name, row["dsr"], row["dsr_lo"], row["dsr_hi"], row["n"])


def _result(name: str, score: float, low: float, high: float, n: int) -> Iterator[dict[str, Any]]:
    """One result; none where there is no number."""
    if math.isnan(score):
        return
    uncertainty: dict[str, Any] = {}
    if not math.isnan(low):
        uncertainty = {
            "confidence_interval": {
                "lower": low, "upper": high, "confidence_level": 0.95, "method": "wilson",
            },
            "num_samples": int(n),
        }  # fmt: skip
    yield {
        "evaluation_name": name,
        "source_data": {"dataset_name": "behaviors of the run", "source_type": "other"},
        "metric_config": {
            "metric_name": "defense success rate" if uncertainty else "share",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {"score": score, **({"uncertainty": uncertainty} if uncertainty else {})},
    }
