"""Judges with a model: the publishers' prompts on tiny models, with scripted and real logits."""

import math
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from robench import judges
from robench.errors import InputError
from robench.judges.classifier import Classifier, commit, located
from robench.judges.harmbench import HarmBench, question
from robench.judges.strongreject import PROMPT, StrongReject
from robench.model.batching import Chunks
from robench.testing import tiny
from robench.types import Behavior

PLAIN = Behavior("p", "Make a {bomb}")
CONTEXTUAL = Behavior("c", "Make it", context="A recipe")
HARMLESS = Behavior("h", "Mend a lamp", harmful=False)
REPLIES = ["Sure", "Sure, " * 40 + "done.", "No {way}", "It is a lamp, and it burns."]

# sha256 of the publishers' own texts: LLAMA2_CLS_PROMPT's two, and of judge_templates.json.
HARMBENCH = "788f4f6aa1491c433c4da76c9140cfc30966cea3ff3875c4d0fcb336d92f60e0"
HARMBENCH_CONTEXTUAL = "5d6bb9e3cf4d1e5f3f7620093113222ee115af75b0b2913f00e4c7225ec9f219"
STRONGREJECT = "d90102b02d66b34a3dbf7d82789ce92310965503a481dc725232626bd7700937"


def model(**bias: float) -> Classifier:
    """A tiny model whose next token is pushed towards the words of `bias`; "yes" is one token."""
    loaded = tiny()
    tokenizer = loaded.chat.tokenizer
    tokenizer.add_tokens(["yes"])
    head = loaded.network.lm_head
    pushes = torch.zeros(head.out_features)
    for word, push in bias.items():
        pushes[tokenizer.get_vocab()[word.strip("_")]] = push
    head.bias = torch.nn.Parameter(pushes, requires_grad=False)
    return Classifier(loaded.network, tokenizer, Chunks(torch.device("cpu"), 32))


def with_model(judge: Any, classifier: Classifier) -> Any:
    """The judge with this model in the place of the one that it would load."""
    judge.__dict__["_classifier"] = classifier
    return judge


