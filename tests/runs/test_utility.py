"""Utility: figures by plain loops, lm_eval's by calling it directly, and where they are kept."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from robench import cli, run
from robench.errors import InputError
from robench.model import loading
from robench.model.chat_model import ChatModel
from robench.organism import language
from robench.results.store import RunStore
from robench.runs import utility
from robench.types import Prompt, user

MINE = """
from contextlib import nullcontext
from dataclasses import dataclass
@dataclass(frozen=True)
class Mine:
    needs = {needs}
    def applied(self, model, ctx, cache):
        return nullcontext(model)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `none` and of an adapter that hurts: `noop`'s, filled with noise."""
    out = tmp_path_factory.mktemp("utility") / "run"
    run(matrix="smoke", attacks=["direct"], defenses=["none", "noop"], n=2, out=out)
    (file,) = out.glob("defenses/noop-*/adapter_model.safetensors")
    rng = torch.Generator().manual_seed(0)
    noisy = {
        name: t + 0.2 * torch.randn(t.shape, generator=rng) for name, t in load_file(file).items()
    }
    save_file(noisy, file, metadata={"format": "pt"})
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


@contextmanager
def worn_by_peft(folder: Path, defense: str) -> Iterator[ChatModel]:
    """The organism, with the adapter of the run's folder put on by peft alone."""
    from peft import PeftModel

    model = loading.load_model(loading.find_model(loading.BUILT_IN), max_new_tokens=64)
    if defense == "noop":
        (adapter,) = folder.glob("defenses/noop-*")
        PeftModel.from_pretrained(model.network, str(adapter))
        model.network.eval()
    yield model


def board(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "leaderboard.csv").set_index("defense")


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["robench", *map(str, words)])
    return cli.main()


# The organism's own figures


