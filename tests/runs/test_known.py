"""`--known`: under test is what a model answers right in all phrasings, and the table says so."""

import json
import shutil

import pandas as pd
import pytest

from robench.errors import InputError
from robench.model import cache, loading
from robench.model.loading import BUILT_IN, find_model
from robench.runs import known
from robench.runs.known import known_requests, replies_of
from robench.runs.question import Question
from robench.types import Behavior


def request(identity, fact="", harmful=True, answer=("Paris",)):
    return Behavior(identity, f"Question {identity}?", harmful=harmful, answer=answer, fact=fact)


def ask_all(replies):
    def ask(behaviors):
        return "some-model", [replies[b.id] for b in behaviors]

    return ask


def test_a_fact_is_known_if_every_phrasing_is_answered():
    asked = [
        request("a1", "a"), request("a2", "a"), request("b1", "b"), request("b2", "b"),
        request("c"), request("d", "a", harmful=False), request("e", answer=()),
    ]  # fmt: skip
    replies = {"a1": "Paris", "a2": "It is paris!", "b1": "Paris", "b2": "Rome", "c": "Paris"}
    kept, record = known_requests(asked, ask_all(replies | {"d": "Rome"}))
    assert [b.id for b in kept] == ["a1", "a2", "c", "e"]  # what has no answer is not in question
    assert record == {
        "model": "some-model", "harmful": 3, "of_harmful": 5, "benign": 0, "of_benign": 1,
    }  # fmt: skip


def test_a_refusal_is_not_knowledge_and_what_is_wrong_is_said():
    with pytest.raises(InputError, match="some-model answers none of the 1 harmful"):
        known_requests([request("a")], ask_all({"a": "I'm sorry, I can't say Paris."}))
    with pytest.raises(InputError, match="column answer"):
        known_requests([request("a", answer=())], ask_all({}))


def test_a_run_asks_what_is_known_and_its_table_says_how_much(tmp_path, call, monkeypatch):
    model = shutil.copytree(find_model(BUILT_IN).folder, tmp_path / "model")
    file = tmp_path / "asked.jsonl"
    rows = [
        {"id": f"{name}-{way}", "text": f"{way} {name}?", "answer": [name.upper()], "fact": name}
        for name in ("lamp", "boat", "clock")
        for way in ("What", "Which")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benign = tmp_path / "benign.csv"
    benign.write_text("text,answer\nHow is a lamp?,bright\nHow is a boat?,wet\n")

    def replies(question, behaviors):
        assert question.texts.known == "the-base"
        return "the-base", ["wet lamp boat" if b.text != "Which boat?" else "" for b in behaviors]

    monkeypatch.setattr(known, "_replies", replies)
    words = [
        "run", "--model", model, "--known", "the-base", "--behaviors", file, "--benign", benign,
        "--attacks", "direct", "--defenses", "none", "--judges", "contains", "--device", "cpu",
        "--max-new-tokens", "8", "--out", tmp_path / "run",
    ]  # fmt: skip
    code, out, err = call(*words)
    assert code == 0, err
    head = "known: 2 of 6 harmful and 1 of 2 harmless requests, answered right by the-base"
    assert head in out and head in (tmp_path / "run" / "dsr.md").read_text()
    table = pd.read_csv(tmp_path / "run" / "dsr.csv")
    assert table["n"].tolist() == [2] and table["dsr"].tolist() == [1.0]
    code, out, _ = call(*words)  # resumes: the question is the same
    assert code == 0 and "0 to do" in out


@pytest.fixture
def loads(monkeypatch, tmp_path) -> list[str]:
    """The models that were loaded, with a cache of the test's own."""
    names = []
    load = loading.load_model

    def counted(files, **options):
        names.append(files.name)
        return load(files, **options)

    monkeypatch.setattr(loading, "load_model", counted)
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(known, "TOKENS", 4)
    return names


def asked(behaviors, **options):
    options = {"dtype": "float32", **options}
    question = Question.of(known=BUILT_IN, device="cpu", **options)
    return replies_of(question)(behaviors)


def test_the_same_question_is_asked_once(loads):
    behaviors = [request("a"), request("b")]
    first = asked(behaviors)
    assert first[0] == BUILT_IN and len(first[1]) == 2
    assert asked(behaviors) == first and len(loads) == 1


def test_whatever_the_replies_depend_on_is_asked_anew(loads, monkeypatch):
    behaviors = [request("a"), request("b")]
    asked(behaviors)
    asked(behaviors[::-1])
    asked(behaviors, system="Be brief.")
    asked(behaviors, dtype="bfloat16")
    monkeypatch.setattr(known, "TOKENS", 5)
    asked(behaviors)
    assert len(loads) == 5


def test_a_cache_that_cannot_be_written_is_told_before_anything_is_asked(
    loads, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(InputError, match="its replies for --known cannot be kept under"):
        asked([request("a")])
    assert not loads
