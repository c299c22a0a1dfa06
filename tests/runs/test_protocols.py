"""Published protocols as presets of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from robench import run
from robench.errors import InputError
from robench.results.store import RunStore
from robench.runs.plan import with_defaults
from robench.runs.protocols import PROTOCOLS
from robench.runs.question import Question
from robench.testing import tiny

PINNED = "bda705349d1144fa618770bea64d99ce54e3835b"


def asked(**options: Any) -> Question:
    return with_defaults(Question.of(protocol="harmbench", device="cpu", **options))


def test_harmbench_has_its_length_its_judge_and_its_requests() -> None:
    question = asked(model="owner/name")
    assert question.replies.max_new_tokens == 512 and question.replies.samples == 0
    assert question.judges == ("harmbench",) and question.texts.behaviors == "harmbench"
    fields = question.settings["harmbench"]
    assert fields["model"] == "cais/HarmBench-Llama-2-13b-cls"
    assert fields["revision"] == PINNED == PROTOCOLS["harmbench"].fields["revision"]
    assert asked(model="owner/name", behaviors="mine.csv").texts.behaviors == "mine.csv"
    assert asked(judges=["harmbench", "keyword"]).judges == ("harmbench", "keyword")
    assert asked(max_new_tokens=512) == asked()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_new_tokens": 256}, "has --max-new-tokens 512, not 256"),
        ({"samples": 3}, "has --samples 0, not 3"),
        ({"judges": ["keyword"]}, "has the first of --judges harmbench, not keyword"),
        ({"settings": ["harmbench.revision=main"]}, f"has harmbench.revision {PINNED}, not main"),
        ({"settings": ["harmbench.tokens=5"]}, "has harmbench.tokens 512, not 5"),
        ({"settings": ["harmbench.model=o/n"]}, "has harmbench.model cais/"),
    ],
)
def test_what_it_fixes_cannot_be_asked_otherwise(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"--protocol harmbench {told}"):
        asked(**options)


def test_the_length_of_replies_without_a_protocol() -> None:
    assert with_defaults(Question.of(model="owner/name")).replies.max_new_tokens == 512
    assert with_defaults(Question.of()).replies.max_new_tokens == 64


def test_parse_failures_are_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random classifier says neither yes nor no.

    The organism reads 512 tokens, the protocol's replies alone; its own end long before.
    """
    for place in ("limits", "chat_model"):
        monkeypatch.setattr(f"robench.model.{place}.context_of", lambda config: None)
    loaded = tiny()
    loaded.network.save_pretrained(tmp_path / "judge")
    loaded.chat.tokenizer.save_pretrained(tmp_path / "judge")
    outcome = run(
        protocol="harmbench",
        settings=[f"harmbench.model={tmp_path / 'judge'}"],
        matrix="smoke", attacks=["direct"], defenses=["none"], n=2, n_benign=2, threads=1,
        out=tmp_path / "out",
    )  # fmt: skip
    (header, *_), *_ = RunStore(tmp_path / "out").cells()
    assert header["max_new_tokens"] == 512 and header["judges"] == ["harmbench"]
    assert "without a verdict, never counted as defended: harmbench 2 of 2" in str(outcome)
    table = pd.read_csv(tmp_path / "out" / "dsr.csv").query("role == 'baseline'")
    assert table["unscored"].tolist() == [2] and table["dsr"].isna().all()
    assert outcome.holes == 1
