"""Exports: every row in Parquet, and records that the published schema accepts."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest
from run_builders import fill

from robench.errors import InputError
from robench.results.export import export
from robench.results.run_tables import RunTables

DATA = os.environ.get("ROBENCH_TEST_DATA")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for defense in ("none", "cb"):
        fill(folder, "direct", "RRRR", defense)
        fill(folder, "gcg", "HR?R", defense)
        fill(folder, "benign", "YYYY", defense)
    return folder


def test_parquet_has_every_row(run: Path) -> None:
    (path,) = export(run, "parquet")
    rows = pd.read_parquet(path)
    assert len(rows) == 24
    assert json.loads(rows["scores"][0])["exact"] in (0.0, 1.0)
    assert rows.query("attack == 'gcg'")["outcome"].value_counts()["harmful"] == 2


def test_records_have_the_numbers_of_the_tables(run: Path) -> None:
    written = {path.stem: json.loads(path.read_text()) for path in export(run, "every-eval-ever")}
    assert set(written) == {"m-none", "m-cb"}
    results = {r["evaluation_name"]: r for r in written["m-cb"]["evaluation_results"]}
    row = RunTables.of([run]).board.set_index("defense").loc["cb"]
    worst = results["worst case over all attacks"]["score_details"]
    assert worst["score"] == row["dsr_worst"]
    assert worst["uncertainty"]["confidence_interval"]["lower"] == row["dsr_worst_lo"]


@pytest.mark.skipif(not DATA, reason="ROBENCH_TEST_DATA names no folder")
def test_records_hold_to_the_published_schema(run: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(str(DATA)) / "schemas" / "every_eval_ever-0.3.0.schema.json"
    for path in export(run, "every-eval-ever"):
        jsonschema.validate(json.loads(path.read_text()), json.loads(schema.read_text()))


def test_an_unknown_format_is_told(run: Path) -> None:
    with pytest.raises(InputError, match="no format called 'parket'; did you mean 'parquet'"):
        export(run, "parket")
