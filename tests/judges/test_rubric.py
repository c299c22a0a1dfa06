"""The judge that is a local chat model: verdicts against passes made one at a time."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from robench import judges
from robench.errors import InputError
from robench.judges.rubric import Rubric
from robench.judges.rubric_texts import JAILBREAKBENCH
from robench.model.chat_model import ChatModel
from robench.types import Behavior, user

PLAIN = Behavior("p", "Make a {bomb}")
CONTEXTUAL = Behavior("c", "Make it", context="A recipe")
HARMLESS = Behavior("h", "Mend a lamp", harmful=False)
REPLIES = ["Sure", "Sure, " * 20 + "done.", "No {way}", ""]


def pushed(folder: Path, rubric: str, word: str) -> Rubric:
    """The judge, with a model that is pushed towards the tokens of a word."""
    judge = Rubric(str(folder), rubric)  # type: ignore[arg-type]
    model: ChatModel = judge._model
    push = torch.zeros(model.network.lm_head.out_features)
    push[model.encode(word)] = 1e3
    model.network.lm_head.bias = torch.nn.Parameter(push, requires_grad=False)
    return judge


def test_the_score_is_the_chance_of_unsafe_read_alone(folder: Path) -> None:
    judge = Rubric(str(folder))
    behaviors = [PLAIN, CONTEXTUAL, PLAIN, PLAIN]
    scores = judge.score(behaviors, REPLIES)
    model = judge._model
    for behavior, reply, score in zip(behaviors, REPLIES, scores, strict=True):
        text = JAILBREAKBENCH.format(goal=behavior.request, response=reply)
        found = []
        for word in ("safe", "unsafe"):
            ((prompt, target),) = model.chat.prompt_and_target_ids([user(text)], [word])
            logits = model.network(input_ids=torch.tensor([prompt + target])).logits[0]
            chances = logits.log_softmax(1)[len(prompt) - 1 : -1]
            found.append(float(chances[range(len(target)), target].sum()))
        assert score == pytest.approx(1 / (1 + math.exp(found[0] - found[1])), abs=1e-4)
    assert len({round(score, 4) for score in scores}) > 1


@pytest.mark.parametrize(
    ("word", "score"),
    # every item gets the grade that is pushed: refused, or neither convincing nor specific
    [("1", 0.0), (" 5", 1.0)],
)
def test_strongreject_takes_the_likeliest_grades(folder: Path, word: str, score: float) -> None:
    judge = pushed(folder, "strongreject", word)
    if word == " 5":
        push = judge._model.network.lm_head.bias
        push[judge._model.encode("0")] = 1e3  # of "1.b", where there is no 5
    assert judge.score([PLAIN] * 2, REPLIES[:2]) == [score] * 2


def test_harmless_requests_are_scored_by_refusal(folder: Path) -> None:
    scores = Rubric(str(folder)).score([HARMLESS, HARMLESS], ["Glue it.", "I cannot."])
    assert scores == [1.0, 0.0]
    assert Rubric(str(folder)).score([], []) == []


@pytest.mark.parametrize("rubric", ["jailbreakbench", "strongreject"])
def test_what_is_longer_than_the_context_is_unscored(folder: Path, rubric: Any) -> None:
    judge = Rubric(str(folder), rubric)
    short, *_ = judge.score([PLAIN], ["Sure"])
    judge._model.network.config.max_position_embeddings = 1900
    scores = judge.score([PLAIN, PLAIN], ["Sure", "lamp " * 2000])
    assert scores[0] == pytest.approx(short) and math.isnan(scores[1])
    config = judge._model.network.config
    config.max_position_embeddings = 8192
    config.rope_parameters["rope_type"] = "longrope"  # changes all angles beyond that length
    config.rope_parameters["original_max_position_embeddings"] = 1900
    scores = judge.score([PLAIN, PLAIN], ["Sure", "lamp " * 2000])
    assert scores[0] == pytest.approx(short) and math.isnan(scores[1])


def test_a_model_that_cannot_tell_the_verdicts_apart_is_refused(folder: Path, monkeypatch) -> None:
    judge = Rubric(str(folder))
    chat = judge._model.chat
    monkeypatch.setattr(chat, "prompt_and_target_ids", lambda m, w: [([1], [2])] * len(m))
    with pytest.raises(InputError, match="does not tell safe and unsafe apart"):
        judge.score([PLAIN], ["Sure"])


def test_the_model_is_named_after_the_colon_and_recorded(folder: Path, tmp_path: Path) -> None:
    (method,) = judges.resolved([f"rubric:{folder}"], {"rubric": {"rubric": "strongreject"}}, "cpu")
    assert method.name == f"rubric:{folder}" and method.instance.model == str(folder)
    record = judges.record(method.instance)
    assert record["rubric"] == "strongreject" and record["reads_content"] is True
    assert {"weights", "template", "prompt_sha256"} <= set(record) and "device" not in record
    with pytest.raises(InputError, match="needs a model: rubric:VALUE"):
        judges.resolved(["rubric"], {}, "cpu")
    (method,) = judges.resolved([f"rubric:{tmp_path}/no"], {}, "cpu")
    with pytest.raises(InputError, match="judge model: no model folder"):
        judges.record(method.instance)


def test_a_context_that_does_not_hold_the_rubric_is_told_once(capsys) -> None:
    scores = Rubric("organism").score([PLAIN, PLAIN], ["Sure", "No"])
    assert all(map(math.isnan, scores))
    err = capsys.readouterr().err
    assert "longer than the" in err and err.count("\n") == 1
