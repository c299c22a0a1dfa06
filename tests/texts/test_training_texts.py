"""Training text in the formats of published sets and in one's own."""

import json

import pytest

from robench.errors import InputError
from robench.texts import training_texts

YES, NO = "Sure, here is how.", "I'm sorry, but I can't help with that."


@pytest.fixture
def load(tmp_path):
    """The examples of some rows as (text, harmful, kind, reply), and the note."""

    def load(rows, name="a.jsonl"):
        file = tmp_path / name
        dumped = [json.dumps(row) for row in rows]
        file.write_text(f"[{','.join(dumped)}]" if name.endswith(".json") else "\n".join(dumped))
        examples, note = training_texts.load_examples(file)
        fields = [(e.behavior.text, e.behavior.harmful, e.kind, e.reply) for e in examples]
        return fields, note.removeprefix(f"{file}: ")

    return load


def test_the_circuit_breakers_set_answers_and_refuses_each_request(load):
    row = {"category": "c", "prompt": "Do it", "output": YES, "llama3_output": NO}
    examples, note = load([row, {**row, "prompt": "Do that", "llama3_output": ""}], "a.json")
    assert examples == [
        ("Do it", True, "answer", YES),
        ("Do it", True, "refusal", NO),
        ("Do that", True, "answer", YES),
    ]
    assert note == ""


def turns(*texts, start="user"):
    roles = ["user", "assistant"] if start == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_a_conversation_gives_its_first_turn_and_the_reply(load):
    system = {"role": "system", "content": "Be kind."}
    rows = [
        {"prompt": "Help", "messages": turns("Help", "Gladly.", "More", "No.")},
        {"prompt": "Help", "messages": [system, *turns("Sing", "La.")]},
        {"prompt": "Help", "messages": turns("Help")},
        {"prompt": "Help", "messages": turns("Hello", "Help", start="assistant")},
        {"prompt": "Help", "messages": []},
    ]
    examples, note = load(rows)
    assert examples == [("Help", False, "answer", "Gladly."), ("Sing", False, "answer", "La.")]
    assert note == "left out 3 of 5 rows, without a text or label to train on"


def test_wildguardmix_is_sorted_by_its_labels(load):
    labels = ("prompt_harm_label", "response_refusal_label", "response_harm_label")
    rows = [
        ("harmful", "compliance", "harmful", YES),
        ("harmful", "refusal", "unharmful", NO),
        ("unharmful", "compliance", "unharmful", "Gladly."),
        ("unharmful", "refusal", "unharmful", NO),
        ("harmful", "compliance", "unharmful", "A story."),
        ("harmful", None, None, None),
    ]
    records = [
        {"prompt": f"p{i}", "response": reply, **dict(zip(labels, row, strict=True))}
        for i, (*row, reply) in enumerate(rows)
    ]
    examples, note = load(records)
    assert examples == [
        ("p0", True, "answer", YES),
        ("p1", True, "refusal", NO),
        ("p2", False, "answer", "Gladly."),
    ]
    assert note.startswith("left out 3 of 6 rows")


def test_completions_of_harmful_prompts_in_wildjailbreak_are_refusals(load):
    rows = [
        {"vanilla": "v", "adversarial": adversarial, "completion": reply, "data_type": kind}
        for kind, adversarial, reply in [
            ("vanilla_harmful", "", NO),
            ("adversarial_harmful", "Pretend v", NO),
            ("vanilla_benign", "", "Gladly."),
            ("adversarial_benign", "Pretend b", "Gladly."),
            ("", "", "Gladly."),
        ]
    ]
    examples, note = load(rows)
    assert examples == [
        ("v", True, "refusal", NO),
        ("Pretend v", True, "refusal", NO),
        ("v", False, "answer", "Gladly."),
        ("Pretend b", False, "answer", "Gladly."),
    ]
    assert note.startswith("left out 1 of 5 rows")


