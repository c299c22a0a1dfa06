"""Behavior files: published ones as they are, and everything that one's own may get wrong."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from robench.behaviors import (
    affirmation,
    checksum,
    disjoint,
    draw,
    harmless,
    load,
    load_examples,
)
from robench.errors import InputError
from robench.types import Behavior

PUBLISHED = {
    "harmbench_behaviors_text_all.csv": 400,
    "advbench_behaviors.csv": 520,
    "strongreject_dataset.csv": 313,
    "harmful_instructions.json": 260,
    "harmless_instructions.json": 400,
}


@pytest.fixture(scope="module")
def published():
    data = os.environ.get("ROBENCH_TEST_DATA")
    if not data:
        pytest.skip("ROBENCH_TEST_DATA is not set")
    return Path(data) / "behaviors"


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


# Published files


@pytest.mark.parametrize(("name", "size"), PUBLISHED.items())
def test_published_files_load_as_they_are(published, name, size):
    behaviors = load(published / name)
    assert len(behaviors) == len({b.id for b in behaviors}) == size
    assert all(b.text and b.target for b in behaviors)
    assert checksum(behaviors) == checksum(load(published / name))


def test_harmbench_keeps_contexts_ids_and_targets(published):
    behaviors = {b.id: b for b in load(published / "harmbench_behaviors_text_all.csv")}
    targets = json.loads((published / "harmbench_targets_text.json").read_text())
    assert {i: b.target for i, b in behaviors.items()} == targets
    assert sum(bool(b.context) for b in behaviors.values()) >= 90
    assert len({b.text for b in behaviors.values()}) == 393
    assert len({(b.text, b.context) for b in behaviors.values()}) == 400
    assert Counter(b.category for b in behaviors.values())["copyright"] == 100


def test_targets_beside_go_to_their_own_file(published):
    behaviors = load(published / "advbench_behaviors.csv")
    targets = json.loads((published / "advbench_targets.json").read_text())
    assert {b.id: b.target for b in behaviors} == targets
    strongreject = load(published / "strongreject_dataset.csv")
    assert all(b.target == affirmation(b.text) for b in strongreject)


def test_instructions_that_are_behaviors_are_found(published):
    references = load(published / "harmful_instructions.json")
    behaviors = load(published / "advbench_behaviors.csv")
    assert len(disjoint(references, behaviors)) == 260 - 117
    harmbench = load(published / "harmbench_behaviors_text_all.csv")
    assert len(disjoint(harmbench, harmbench[:200])) == 200  # some differ in context only


def test_a_draw_from_harmbench_keeps_its_categories(published):
    behaviors = load(published / "harmbench_behaviors_text_all.csv")
    whole = Counter(b.category for b in behaviors)
    drawn = Counter(b.category for b in draw(behaviors, 80))
    assert all(abs(drawn[category] - n / 5) <= 2 for category, n in whole.items())


# The harmless list


def test_the_harmless_list_is_large_varied_and_harmless():
    requests = harmless()
    assert len({b.text for b in requests}) == len(requests) >= 100
    assert not any(b.harmful for b in requests)
    shares = Counter(b.category for b in requests)
    assert shares["near-harmful"] >= 30
    assert len(shares) >= 6


# One's own files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,prompt,target,category,context\nx,Do it,Sure,c,above\n"),
        ("a.csv", "﻿ID,Text,Target,Category,Context\r\nx,Do it,Sure,c,above\r\n"),
        (
            "a.csv",
            "BehaviorID,Behavior,Target,SemanticCategory,ContextString\nx,Do it,Sure,c,above",
        ),
        ("a.csv", 'id,title,behavior,goal,target,category,context\nx,t,t,"Do it",Sure,c,above\n'),
        (
            "a.jsonl",
            '{"id":"x","goal":"Do it","target":"Sure","category":"c","context":"above"}\n\n',
        ),
        (
            "a.json",
            '[{"id":"x","text":" Do it ","target":"Sure","category":"c","context":"above"}]',
        ),
    ],
)
def test_columns_are_found_by_name(write, name, content):
    assert load(write(name, content)) == [Behavior("x", "Do it", "Sure", "c", "above")]


def test_ids_are_stable_and_tell_contexts_apart(write):
    rows = [("Do it", ""), ("Do it", "above"), ("Do that", "")]
    lines = [json.dumps({"prompt": text, "context": context}) for text, context in rows]
    ids = [b.id for b in load(write("a.jsonl", "\n".join(lines)))]
    assert len(set(ids)) == 3
    assert ids[::-1] == [b.id for b in load(write("b.jsonl", "\n".join(lines[::-1])))]


def test_a_target_of_the_row_wins_over_files_and_files_over_the_template(write):
    write("a_targets.json", json.dumps({"x": "from a", "y": "from a"}))
    write("b_targets.json", json.dumps({"y": "from b", "z": 3}))
    write("c_targets.json", json.dumps(["no mapping"]))
    behaviors = load(write("mine.csv", "id,prompt,target\nx,X,own\ny,Y,\nz,Z,\n"))
    assert [b.target for b in behaviors] == ["own", "from a", affirmation("Z")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "", "has no rows"),
        ("a.csv", "prompt\n", "has no rows"),
        ("a.json", "", "has no rows"),
        ("a.json", "[]", "has no rows"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.txt", "prompt\nDo it\n", "must be a .csv, .jsonl, .json file"),
        ("a.csv", "id,question\n1,Do it\n", "no column for the text: it needs one of prompt, text"),
        ("a.csv", "id,question\n1,Do it\n", "it has id, question"),
        ("a.csv", "id,prompt\n1,Do it\n1,Do that\n", "row 2 repeats the id '1' of row 1"),
        ("a.csv", "prompt\nDo it\nDo it\n", "row 2 repeats the text of row 1"),
        ("a.csv", "id,prompt\n1,Do it\n2,  \n", "row 2 has no text"),
        ("a.csv", "prompt\nDo it, please\n", "row 1 has more fields than there are columns"),
        ("a.csv", 'prompt\n"Do it\n', "is not CSV: unexpected end of data"),
        ("a.csv", b"prompt\nDo \xff it\n", "is not UTF-8 text: byte 10"),
        ("a.jsonl", '{"prompt": "Do it"}\n{"prompt": \n', "row 2 is not JSON"),
        ("a.jsonl", '{"prompt": "Do it"}\n["x"]\n', "row 2 is no record, but a list"),
        ("a.jsonl", '{"prompt": {"text": "Do it"}}\n', "row 1: prompt must be text, got a dict"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "row 1: prompt holds half a character"),
        ("a.json", '{"prompt": "Do it"}', "must hold a list of records"),
        ("a.json", '["Do it"]', "row 1 is no record, but a str"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(write, name, content, words):
    file = write(name, content)
    with pytest.raises(InputError) as error:
        load(file)
    assert words in str(error.value)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*: No such file or directory"):
        load(tmp_path / "nowhere.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        load(tmp_path / "folder.csv")


# Drawing


def behaviors_of(sizes):
    return [
        Behavior(f"{category}{i}", f"{category} {i}", category=category)
        for category, size in sizes.items()
        for i in range(size)
    ]


def test_a_draw_is_seeded_nested_and_in_order():
    behaviors = behaviors_of({"a": 50, "b": 30, "c": 20})
    ten, twenty = draw(behaviors, 10, seed=3), draw(behaviors, 20, seed=3)
    assert ten == draw(behaviors, 10, seed=3)
    assert set(ten) < set(twenty)
    assert set(ten) != set(draw(behaviors, 10, seed=4))
    assert twenty == [b for b in behaviors if b in twenty]
    assert {b.id for b in draw(behaviors[::-1], 10, seed=3)} == {b.id for b in ten}
    assert draw(behaviors, 100) == behaviors


def test_a_draw_gives_every_category_its_share():
    behaviors = behaviors_of({"a": 50, "b": 30, "c": 20})
    for seed in range(20):
        drawn = Counter(b.category for b in draw(behaviors, 10, seed))
        assert all(abs(drawn[c] - share) <= 1 for c, share in {"a": 5, "b": 3, "c": 2}.items())


def test_many_small_categories_are_drawn_as_often_as_a_large_one():
    behaviors = behaviors_of({"a": 100} | {f"b{i}-": 1 for i in range(100)})
    large = [sum(b.category == "a" for b in draw(behaviors, 40, seed)) for seed in range(20)]
    assert 15 <= sum(large) / 20 <= 25


def test_drawing_more_than_there_are_says_how_many_there_are():
    with pytest.raises(InputError, match="cannot draw 4 behaviors: there are 3"):
        draw(behaviors_of({"a": 3}), 4)


# Leakage


def test_references_are_compared_by_folded_text_and_context():
    behaviors = [Behavior("1", "Do  IT", context="Above"), Behavior("2", "Stop")]
    kept, gone, gone_too = (
        Behavior("3", "do it"),
        Behavior("4", "do it ", context="above"),
        Behavior("5", "STOP"),
    )
    assert disjoint([kept, gone, gone_too], behaviors) == [kept]


def test_a_checksum_sees_every_field_and_the_order():
    a, b = behaviors_of({"a": 2})
    sums = [checksum(s) for s in ([a, b], [b, a], [a], [a, Behavior(b.id, b.text, "t", "a")])]
    assert len(set(sums)) == 4


# Training text


def test_examples_have_a_reply_and_defaults(write):
    file = write(
        "a.jsonl",
        '{"prompt": "Do it", "output": "Sure."}\n'
        '{"prompt": "Do it", "reply": "No.", "kind": "Refusal"}\n'
        '{"prompt": "Help", "answer": "Of course.", "harmful": false, "category": "c"}\n',
    )
    examples = load_examples(file)
    assert [e.reply for e in examples] == ["Sure.", "No.", "Of course."]
    assert [e.kind for e in examples] == ["answer", "refusal", "answer"]
    assert [e.behavior.harmful for e in examples] == [True, True, False]
    assert examples[0].behavior.id == examples[1].behavior.id


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt\nDo it\n", "no column for the reply"),
        ("reply\nSure.\n", "no column for the text"),
        ("prompt,reply\nDo it,\n", "row 1 has no reply"),
        ("prompt,reply\n,Sure.\n", "row 1 has no text"),
        ("prompt,reply,kind\nDo it,Sure.,yes\n", "kind must be answer or refusal, got 'yes'"),
        ("prompt,reply,harmful\nDo it,Sure.,2\n", "harmful must be true or false, got '2'"),
    ],
)
def test_wrong_examples_are_refused(write, content, words):
    with pytest.raises(InputError) as error:
        load_examples(write("a.csv", content))
    assert words in str(error.value)
