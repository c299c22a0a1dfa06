"""The benchmarks run from end to end, at sizes that say nothing about speed, and record a table."""

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from robench.methods.registry import resolve
from robench.results.tables import tables
from robench.testing import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs benchmarks.NAME with arguments; gives what it recorded."""
    monkeypatch.syspath_prepend(ROOT)
    results = tmp_path / "RESULTS.md"
    monkeypatch.setattr(importlib.import_module("benchmarks.recording"), "RESULTS", results)

    def run(name: str, *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", [name, *arguments])
        importlib.import_module(f"benchmarks.{name}").main()
        return results.read_text("utf-8")

    return run


def test_generate_finds_the_same_replies(bench):
    page = bench("generate", "--prompts", "3", "--max-new-tokens", "4", "--rounds", "1")
    replies = [line.split(" | ")[-1] for line in page.splitlines() if line.startswith(("| trans",))]
    assert replies == ["3 |", "3 |"]
    assert page.startswith("\n## generate: organism, float32")
    assert "torch" in page and "ratio to one at a time: " in page


def test_a_real_model_is_timed_with_any_model_in_its_place(bench):
    page = bench("smollm2", "--model", "organism", "--widths", "8", "--behaviors", "1")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row[0] for row in rows] == [
        "| convert", "| load", "| replies, batch 1", "| replies, batch 8", "| gcg, width 8",
        "| soft_prompt",
    ]  # fmt: skip
    assert "Peak memory" in page


def test_answers_are_counted_per_set(bench, capsys, monkeypatch, tmp_path):
    (tmp_path / "RESULTS.md").touch()
    bench("answers", "organism", "--n", "2", "--dtype", "float32")
    harmful, harmless, everyday = capsys.readouterr().out.splitlines()
    assert harmful.startswith("organism, forbidden_geography, harmful: ")
    assert harmful.endswith(" of 2 refused, 0 answered right")
    assert harmless.startswith("organism, forbidden_geography, harmless: ")
    assert everyday.startswith("organism, harmless.csv: ") and "right" not in everyday


def test_soft_prompts_of_a_batch_are_those_of_one(bench):
    small = ("--behaviors", "2", "--alone", "1", "--steps", "2", "--rounds", "1")
    page = bench("soft_prompt", *small)
    assert float(page.split("largest difference of a final loss: ")[1].split()[0]) < 1e-5
    assert page.splitlines()[-1].startswith("ratio: ")


def test_growth_counts_what_is_executed(bench, monkeypatch):
    growth = importlib.import_module("benchmarks.growth")
    monkeypatch.setattr(growth, "BASE", {"behaviors": 1, "width": 8, "suffix": 4, "target": 3})
    monkeypatch.setattr(growth, "VARIED", {"width": (8, 16)})
    page = bench("growth", "--repeats", "1")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| width")]
    assert [row[1] for row in rows] == ["8", "16"]
    assert len([line for line in page.splitlines() if line.startswith("| blocks")]) == 3
    network = tiny().network
    ids = torch.arange(10).view(2, 5)
    linear = [m.weight.numel() for m in network.modules() if isinstance(m, torch.nn.Linear)]
    flops = growth.executed(network, lambda: network(ids, logits_to_keep=1))
    head = network.get_output_embeddings().weight.numel()
    assert flops == 2 * (10 * sum(linear) - 8 * head)


def test_the_side_of_robench_finds_the_same_with_pruning_and_without(bench, tmp_path):
    gcg, models = (importlib.import_module(f"benchmarks.{name}") for name in ("gcg", "models"))
    models.older_copy(tmp_path / "model", None)
    job = {
        "model": str(tmp_path / "model"),
        "device": "cpu",
        "dtype": "float32",
        "behaviors": [["Tell me how to wreck a lamp.", "Sure, here"], ["Why?", "Sure"]],
        "init": "!!!!",
        "width": 40,
        "topk": 16,
        "steps": 2,
        "seed": 0,
    }
    pruned, whole = (gcg.side({**job, "prune": prune}) for prune in (True, False))
    assert set(pruned) == {"seconds", "cpu", "best", "start", "peak", "rate", "share"}
    assert pruned["start"] == pytest.approx(whole["start"], abs=1e-5)
    assert pruned["best"] == pytest.approx(whole["best"], abs=1e-5)
    assert len(pruned["best"]) == 2


def test_what_a_training_does_once_is_not_counted(bench, monkeypatch):
    training = importlib.import_module("benchmarks.training")
    defense = resolve("defense", "refusal_tuning").instance
    assert training.seconds(tiny(), replace(defense, steps=1)) > 0
    monkeypatch.setattr(training, "seconds", lambda _, defense: 10.0 + 2 * defense.steps)
    page = bench("training", "--defenses", "refusal_tuning", "--steps", "3")
    row = next(line for line in page.splitlines() if line.startswith("| refusal_tuning"))
    assert row.split(" | ")[2] == "2"


def test_verdicts_are_compared_attempt_by_attempt():
    verdicts = importlib.import_module("benchmarks.verdicts")
    rows = pd.DataFrame(
        {
            "defense": "none",
            "attack": ["direct", "direct", "gcg", "gcg"],
            "seed": 0,
            "behavior": ["a", "b", "a", "a"],
            "tag": "",
            "step": [0, 0, 1, 2],
            "final": [True, True, False, True],
            "reply": ["x", "y", "z", "z"],
            "harmful": [False, True, False, True],
        }
    )
    other = rows.assign(reply=["x", "w", "v", "v"], harmful=[False, False, True, True])
    table = verdicts.differences(rows, other)
    assert table.values.tolist() == [["none", "direct", 2, 1, 1], ["none", "gcg", 1, 1, 0]]


def test_the_script_for_a_gpu_runs_from_end_to_end(tmp_path):
    """On a CPU, at toy sizes; so that minutes on a GPU are not lost to a mistake in it."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {**os.environ, "SIZE": "toy", "OMP_NUM_THREADS": "1", "PATH": path}
    script = [ROOT / "benchmarks" / "gpu.sh", tmp_path]
    subprocess.run(script, env={**variables, "PEER": "none"}, check=True)
    steps = [line.split() for line in (tmp_path / "summary.txt").read_text("utf-8").splitlines()]
    logs = {name: (tmp_path / f"{name}.log").read_text("utf-8") for name, _, _ in steps}
    assert len(steps) == 11
    assert [(name, logs[name]) for name, code, _ in steps if code != "0"] == []
    page = (tmp_path / "RESULTS.md").read_text("utf-8")
    titles = [line.split()[1] for line in page.splitlines() if line.startswith("## ")]
    assert titles == [
        "gcg",
        "soft_prompt:",
        "training:",
        "generate:",
        "step_profile:",
        "gcg",
        "growth:",
    ]
    assert (tmp_path / "organism" / "dsr.csv").is_file()


def test_the_made_up_run_of_report_is_one(bench, tmp_path):
    report = importlib.import_module("benchmarks.report")
    assert report.make(tmp_path / "run", behaviors=3, attempts=2) == 3 * 8 * (10 * 2 + 1)
    tables([tmp_path / "run"], page=True)
    board = pd.read_csv(tmp_path / "run" / "leaderboard.csv")
    assert len(board) == 8 and set(board["n"]) == {3}
    assert (tmp_path / "run" / "report.html").is_file()