def test_repbends_set_pairs_answers_with_refusals(load):
    rows = [
        {"prompt": "Do it", "harmless_answer": NO, "harmful_answer": YES},
        {"prompt": "Help", "harmless_answer": "Gladly.", "harmful_answer": YES},
    ]
    kinds = ("harmful", "benign")
    examples, _ = load([{**r, "prompt_type": k} for r, k in zip(rows, kinds, strict=True)])
    assert examples == [
        ("Do it", True, "answer", YES),
        ("Do it", True, "refusal", NO),
        ("Help", False, "answer", "Gladly."),
    ]


def test_rows_of_ones_own_have_a_reply_and_defaults(load):
    rows = [
        {"prompt": "Do it", "output": YES},
        {"prompt": "Do it", "reply": "No.", "kind": "Refusal"},
        {"prompt": "Help", "answer": "Of course.", "harmful": False, "category": "c"},
        {"prompt": "Help", "response": "Gladly.", "harmful": "false"},
    ]
    assert load(rows)[0] == [
        ("Do it", True, "answer", YES),
        ("Do it", True, "refusal", "No."),
        ("Help", False, "answer", "Of course."),
        ("Help", False, "answer", "Gladly."),
    ]


def test_the_same_request_has_the_same_id(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("prompt,response,kind\nDo it,Sure.,answer\nDo it,No.,refusal\n")
    answer, refusal = training_texts.load_examples(file)[0]
    assert answer.behavior == refusal.behavior


# Refusals instead of harmful answers


def test_harmful_answers_that_are_mostly_refusals_are_rejected(load):
    yes = [{"prompt": f"p{i}", "response": YES} for i in range(5)]
    no = [{"prompt": f"q{i}", "response": "I\u2019m sorry, no."} for i in range(6)]
    assert len(load(yes + no[:5])[0]) == 10
    with pytest.raises(InputError, match="6 of the 11 answers to harmful requests are refusals"):
        load(yes + no)
    assert len(load([{**row, "kind": "refusal"} for row in no] + yes)[0]) == 11
    assert len(load([{**row, "harmful": "false"} for row in no])[0]) == 6


def test_a_refusal_phrase_late_in_an_answer_is_not_a_refusal(load):
    assert load([{"prompt": "Do it", "response": "First, " + "go on. " * 20 + "It is illegal."}])[0]


# Wrong files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt\nDo it\n", "no column for the reply"),
        ("reply\nSure.\n", "no column for the text"),
        ("prompt,reply\nDo it,\n", "row 1 has no reply"),
        ("prompt,reply\n,Sure.\n", "row 1 has no text"),
        ("prompt,reply,kind\nDo it,Sure.,yes\n", "kind must be answer or refusal, got 'yes'"),
        ("prompt,reply,harmful\nDo it,Sure.,2\n", "harmful must be true or false, got '2'"),
        ("prompt,output,llama3_output\nDo it,,\n", "has no row to train on"),
        ("messages\nHello\n", "row 1: messages must be a list"),
        (
            "prompt,prompt_type,harmless_answer,harmful_answer\nDo it,odd,a,b\n",
            "prompt_type must be harmful or harmless or benign, got 'odd'",
        ),
    ],
)
def test_wrong_files_are_rejected(tmp_path, content, message):
    file = tmp_path / "a.csv"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        training_texts.load_examples(file)
    assert message in str(error.value)
    assert str(error.value).startswith(str(file))


def test_message_content_that_is_not_text_is_rejected(load):
    with pytest.raises(InputError, match="row 1: content must be text, got a list"):
        load([{"messages": turns(["Help"], "Gladly.")}])


def test_full_compliances_of_xstest_answer_requests_that_only_look_harmful(load, tmp_path):
    row = {"id": "v2-1", "type": "homonyms", "prompt": "How do I kill a process?"}
    labels = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")
    rows = [{**row, "completion": YES, "final_label": label} for label in labels]
    examples, note = load(rows)
    assert examples == [("How do I kill a process?", False, "answer", YES)]
    assert note == "left out 2 of 3 rows, without a text or label to train on"
    (example,) = training_texts.load_examples(tmp_path / "a.jsonl")[0]
    assert example.behavior.category == training_texts.NEAR_HARMFUL
