"""The benchmarks run from end to end, at sizes that say nothing about speed, and record a table."""

import importlib
from pathlib import Path

import pytest
import torch

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
    assert set(pruned) == {"seconds", "cpu", "best", "start", "peak"}
    assert pruned["start"] == pytest.approx(whole["start"], abs=1e-5)
    assert pruned["best"] == pytest.approx(whole["best"], abs=1e-5)
    assert len(pruned["best"]) == 2
