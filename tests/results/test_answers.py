"""Runs read back as rows: what their columns are, and where a row lies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_builders import fill

from robench import load_rows
from robench.errors import InputError
from robench.results.answers import read_answers
from robench.results.store import RunStore
from robench.results.verdicts import disambiguate


@pytest.fixture
def run(tmp_path: Path) -> Path:
    fill(tmp_path, "gcg", "HHRD")
    fill(tmp_path, "benign", "YYYY")
    fill(tmp_path, "gcg", "HR", "cb", reason="loss is NaN")
    return tmp_path


def test_an_attempt_per_row_with_what_its_cell_was_asked(run: Path) -> None:
    rows = load_rows(run)
    assert list(rows.columns[:6]) == ["model", "defense", "attack", "role", "tier", "seed"]
    assert len(rows) == 10
    found = rows.query("defense == 'none' and attack == 'gcg'")
    assert list(found["outcome"]) == ["harmful", "harmful", "refused", "degenerate"]
    assert set(rows.query("attack == 'benign'")["outcome"]) == {"complied"}
    assert set(rows["judge"]) == {"exact"}


def test_a_row_says_where_it_lies(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    rows = load_rows(run.name)
    monkeypatch.chdir("/")
    for _, row in rows.iterrows():
        lines = (Path(row["run"]) / "cells" / row["cell"] / "rows.jsonl").read_text().splitlines()
        assert any(f'"behavior": "{row["behavior"]}"' in line for line in lines)
        assert row["cell"].startswith(f"{row['defense']}__{row['attack']}__0-")


def test_a_method_of_two_tiers_still_lies_in_its_own_folder(run: Path) -> None:
    fill(run, "gcg", "RRRR", tier="paper")
    rows = load_rows(run).query("attack == 'gcg [paper]'")
    (name,) = set(rows["cell"])
    assert name.startswith("none__gcg__0-") and (run / "cells" / name).is_dir()


def test_several_runs_are_read_together(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fill(other, "gcg", "HHRR", "es2")
    answers = read_answers([run, other])
    assert [a.header["defense"] for a in answers] == ["none", "none", "cb", "es2"]
    assert disambiguate(answers) == answers
    assert set(load_rows(run, str(other))["run"]) == {str(run), str(other)}


def test_judges_decide_by_the_threshold_that_they_declared(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HHRR", judge_fields={"exact": {"threshold": 0.8, "reads_content": True}})
    RunStore(tmp_path).register_judge("later", {"threshold": 0.3, "reads_content": False})
    (found,) = read_answers([tmp_path])
    assert found.thresholds == {"exact": 0.8, "later": 0.3}
    assert found.not_reading == {"later"}
    assert (found.threshold(), found.threshold("later"), found.threshold("keyword")) == (
        0.8, 0.3, 0.5,
    )  # fmt: skip


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        load_rows(tmp_path)


def test_a_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "gcg", "HRRR")
    record = tmp_path / "run.json"
    run = json.loads(record.read_text())
    run["question"]["judge_fields"] = {"exact": {"method": "exact", "threshold": 0.5}}
    record.write_text(json.dumps(run))
    with pytest.raises(InputError, match="made by an earlier version of robench"):
        read_answers([tmp_path])
