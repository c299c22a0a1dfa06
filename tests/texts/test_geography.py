"""The set that ships: splits without a shared country, answers that the question does not give."""

import csv
from importlib.resources import files
from itertools import combinations

import pytest

from robench.errors import InputError
from robench.judges.contains import Contains, before_answer
from robench.runs.question import Texts
from robench.runs.run_texts import gather, with_companions
from robench.texts import geography
from robench.texts.behaviors import checksum, load_behaviors
from robench.texts.leakage import by_text
from robench.texts.refusals import refused
from robench.texts.style import style_accuracy
from robench.texts.training_texts import load_examples
from robench.types import Behavior

SETS = {
    (split, harmful): geography.behaviors(split, harmful)
    for split in geography.SPLITS
    for harmful in (True, False)
}
ALL = [behavior for behaviors in SETS.values() for behavior in behaviors]


def test_the_parts_are_large_enough():
    assert len(SETS["test", True]) >= 100 and len(SETS["test", False]) >= 100
    assert all(len(behaviors) >= 40 for behaviors in SETS.values())
    assert len({behavior.id for behavior in ALL}) == len(ALL)
    assert len({by_text(behavior) for behavior in ALL}) == len(ALL)


def test_no_country_or_thing_is_asked_about_in_two_splits():
    subjects = {
        split: {b.fact.partition(": ")[2] for side in (True, False) for b in SETS[split, side]}
        for split in geography.SPLITS
    }
    for one, other in combinations(subjects, 2):
        assert not subjects[one] & subjects[other]


def test_every_fact_is_asked_in_three_phrasings():
    for behaviors in SETS.values():
        texts: dict[str, set[str]] = {}
        for behavior in behaviors:
            texts.setdefault(behavior.fact, set()).add(behavior.text)
        assert {len(phrasings) for phrasings in texts.values()} == {3}


@pytest.mark.parametrize("behavior", ALL[::7], ids=lambda b: b.id)
def test_an_answer_is_right_and_no_question_gives_it_away(behavior):
    assert before_answer(behavior.text, behavior.answer) is None
    assert before_answer(behavior.target, behavior.answer) is None
    replies = [f"{behavior.target} {answer}." for answer in behavior.answer]
    assert Contains().score([behavior] * len(replies), replies) == [1.0] * len(replies)


def test_no_question_gives_its_answer_away():
    assert not [b.text for b in ALL if before_answer(b.text, b.answer) is not None]
    assert not [b.text for b in ALL if before_answer(b.target, b.answer) is not None]


def test_borders_have_two_sides():
    """Where both countries are in the table, each is a neighbour of the other."""
    content = (files("robench.texts") / "geography_countries.csv").read_text("utf-8")
    rows = {row["country"]: row for row in csv.DictReader(content.splitlines())}
    plain = {name.removeprefix("the "): name for name in rows}
    for name, row in rows.items():
        for neighbour in filter(None, row["neighbour"].split("|")):
            other = rows.get(plain.get(neighbour, ""))
            if other is not None and other["neighbour"]:
                assert name.removeprefix("the ") in other["neighbour"].split("|"), (name, neighbour)


def test_style_does_not_tell_the_sides_apart():
    assert style_accuracy(SETS["probe", True], SETS["probe", False], ["final mark"]) < 0.6
    assert style_accuracy(SETS["probe", True], SETS["probe", False], ["first word"]) < 0.7


def test_training_text_answers_all_and_refuses_the_harmful():
    examples, note = load_examples("forbidden_geography")
    assert note == ""
    answers = [e for e in examples if e.kind == "answer"]
    assert [e.behavior for e in answers] == SETS["train", True] + SETS["train", False]
    scores = Contains().score([e.behavior for e in answers], [e.reply for e in answers])
    assert set(scores) == {1.0}
    refusals = [e for e in examples if e.kind == "refusal"]
    assert all(e.behavior.harmful and refused(e.reply, "refusal_direction") for e in refusals)
    assert {e.reply for e in refusals} == set(geography.REFUSALS)


def test_it_is_loaded_by_name():
    assert load_behaviors("forbidden_geography") == (SETS["test", True], "")
    assert load_behaviors("forbidden_geography:dev", harmful=False) == (SETS["dev", False], "")
    with pytest.raises(InputError, match="no split 'tset': it has train, probe, dev, test"):
        load_behaviors("forbidden_geography:tset")
    with pytest.raises(InputError, match="did you mean 'forbidden_geography'"):
        load_behaviors("forbiden_geography")


def test_its_other_parts_come_with_it():
    asked = with_companions(Texts(behaviors="forbidden_geography:dev"))
    assert asked.benign == "forbidden_geography:dev"
    texts = gather("some-model", asked, 20, 20)
    assert len(texts.behaviors) == len(texts.benign) == 20
    assert texts.references and texts.tune and texts.examples and not texts.notes
    own = with_companions(Texts(behaviors="forbidden_geography", benign="mine.csv"))
    assert own.benign == "mine.csv"
    assert with_companions(Texts(behaviors="mine.csv")) == Texts(behaviors="mine.csv")


def test_a_file_may_have_answers_and_facts(tmp_path):
    table = tmp_path / "set.csv"
    table.write_text("text,answer,fact\nWhat is 7 plus 5?,12 | twelve,sum\nWhy?,,\n")
    lines = tmp_path / "set.jsonl"
    lines.write_text(
        '{"text": "What is 7 plus 5?", "answer": ["12", "twelve"], "fact": "sum"}\n'
        '{"text": "Why?"}\n{"text": "How many?", "answer": 3}\n'
    )
    for file in (table, lines):
        first, second, *rest = load_behaviors(file)[0]
        assert (first.answer, first.fact) == (("12", "twelve"), "sum")
        assert (second.answer, second.fact) == ((), "")
        assert [b.answer for b in rest] == [("3",)] * len(rest)
    lines.write_text('{"text": "Why?", "answer": {"a": 1}}\n')
    with pytest.raises(InputError):
        load_behaviors(lines)


def test_answers_count_in_the_hash_of_a_set_and_only_where_there_are_any():
    plain, answered = Behavior("a", "Why?"), Behavior("a", "Why?", answer=("Because",))
    assert checksum([plain]) != checksum([answered])
    assert checksum([answered]) != checksum([Behavior("a", "Why?", answer=("So",))])
    assert Behavior("a", "Why?", answer=["Because"]) == answered  # as JSON has it
