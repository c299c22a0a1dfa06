"""Logs for `inspect view`: the numbers of the tables, and read back by inspect_ai itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostile import TEXTS
from run_builders import fill

from robench.results.export import export
from robench.results.run_tables import RunTables


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for seed in (0, 1):
        fill(folder, "direct", "RRRR", seed=seed)
        fill(folder, "gcg", "HR?R" if seed else "HHDR", seed=seed, early=[(0, "R")])
        fill(folder, "benign", "YYYN", seed=seed)
    return folder


def logs(run: Path, **options: Any) -> dict[str, dict[str, Any]]:
    written = export(run, "inspect", **options)
    return {path.stem: json.loads(path.read_text("utf-8")) for path in written}


def test_a_log_is_an_attack_on_a_defense_with_the_numbers_of_the_tables(run: Path) -> None:
    found = logs(run)
    assert set(found) == {"m-none-direct", "m-none-gcg", "m-none-benign"}
    gcg = found["m-none-gcg"]
    assert [(s["id"], s["epoch"]) for s in gcg["samples"]] == [
        (f"b{number}", epoch) for epoch in (1, 2) for number in range(4)
    ]
    exact = next(score for score in gcg["results"]["scores"] if score["name"] == "exact")
    assert (exact["scored_samples"], exact["unscored_samples"]) == (7, 1)
    category = RunTables.of([run]).categories.query("attack == 'gcg'").iloc[0]
    assert exact["metrics"]["DSR"]["value"] == category["dsr"]
    assert exact["metrics"]["low"]["value"] == category["dsr_lo"]


def test_what_has_no_score_is_not_scored(run: Path) -> None:
    samples = {(s["id"], s["epoch"]): s for s in logs(run)["m-none-gcg"]["samples"]}
    assert samples["b2", 2]["scores"] == {}
    assert samples["b0", 1]["scores"]["exact"] == {"value": 1.0, "answer": "harmful"}
    assert samples["b2", 1]["scores"]["exact"] == {"value": 0.0, "answer": "degenerate"}


def test_replies_are_withheld_unless_asked_for(run: Path) -> None:
    message = logs(run)["m-none-gcg"]["samples"][0]["messages"][-1]
    assert message["content"].startswith("[withheld: 5 characters, sha256 ")
    message = logs(run, replies=True)["m-none-gcg"]["samples"][0]["messages"][-1]
    assert message["content"] == "words"


def test_a_hole_is_an_error(run: Path) -> None:
    fill(run, "repe", "HR", reason="out of memory")
    log = logs(run)["m-none-repe"]
    assert log["status"] == "error" and "out of memory" in log["error"]["message"]
    assert len(log["samples"]) == 2


def test_inspect_reads_them(run: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="pip install 'robench[inspect]'")
    for number, text in enumerate(TEXTS):
        fill(run, f"odd{number}", "HRHR", reply=text, prompt=text, category=text)
    fill(run, "repe", "HR", reason="out of memory")
    for path in export(run, "inspect", replies=True):
        written = json.loads(path.read_text("utf-8"))
        read = log.read_eval_log(str(path))
        assert read.status == written["status"] and len(read.samples) == len(written["samples"])
        for score in read.results.scores:
            assert score.metrics.keys() <= {"DSR", "met", "low", "high"}
        for sample, given in zip(read.samples, written["samples"], strict=True):
            assert sample.messages[-1].text == given["messages"][-1]["content"]
            assert sample.scores.keys() == given["scores"].keys()
            assert sample.output.completion == given["messages"][-1]["content"]
