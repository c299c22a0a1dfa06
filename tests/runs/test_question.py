"""The question: flat options become its fields, and what does not fit is refused by name."""

import dataclasses
import inspect

import pytest

from robench import run
from robench.errors import InputError
from robench.runs.question import OPTIONS, ModelSpec, Question, Replies, Texts


def test_flat_options_are_fields():
    question = Question.of(
        model="m", n=3, seeds=[0, 1], attacks=["gcg"], settings={"gcg": {"steps": 2}}, samples=2
    )
    assert question == Question(
        attacks=("gcg",),
        seeds=(0, 1),
        settings={"gcg": {"steps": 2}},
        model=ModelSpec(id="m"),
        texts=Texts(n=3),
        replies=Replies(samples=2),
    )
    assert Question.of() == Question()


def test_every_field_is_an_option_with_help():
    declared = [
        field
        for cls in (Question, ModelSpec, Texts, Replies)
        for field in dataclasses.fields(cls)
        if field.name not in ("model", "texts", "replies") or cls is not Question
    ]
    assert len(OPTIONS) == len(declared)
    assert all(field.metadata["help"] for field in declared)


def test_the_python_call_shows_every_option():
    parameters = inspect.signature(run).parameters
    of_running = {"out", "keep_going", "replace", "tflops"}
    of_workers = {"workers", "gpus_per_worker", "chunk_timeout"}
    assert {*OPTIONS} | of_running | of_workers == set(parameters)
    assert parameters["max_new_tokens"].default is None
    with pytest.raises(InputError, match="there is no option 'atacks'; did you mean 'attacks'"):
        run(atacks=["gcg"])


def test_settings_are_words_or_a_mapping():
    words = Question.of(settings=["gcg.steps=2", "gcg.width=3"])
    assert words.settings == {"gcg": {"steps": "2", "width": "3"}}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"attacks": "gcg"}, r"attacks must be a list: attacks=\['gcg'\]"),
        ({"judges": "exact"}, r"judges must be a list: judges=\['exact'\]"),
        ({"n": "3"}, r"n must be int \| None, got '3'"),
        ({"n": 0}, "n must be at least 1, got 0"),
        ({"seeds": [0, -1]}, "seeds must be at least 0"),
        ({"samples": -1}, "samples must be at least 0"),
        ({"tier": "papr"}, "no tier called 'papr'; did you mean 'paper'"),
        ({"dtype": "fp32"}, "no dtype called 'fp32'"),
        ({"device": "cud"}, "no device called 'cud'; did you mean 'cuda'"),
        ({"judge_device": "cuda:"}, "no device called 'cuda:'"),
        ({"temperature": 0.5}, "give --samples"),
        ({"temperature": 0.0, "samples": 2}, "more than 0"),
        ({"settings": {"gcg": 3}}, "settings must map methods to fields"),
        ({"settings": "gcg.steps=3"}, r"or \['gcg.steps=100'\]|gcg.steps=100"),
        ({"settings": ["steps=3"]}, "METHOD.FIELD=VALUE"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, told):
    with pytest.raises(InputError, match=told):
        Question.of(**options)


def test_the_matrix_gives_what_the_question_leaves_open():
    named = Question.of(matrix="smoke").chosen_matrix()
    assert (named.attacks, named.n, named.benign) == (("direct", "repe"), 8, 12)
    chosen = Question.of(matrix="smoke", attacks=["gcg"], n=2, n_benign=3).chosen_matrix()
    assert (chosen.attacks, chosen.n, chosen.benign) == (("gcg",), 2, 3)
    assert chosen.defenses == named.defenses
    with pytest.raises(InputError, match="no attacks given"):
        Question.of(attacks=[]).chosen_matrix()
