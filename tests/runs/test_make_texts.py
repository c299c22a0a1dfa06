"""Training text that a model makes itself, and that a finished run holds."""

import json

import pytest

from robench import organism
from robench.errors import InputError
from robench.judges.exact import Exact
from robench.runs.from_run import begun, examples_of_run, whole
from robench.runs.question import Texts
from robench.runs.run_texts import gather
from robench.texts.refusals import LISTS, SENTENCES, refused
from robench.texts.training_texts import load_examples, with_refusals
from robench.types import Behavior, Example

ASKED = organism.behaviors("dev")
HARMFUL = [b for b in ASKED if b.harmful][:4]
HARMLESS = [b for b in ASKED if not b.harmful][:4]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Files of harmful and of harmless requests of the organism's `dev` split."""
    folder = tmp_path_factory.mktemp("sets")
    for name, behaviors in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        rows = [{"id": b.id, "text": b.text, "target": b.target} for b in behaviors]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def words(sets):
    return ["--behaviors", sets / "harmful.jsonl", "--benign", sets / "harmless.jsonl",
            "--device", "cpu", "--threads", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def finished(sets, tmp_path_factory):
    """A run of prefilling, which gets harm out of the undefended organism."""
    from robench import run

    out = tmp_path_factory.mktemp("runs") / "run"
    run(
        attacks=["direct", "prefilling"], defenses=["none"], device="cpu", threads=1, out=out,
        behaviors=sets / "harmful.jsonl", benign=sets / "harmless.jsonl",
    )  # fmt: skip
    return out


def test_every_list_knows_our_refusals():
    assert all(refused(sentence, name) for sentence in SENTENCES for name in LISTS)


def test_answers_are_told_once_and_harmful_requests_refused_once():
    one, two = Behavior("a", "Do it."), Behavior("b", "Is it?", harmful=False)
    answers = [
        Example(one, "Yes, so.", "answer"), Example(one, "yes,  so.", "answer"),
        Example(one, "No.", "answer"), Example(two, "Yes, so.", "answer"),
    ]  # fmt: skip
    examples = with_refusals(answers, ("I cannot.", "Sorry."))
    assert examples[:-1] == [answers[0], answers[2], answers[3]]
    assert (examples[-1].behavior, examples[-1].kind) == (one, "refusal")
    assert with_refusals(answers[::-1], ("I cannot.", "Sorry."))[-1] == examples[-1]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("It is so. And th", "It is so."),
        ('He said "so." Then', 'He said "so."'),
        ("Pi is 3.14 and", ""),
        ("so it goes", ""),
    ],
)
def test_a_reply_that_was_cut_ends_with_its_last_sentence(reply, expected):
    assert whole(reply, truncated=True) == expected
    assert whole(reply, truncated=False) == reply


def test_a_prefilled_reply_has_its_beginning():
    assert begun("Sure, here is", "a guide.") == "Sure, here is a guide."
    assert begun("Sure, here is", " a guide.") == "Sure, here is a guide."
    assert begun("Sure", ", here.") == "Sure, here."
    assert begun("", "Sure.") == "Sure."


def test_a_run_is_training_text(finished):
    examples, note = examples_of_run(finished)
    answers = [e for e in examples if e.kind == "answer" and e.behavior.harmful]
    assert answers and {e.behavior.text for e in answers} <= {b.text for b in HARMFUL}
    assert all(e.reply.startswith("Sure, here is") for e in answers)
    assert min(Exact().score([e.behavior for e in answers], [e.reply for e in answers])) >= 0.8
    assert {e.behavior.text for e in examples if not e.behavior.harmful} <= {
        b.text for b in HARMLESS
    }
    refusals = {e.behavior.text for e in examples if e.kind == "refusal"}
    assert refusals == {e.behavior.text for e in answers}
    assert f"{len(answers)} harmful" in note


def test_what_a_run_found_is_trained_on_but_not_tested(finished, sets):
    texts = gather("organism", Texts(train=(finished,)), 4, 4)
    assert texts.examples == examples_of_run(finished)[0]
    assert any(str(finished) in note for note in texts.notes)
    with pytest.raises(InputError, match="training text are among the harmful requests"):
        gather("organism", Texts(train=(finished,), behaviors=sets / "harmful.jsonl"), 4, 4)


def test_the_model_makes_its_own_training_text(call, words, tmp_path):
    out = tmp_path / "texts.jsonl"
    code, told, err = call("texts", *words, "--out", out)
    assert code == 0, err
    examples, _ = load_examples(out)
    answers = [e for e in examples if e.kind == "answer"]
    scores = Exact().score([e.behavior for e in answers], [e.reply for e in answers])
    assert min(scores) >= 0.8
    harmful = [e for e in answers if e.behavior.harmful]
    assert harmful and all(e.reply.startswith("Sure, here is") for e in harmful)  # prefilled
    assert len(answers) - len(harmful) == len(HARMLESS)
    refusals = [e for e in examples if e.kind == "refusal"]
    assert [e.behavior.text for e in refusals] == [e.behavior.text for e in harmful]
    assert {e.reply for e in refusals} <= set(SENTENCES)
    record = json.loads((tmp_path / "texts.jsonl.record.json").read_text())
    assert record["counts"]["answers to harmful requests"] == len(harmful)
    assert record["model"] == "organism" and record["judge"]["exact"]["method"] == "exact"
    assert f"{len(harmful)} answers to harmful requests" in told
    code, _, err = call("texts", *words, "--out", out)
    assert code == 2 and "already exists" in err


def test_own_refusals_and_a_run_s_replies_are_used(call, words, finished, tmp_path):
    (tmp_path / "own.txt").write_text("I cannot say.\n\nNo, sorry.\n")
    out = tmp_path / "texts.jsonl"
    more = ["--refusals", tmp_path / "own.txt", "--run", finished]
    code, _, err = call("texts", *words, *more, "--out", out)
    assert code == 0, err
    examples, _ = load_examples(out)
    replies = {e.reply for e in examples_of_run(finished)[0] if e.kind == "answer"}
    assert replies <= {e.reply for e in examples}
    assert {e.reply for e in examples if e.kind == "refusal"} <= {"I cannot say.", "No, sorry."}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out", "texts.csv"], "must end in .jsonl"),
        (["--out", "a.jsonl", "--tested", "{sets}/harmful.jsonl"], "requests of --tested"),
        (["--out", "a.jsonl", "--run", "{sets}"], "run.json"),
        (["--out", "a.jsonl", "--refusals", "{sets}/no.txt"], "no.txt"),
        (["--out", "a.jsonl", "--refusals", "{sets}/harmful.jsonl"], "column for the reply"),
        (["--out", "a.jsonl", "--judges", "contains"], "looks for right answers"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(
    call, words, sets, tmp_path, monkeypatch, more, message
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("texts", *words, *(word.format(sets=sets) for word in more))
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