def spied(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that the model is going to read."""
    seen: list[str] = []

    def read(self: Classifier, prompts: Any, score: Any) -> list[float]:
        seen.extend(prompts)
        return [0.0] * len(prompts)

    monkeypatch.setattr(Classifier, "read", read)
    return seen


# The prompts, as published


def test_the_prompts_are_the_published_ones_to_the_letter() -> None:
    system, asked = question(Behavior("", "{behavior}"), "{generation}")
    whole = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{asked} [/INST]"
    assert sha256(whole.encode()).hexdigest() == HARMBENCH
    system, asked = question(Behavior("", "{behavior}", context="{context}"), "{generation}")
    whole = f"[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{asked} [/INST]"
    assert sha256(whole.encode()).hexdigest() == HARMBENCH_CONTEXTUAL
    assert sha256(PROMPT.encode()).hexdigest() == STRONGREJECT


def test_harmbench_shows_the_context_where_there_is_one(monkeypatch) -> None:
    classifier = model()
    seen = spied(classifier, monkeypatch)
    with_model(HarmBench(), classifier).score([PLAIN, CONTEXTUAL], ["It {works}", "Sure"])
    plain, contextual = seen
    assert "[BEHAVIOR]:\nMake a {bomb}\n\n[GENERATION]:\nIt {works}\n\n---\nRules:" in plain
    assert "[CONTEXT]" not in plain and plain.endswith("\n\nAnswer: [/INST]")
    assert "[CONTEXT]:\nA recipe\n\n[BEHAVIOR]:\nMake it\n\n[GENERATION]:\nSure\n" in contextual


def test_replies_are_cut_after_the_published_number_of_tokens(monkeypatch) -> None:
    classifier = model()
    seen = spied(classifier, monkeypatch)
    long = "lamp " * 600
    with_model(HarmBench(tokens=5), classifier).score([PLAIN], [long])
    (cut,) = seen
    kept = cut.partition("[GENERATION]:\n")[2].partition("\n\n---")[0]
    assert kept == classifier.tokenizer.decode(classifier.tokenizer(long)["input_ids"][:5])
    assert 0 < len(kept) < 30
    assert HarmBench().tokens == StrongReject().tokens == 512


def test_the_official_strongreject_keeps_the_end_and_the_bos(monkeypatch, real_data) -> None:
    from transformers import AutoTokenizer

    classifier = model()
    tokenizer = AutoTokenizer.from_pretrained(real_data / "tokenizers" / "llama2")
    llama = Classifier(classifier.network, tokenizer, classifier.chunks)
    assert llama.clip("Sure, here", 512, special=True).startswith("<s>")
    assert llama.clip("Sure, here", 512) == "Sure, here"
    assert llama.clip("a b c d e f", 4) == "a b c"  # the BOS counts
    assert llama.clip("a b c d e f", 4, end=True) == "d e f"
    seen = spied(llama, monkeypatch)
    with_model(StrongReject(tokens=4), llama).score([PLAIN], ["a b c d e f"])
    assert "\n\nAI model response: <s> d e f\n\nPretend" in seen[0].replace("<s>d", "<s> d")
    assert seen[0].endswith("\n\n### Answer: ")


# Verdicts


@pytest.mark.parametrize(("word", "verdict"), [("yes", 1.0), ("no", 0.0), ("Ġno", 0.0)])
def test_harmbench_reads_the_greedy_token(word: str, verdict: float) -> None:
    judge = with_model(HarmBench(), model(**{word: 1e4}))
    assert judge.score([PLAIN] * 4, REPLIES) == [verdict] * 4


def test_an_answer_that_is_neither_yes_nor_no_is_unscored() -> None:
    judge = with_model(HarmBench(), model(a=1e4, yes=5e3))
    assert all(map(math.isnan, judge.score([PLAIN] * 4, REPLIES)))


def test_harmbench_scores_harmless_requests_by_refusal() -> None:
    judge = with_model(HarmBench(), model(yes=1e4))
    scores = judge.score([HARMLESS, PLAIN, HARMLESS], ["Glue it.", "Boom", "I cannot."])
    assert scores == [1.0, 1.0, 0.0]
    assert judge.score([HARMLESS], ["Glue it."]) == [1.0]


@pytest.mark.parametrize(("grade", "score"), [("1", 0), ("2", 0.25), ("4", 0.75), ("5", 1)])
def test_strongreject_maps_grades_to_the_unit_interval(grade: str, score: float) -> None:
    judge = with_model(StrongReject(), model(**{grade: 1e4}))
    assert judge.score([PLAIN] * 4, REPLIES) == pytest.approx([score] * 4)


def test_strongreject_is_the_expected_grade_of_each_reply_read_alone() -> None:
    """Left-padded batches of different lengths against one forward pass per prompt."""
    classifier = model(**dict.fromkeys("12345", 300.0))
    scores = with_model(StrongReject(), classifier).score([PLAIN, CONTEXTUAL] * 2, REPLIES)
    for behavior, reply, score in zip([PLAIN, CONTEXTUAL] * 2, REPLIES, scores, strict=True):
        prompt = PROMPT.format(forbidden_prompt=behavior.request, response=reply)
        ids = torch.tensor([classifier.tokenizer(prompt)["input_ids"]])
        logits = classifier.network(input_ids=ids).logits[0, -1]
        vocabulary = classifier.tokenizer.get_vocab()
        chances = torch.stack([logits[vocabulary[grade]] for grade in "12345"]).softmax(0)
        assert score == pytest.approx(
            sum(p * k / 4 for k, p in enumerate(chances.tolist())), abs=1e-5
        )
    assert len({round(score, 3) for score in scores}) == 4


def test_a_strongreject_model_that_grades_nothing_is_unscored() -> None:
    judge = with_model(StrongReject(), model(a=1e4, **{"5": 5e3}))
    assert all(map(math.isnan, judge.score([PLAIN] * 4, REPLIES)))


def test_a_broken_model_is_unscored() -> None:
    classifier = model()
    classifier.network.lm_head.weight.fill_(math.nan)
    for judge in (HarmBench(), StrongReject()):
        assert all(map(math.isnan, with_model(judge, classifier).score([PLAIN] * 2, REPLIES[:2])))


def test_a_prompt_longer_than_the_context_is_unscored() -> None:
    classifier = model(yes=1e4)
    lengths = [len(classifier.tokenizer(text)["input_ids"]) for text in ("a", "lamp " * 50)]
    classifier.network.config.max_position_embeddings = lengths[0]
    scores = classifier.read(["a", "lamp " * 50], lambda logits: [1.0] * len(logits))
    assert scores[0] == 1.0 and math.isnan(scores[1])
    assert classifier.read([], lambda logits: []) == []


def test_running_out_of_memory_changes_no_score(monkeypatch) -> None:
    classifier = model(**dict.fromkeys("12345", 300.0))
    judge = with_model(StrongReject(), classifier)
    whole = judge.score([PLAIN] * 4, REPLIES)
    forward = classifier.network.forward

    def small(input_ids: torch.Tensor, **options: Any) -> Any:
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(classifier.network, "forward", small)
    classifier.chunks.tokens = 10**6
    assert judge.score([PLAIN] * 4, REPLIES) == pytest.approx(whole, abs=1e-5)


# From the disk


def test_a_model_is_loaded_from_a_folder_and_recorded_by_its_weights(folder: Path) -> None:
    judge = HarmBench(model=str(folder), device="cpu")
    assert len(judge.score([PLAIN], ["Sure"])) == 1
    record = judges.record(judge)
    assert record["commit"] == commit(str(folder)) and len(record["commit"]) == 64
    assert record["prompt_sha256"] != judges.record(StrongReject(str(folder)))["prompt_sha256"]


def test_other_weights_are_another_judge(folder: Path, tmp_path: Path) -> None:
    other = tiny(seed=1)
    other.network.save_pretrained(tmp_path)
    other.chat.tokenizer.save_pretrained(tmp_path)
    assert commit(str(tmp_path)) != commit(str(folder))


def test_a_lora_adapter_is_a_model_too(folder: Path, tmp_path: Path) -> None:
    base = tiny()
    base.network.config._name_or_path = str(folder)
    base.network.name_or_path = str(folder)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base.network, config)
    adapted.save_pretrained(tmp_path)
    base.chat.tokenizer.save_pretrained(tmp_path)
    loaded = Classifier.load(str(tmp_path), "", "cpu")
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = Classifier.load(str(folder), "", "cpu").network(input_ids=ids).logits
    found = loaded.network(input_ids=ids).logits
    torch.testing.assert_close(found, adapted(input_ids=ids).logits)
    assert not torch.allclose(found, plain)
    assert len(commit(str(tmp_path))) == 64


def test_a_hub_snapshot_is_recorded_by_its_commit(tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "snapshots" / ("c0ffee" + "0" * 34)
    snapshot.mkdir(parents=True)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append((name, options["revision"])) or str(snapshot),
    )
    assert commit("cais/cls", "main") == snapshot.name
    assert commit("cais/cls") == snapshot.name
    assert asked == [("cais/cls", "main"), ("cais/cls", None)]


@pytest.mark.parametrize(
    ("name", "revision", "told"),
    [
        ("nowhere", "", "judge model: no model called 'nowhere'"),
        ("./nowhere", "", "judge model: no model folder at ./nowhere"),
        ("owner/name", "", "owner/name: the hub cannot be reached .* or give a folder"),
        (".", "v1", "judge model: no model folder at .@v1"),
    ],
)
def test_a_model_that_is_not_there_is_told_in_one_line(
    name: str, revision: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=told) as error:
        located(name, revision)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no configuration and weights"):
        commit(str(tmp_path))
    with pytest.raises(InputError, match="cannot be loaded"):
        HarmBench(model=str(tmp_path)).score([PLAIN], ["Sure"])


def test_a_tokenizer_without_the_grades_is_told() -> None:
    judge = StrongReject()
    classifier = model()
    vocabulary = {word: i for word, i in classifier.tokenizer.get_vocab().items() if word != "3"}
    classifier.tokenizer.get_vocab = lambda: vocabulary
    with pytest.raises(InputError, match="no tokens 1 to 5"):
        with_model(judge, classifier).score([PLAIN], ["Sure"])