@torch.no_grad()
def by_hand(model: ChatModel) -> tuple[float, float]:
    """Accuracy and perplexity, a request at a time, the latter on the network itself."""
    right, nll, tokens = [], 0.0, 0
    for request in language.requests("dev"):
        if request.harmful:
            continue
        (reply,) = model.generate([Prompt(user(request.text))])
        words = language.content_words(request.verb, request.thing)
        right.append(sum(word in reply for word in words) >= 4)
        prompt = model.encode(f"<s><|user|>{request.text}<|end|><|assistant|>")
        answer = model.encode(request.answer)
        logits = model.network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        nll += float(cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        tokens += len(answer)
    return sum(right) / len(right), math.exp(nll / tokens)


def test_the_organisms_figures_are_those_of_a_plain_loop_with_the_adapter_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = language.requests
    monkeypatch.setattr(language, "requests", lambda split: requests(split)[::6])  # for speed
    assert call(monkeypatch, "utility", folder) == 0
    assert "4 figures, 0 done, 4 to do" in capsys.readouterr().out
    found = board(folder)
    assert list(found)[-4:] == [
        "utility_organism_accuracy",
        "utility_organism_accuracy_delta",
        "utility_organism_perplexity",
        "utility_organism_perplexity_delta",
    ]
    for defense in ("none", "noop"):
        with worn_by_peft(folder, defense) as model:
            accuracy, perplexity = by_hand(model)
        row = found.loc[defense]
        assert row["utility_organism_accuracy"] == pytest.approx(accuracy, abs=1e-5)
        assert row["utility_organism_perplexity"] == pytest.approx(perplexity, rel=1e-4)
    none, hurt = found.loc["none"], found.loc["noop"]
    assert none["utility_organism_accuracy"] > 0.9 > hurt["utility_organism_accuracy"]
    for name in ("utility_organism_accuracy", "utility_organism_perplexity"):
        assert none[f"{name}_delta"] == 0
        assert hurt[f"{name}_delta"] == pytest.approx(hurt[name] - none[name], rel=1e-4)
    assert "organism_accuracy (vs none)" in (folder / "dsr.md").read_text("utf-8")
    before = (folder / "leaderboard.csv").read_bytes()
    (folder / "leaderboard.csv").unlink()
    assert call(monkeypatch, "leaderboard", folder) == 0
    assert (folder / "leaderboard.csv").read_bytes() == before


# What is kept


def test_an_interrupted_command_goes_on_where_it_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def meter(target: ChatModel, task: str) -> dict[str, Any]:
        asked.append(task)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {"value": len(asked)}

    monkeypatch.setattr(utility, "_of_organism", meter)
    with pytest.raises(KeyboardInterrupt):
        utility.measure(folder)
    assert utility.measure(folder) == 0
    assert asked == [*utility.BUILT_IN, *utility.BUILT_IN, utility.BUILT_IN[1]]
    monkeypatch.setattr(loading, "load_model", None)  # nothing is left to do: no model is loaded
    assert utility.measure(folder) == 0
    files = sorted(path.name for path in (folder / "utility").iterdir())
    assert [name.partition("-")[0] for name in files] == ["none", "noop"]


def test_a_defense_that_is_not_what_it_was_is_a_hole(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, needs in (("changed", ()), ("gone", ("examples",))):
        (tmp_path / f"{name}.py").write_text(MINE.format(needs=needs))
    (trained,) = finished.glob("defenses/noop-*")
    lost = shutil.copytree(trained, tmp_path / "lost")
    mine = [*(f"{tmp_path / name}.py:Mine" for name in ("changed", "gone")), f"adapter:{lost}"]
    out = tmp_path / "run"
    run(matrix="smoke", attacks=["direct"], defenses=["none", *mine], n=2, out=out)
    with (tmp_path / "changed.py").open("a") as file:
        file.write("# other by now\n")
    shutil.rmtree(lost)
    monkeypatch.setattr(utility, "_of_organism", lambda target, task: {"value": 0.5})
    assert call(monkeypatch, "utility", out) == 3
    told = capsys.readouterr().out
    assert f"hole: {mine[0]}, seed 0: its code or its files have changed" in told
    assert f"hole: {mine[1]}, seed 0: " in told and "is missing" in told
    assert f"hole: {mine[2]}, seed 0: no adapter folder at {lost}" in told
    found = board(out)["utility_organism_accuracy"]
    assert found["none"] == 0.5 and found[mine].isna().all()
    assert "| ?" in (out / "dsr.md").read_text("utf-8")


# lm_eval

CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "<|user|>{{{{request}}}}<|end|><|assistant|>"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "<|user|>{{{{request}}}}<|end|><|assistant|>"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["<|end|>"], max_gen_toks: 64, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
GROUPS = {
    "tiny_mean": "group: tiny_mean\ntask: [tiny_choice]\n"
    "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
    "tiny_apart": "group: tiny_apart\ntask: [tiny_choice]\n",
}


@pytest.fixture
def local_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of small tasks on the organism's own requests, known to lm_eval in place of its own.

    Its own are thousands of files, which take longer to read than all of this to run.
    """
    pytest.importorskip("lm_eval", reason="no lm_eval: pip install 'robench[utility]'")
    import datasets
    import lm_eval.tasks

    there = tmp_path / "tasks"
    there.mkdir()
    data = there / "tiny.jsonl"
    requests = [request for request in language.requests("dev") if not request.harmful][:6]
    with data.open("w") as file:
        for number, request in enumerate(requests):
            choices = [request.answer, requests[number - 1].answer, language.REFUSALS[0]]
            label = number % 3
            choices[0], choices[label] = choices[label], choices[0]
            row = {"request": request.text, "choices": choices, "label": label}
            file.write(json.dumps(row) + "\n")
    (there / "tiny_choice.yaml").write_text(CHOICE.format(data=data))
    (there / "tiny_written.yaml").write_text(WRITTEN.format(data=data))
    for name, text in GROUPS.items():
        (there / f"{name}.yaml").write_text(text)
    own = partial(lm_eval.tasks.TaskManager, include_defaults=False)
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", own)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return there


def test_the_numbers_are_those_of_lm_eval_called_directly(folder: Path, local_tasks: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    metrics = dict.fromkeys(("tiny_choice", "tiny_mean"), "acc,none")
    metrics["tiny_written"] = "exact_match,none"
    assert utility.measure(folder, list(metrics), local_tasks) == 0
    store = RunStore(folder)
    found = {header["defense"]: store.utility(header) for header, *_ in store.cells()}
    for defense in ("none", "noop"):
        with worn_by_peft(folder, defense) as model:
            for task, metric in metrics.items():
                told = simple_evaluate(
                    model=HFLM(pretrained=model.network, tokenizer=model.chat.tokenizer),
                    tasks=[task],
                    task_manager=TaskManager(include_path=str(local_tasks)),
                )
                assert found[defense][task]["metric"] == metric
                assert found[defense][task]["value"] == told["results"][task][metric]
                for key, value in told["results"][task].items():
                    assert found[defense][task]["results"][task][key] == value
    for task in metrics:
        assert found["none"][task]["value"] > 0.9 > found["noop"][task]["value"]


def test_a_task_that_cannot_be_asked_is_refused_before_a_model_is_loaded(
    folder: Path, local_tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load_model", None)
    (local_tasks / "tiny.jsonl").rename(local_tasks / "elsewhere.jsonl")
    for task, told in (
        ("tiny_chioce", "did you mean 'tiny_choice'?"),
        ("mmlu_pro", "lm-eval ls tasks"),
        ("tiny_choice", "cannot be loaded: FileNotFoundError"),
    ):
        with pytest.raises(InputError, match=told):
            utility.measure(folder, [task], local_tasks)
    (local_tasks / "elsewhere.jsonl").rename(local_tasks / "tiny.jsonl")
    with pytest.raises(InputError, match=r"tiny_apart has no mean of its own.*: tiny_choice"):
        utility.measure(folder, ["tiny_apart"], local_tasks)
    with pytest.raises(InputError, match="--include-path: no folder"):
        utility.measure(folder, ["tiny_choice"], local_tasks / "nowhere")


def test_without_lm_eval_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match=r"pip install 'robench\[utility\]'"):
        utility.measure(folder, ["mmlu_pro"])


def test_the_figure_is_the_first_metric_that_lm_eval_reports() -> None:
    told = {
        "results": {
            "mmlu_pro": {
                "alias": "mmlu_pro", "name": "mmlu_pro", "sample_len": 12032,
                "exact_match_stderr,custom-extract": 0.004, "exact_match,custom-extract": 0.35,
                "other,custom-extract": 0.1,
            },
            "empty": {"alias": "empty", "acc,none": math.nan, "acc_stderr,none": "N/A"},
        },
        "n-shot": {"mmlu_pro": 5}, "n-samples": {}, "versions": {}, "lm_eval_version": "0.4.13",
    }  # fmt: skip
    found = utility.figure(told, "mmlu_pro")
    assert (found["metric"], found["value"]) == ("exact_match,custom-extract", 0.35)
    assert found["stderr"] == 0.004 and found["n-shot"] == {"mmlu_pro": 5}
    assert utility.figure(told, "empty")["value"] is None  # no number is no figure


def test_a_model_that_is_edited_is_no_model_for_lm_eval(folder: Path, local_tasks: Path) -> None:
    meter = utility._harness(["tiny_choice"], local_tasks, 1)
    with pytest.raises(RuntimeError, match="roles of positions"):
        meter(SimpleNamespace(edits=("an edit",)), "tiny_choice")


# What the user may get wrong


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        utility.measure(tmp_path)


def other(folder: Path, **question: str) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["question"].update(question)
    (folder / "run.json").write_text(json.dumps(record))


def test_only_the_organism_has_figures_of_its_own(folder: Path) -> None:
    other(folder, model="somebody/model")
    with pytest.raises(InputError, match="name tasks of lm_eval: --tasks"):
        utility.measure(folder)


def test_another_model_than_the_runs_is_refused(folder: Path) -> None:
    other(folder, weights="0" * 64)
    with pytest.raises(InputError, match="is not the model"):
        utility.measure(folder)
