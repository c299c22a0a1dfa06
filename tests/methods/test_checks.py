"""`robench check`: what it finds in methods of strangers, and what it leaves alone."""

import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch

from robench.errors import InputError
from robench.methods.registry import load_class
from robench.methods.storable import memory_problem, prompt_problem
from robench.results.artifacts import packed_prompts
from robench.testing import Report, check, judge_problems, tiny

PREFILLING = f"{Path(__file__).parents[2] / 'attacks' / 'prefilling.py'}:Prefilling"
HEAD = """
import math
import random
import torch
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar
from robench.types import GAP, Attempt, Prompt, user


COUNT = []


@dataclass(frozen=True)
class Half:
    layer: int = 1
    scale: object = 0.5
    def __call__(self, h, role):
        return h / 2


@dataclass
class Thawed:
    layer: int = 1
    def __call__(self, h, role):
        return h


class Bare:
    layer = 1
    def __call__(self, h, role):
        return h


@dataclass(frozen=True)
class Still:
    layer: int = 1

"""


RUN = "run(self, model, behaviors, ctx)"
DIRECT = "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """`written(verb, body)`: a file with a class `Mine` whose verb has this body."""
    monkeypatch.chdir(tmp_path)

    def write(signature: str, body: str, declared: str = "", above: str = "") -> str:
        lines = [
            HEAD + "@dataclass(frozen=True)",
            "class Mine:",
            *([f"    {declared}"] if declared else []),
            *([f"    {above}"] if above else []),
            f"    def {signature}:",
            indent(dedent(body).strip(), " " * 8),
        ]
        Path("mine.py").write_text("\n".join(lines) + "\n")
        return "./mine.py:Mine"

    return write


def attack(written, body: str, declared: str = "") -> Report:
    return check(written(RUN, body, declared))


def prompts(written, prompt: str) -> Report:
    body = f"for b in behaviors:\n    yield Attempt(b, {prompt}, final=True)"
    return attack(written, body)


def test_a_strangers_attack_of_a_few_lines_passes():
    assert check(PREFILLING) == ([], [])


@pytest.mark.parametrize(
    ("problem", "body"),
    [
        ("has 0 final attempts, not one", "yield Attempt(behaviors[0], Prompt(user('a')))"),
        ("tiny-lamp has 0 final attempts, not one", "return iter(())"),
        (
            "tiny-boat x has 2 final attempts, not one",
            "for b in behaviors:\n"
            "    for _ in range(2):\n"
            "        yield Attempt(b, Prompt(user('a')), tag='x', final=True)",
        ),
        (
            "behaviors it was not given: ['stranger']",
            "for b in behaviors:\n"
            "    yield Attempt(b, Prompt(user('a')), final=True)\n"
            "yield Attempt(replace(b, id='stranger'), Prompt(user('a')), final=True)",
        ),
        (
            "it changes the behaviors it was given: ['tiny-boat', 'tiny-clock', 'tiny-lamp']",
            "for b in behaviors:\n"
            "    yield Attempt(replace(b, text='Hi'), Prompt(user('a')), final=True)",
        ),
        ("objects of type str, not Attempts", "yield 'a prompt'"),
        (
            "the prompt of an attempt is of type str",
            "for b in behaviors: yield Attempt(b, b.text, final=True)",
        ),
        (
            "a trace that is not a tuple of finite numbers",
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True, trace=[1.0])",
        ),
        (
            "a trace that is not a tuple of finite numbers",
            "for b in behaviors:\n"
            "    yield Attempt(b, Prompt(user('a')), final=True, trace=(math.nan,))",
        ),
        (
            "a step or a number of tries that is not an int",
            "for b in behaviors:\n"
            "    yield Attempt(b, Prompt(user('a')), step=torch.tensor(1), final=True)",
        ),
        (
            "an edge_of_grid that is not True or False",
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True, edge_of_grid=1)",
        ),
        (
            "same when run again",
            "for b in behaviors: yield Attempt(b, Prompt(user(str(torch.rand(1)))), final=True)",
        ),
        (
            "depends on the behaviors beside",
            "for b in behaviors: yield Attempt(b, Prompt(user(str(len(behaviors)))), final=True)",
        ),
        (
            "left hooks",
            "model.network.register_forward_hook(lambda *a: None)\n"
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ),
        (
            "left hooks",
            "model.network.register_forward_hook(lambda *a: 1 / 0)\n"
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ),
        (
            "weights are not",
            "next(model.network.parameters()).data += 1\n"
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ),
        ("raises ZeroDivisionError: division by zero (./mine.py:", "1 / 0; yield"),
        ("raises TypeError: 'NoneType' object is not iterable", "return None"),
        (
            "ctx.memo('fit') was given a float for 'mean', not a tensor",
            "ctx.memo('fit', lambda: {'mean': 0.5})\n"
            "for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ),
    ],
)
def test_the_check_finds(written, problem, body):
    problems, warnings = attack(written, body)
    assert any(problem in words for words in problems), problems
    assert not warnings


@pytest.mark.parametrize(
    ("problem", "prompt"),
    [
        ("messages are no tuple", "Prompt([{'role': 'user', 'content': 'a'}])"),
        ("no dict of `role` and `content`", "Prompt(('Hello',))"),
        ("something that is not text", "Prompt(({'role': 'user', 'content': 1},))"),
        ("still has the mark GAP", "Prompt(user(f'Hello{GAP}'))"),
        ("a prompt cannot be answered", "Prompt(user('a'), soft=torch.zeros(1, 32))"),
        ("shape (2, 7), not (k, 32)", "Prompt(user(GAP), soft=torch.zeros(2, 7))"),
        ("shape (32,), not (k, 32)", "Prompt(user(GAP), soft=torch.zeros(32))"),
        ("no tensor of floats", "Prompt(user(GAP), soft=[[0.0] * 32])"),
        ("no tensor of floats", "Prompt(user(GAP), soft=torch.zeros(2, 32).long())"),
        ("vectors are not finite", "Prompt(user(GAP), soft=torch.full((2, 32), math.nan))"),
        ("edits are no tuple", "Prompt(user('a'), edits=[Half()])"),
        ("put @dataclass(frozen=True) above Thawed", "Prompt(user('a'), edits=(Thawed(),))"),
        ("put @dataclass(frozen=True) above Bare", "Prompt(user('a'), edits=(Bare(),))"),
        ("cannot be called as edit(h, role)", "Prompt(user('a'), edits=(Still(),))"),
        ("field 'scale' of type type", "Prompt(user('a'), edits=(Half(scale=int),))"),
        (
            "field 'scale' that safetensors cannot save",
            "Prompt(user('a'), edits=(Half(scale=torch.eye(2).to_sparse()),))",
        ),
    ],
)
def test_the_check_passes_no_prompt_that_a_run_cannot_store(written, problem, prompt):
    problems, _ = prompts(written, prompt)
    assert any(problem in words for words in problems), problems


@pytest.mark.parametrize(
    "prompt",
    [
        "Prompt(user('a'))",
        "Prompt(user(f'a{GAP}b'), soft=torch.zeros(2, 32))",
        "Prompt(user('a'), edits=(Half(),))",
        "Prompt(user('a'), edits=(Half(scale=torch.ones(3)), Half(scale=(1, 'a', None))))",
    ],
)
def test_what_the_check_takes_is_stored(written, prompt):
    assert prompts(written, prompt) == ([], [])
    names = vars(sys.modules[load_class("attack", "./mine.py:Mine").__module__])
    made = eval(prompt, names)
    assert prompt_problem(made, tiny().width) == ""
    packed_prompts([made], "tensors.safetensors")


def test_names_of_what_is_memorised_can_be_read_back():
    assert memory_problem({"a/b": {"c": torch.zeros(1)}}) == ""
    assert "text without a slash" in memory_problem({"a": {"b/c": torch.zeros(1)}})


@pytest.mark.parametrize(
    ("problem", "function"),
    [
        ("raises KeyError: 'x' (./mine.py:", "def forecast(self, lengths): return {}['x']"),
        ("its forecast is of type int, no Forecast", "def forecast(self, lengths): return 1"),
        ("accepts gives a bool, not text", "def accepts(self, behaviors): return True"),
        ("reads a file that does not exist", "@property\n    def files(self): return ('no',)"),
        ("not JSON serializable", "@property\n    def identity(self): return {1, 2}"),
    ],
)
def test_the_check_calls_what_is_declared(written, problem, function):
    written(RUN, DIRECT)
    with Path("mine.py").open("a") as file:
        file.write(f"\n    {function}\n")
    problems, _ = check("./mine.py:Mine")
    assert any(problem in words for words in problems), problems


DEFENSE = "applied(self, model, ctx, cache)"
MANAGED = "@contextmanager"


def test_a_defense_that_changes_nothing_is_warned_of(written):
    found = check(written(DEFENSE, "yield model", above=MANAGED))
    assert found.problems == []
    assert (
        found.warnings[0]
        == "on a tiny llama and a tiny gemma2: it changes neither the states nor the replies"
    )
    baseline = written(DEFENSE, "yield model", "role: ClassVar[str] = 'control'", MANAGED)
    assert check(baseline) == ([], [])
    assert check(written(DEFENSE, "yield model.edited((Half(),))", above=MANAGED)) == ([], [])


@pytest.mark.parametrize(
    ("problem", "body"),
    [
        ("yields an object of type dict, no ChatModel", "yield {}"),
        ("raises RuntimeError: generator didn't yield", "return\nyield"),
        ("raises KeyError: 'a' (./mine.py:", "{}['a']\nyield model"),
        ("raises OSError: no disk (./mine.py:", "yield model\nraise OSError('no disk')"),
        ("not the same model", "COUNT.append(1)\nyield model.edited((Half(len(COUNT) % 2),))"),
        (
            "weights are not",
            "next(model.network.parameters()).data += 1\nyield model",
        ),
    ],
)
def test_the_check_finds_in_a_defense(written, problem, body):
    problems, _ = check(written(DEFENSE, body, above=MANAGED))
    assert any(problem in words for words in problems), problems


JUDGE = "score(self, behaviors, replies)"


def judge(written, body: str) -> list[str]:
    return check(written(JUDGE, body)).problems


@pytest.mark.parametrize(
    ("problem", "body"),
    [
        ("it gave a score of 2, not one from 0 to 1 or NaN", "return [2] * len(replies)"),
        ("it gave a score of -0.5", "return [-0.5] * len(replies)"),
        ("it gave 15 scores for 16 replies", "return [0.0] * (len(replies) - 1)"),
        ("it gave a score of None, not a number", "return [None] * len(replies)"),
        ("it gave NoneType, not a list of scores", "return None"),
        ("not give the same scores", "return [random.random() for _ in replies]"),
        ("it gave 1 scores for 0 replies", "return [0.0] * max(1, len(replies))"),
        ("raises ZeroDivisionError: division by zero (./mine.py:",
         "return [1 / len(r) and 0.0 for r in replies]"),
        ("raises UnicodeEncodeError", "return [0.0 for r in replies if r.encode('ascii') or 1]"),
        ("raises KeyError: False", "return [{True: 0.0}[b.harmful] for b in behaviors]"),
    ],
)  # fmt: skip
def test_the_check_finds_in_a_judge(written, problem, body):
    problems = judge(written, body)
    assert any(problem in words for words in problems), problems


def test_a_judge_may_say_that_it_cannot_judge(written):
    assert judge(written, "return [math.nan] * len(replies)") == []
    assert judge(written, "return torch.zeros(len(replies)).tolist()") == []


def test_a_judge_that_knows_other_requests_is_not_asked(written):
    reference = written(JUDGE, "1 / 0")
    with Path("mine.py").open("a") as file:
        file.write("\n    def accepts(self, behaviors): return 'knows chess alone'\n")
    assert check(reference) == ([], ["its scores were not checked, as it knows chess alone"])


def test_what_an_endpoint_lacks_is_told_before_it_is_asked():
    problems, _ = check("endpoint")
    assert problems == ["endpoint: name the judge model: --set endpoint.model=NAME"]


def test_the_kind_is_that_of_the_verb(written):
    with pytest.raises(InputError, match=r"Mine has none of the methods run .* applied .* score"):
        check(written("walk(self)", "pass"))


def test_a_file_without_a_class_is_answered_with_its_classes(written):
    written(RUN, "yield")
    with Path("mine.py").open("a") as file:
        file.write("\n\nclass Other:\n    def score(self, behaviors, replies): ...\n")
    with pytest.raises(InputError) as error:
        check("./mine.py")
    assert str(error.value) == "add :Class: ./mine.py has Mine, Other"


def test_settings_that_are_no_numbers_are_left_alone(written):
    declared = "steps: str = 'many'\n    width: tuple[int, ...] = (1, 2)\n    batch: bool = True"
    assert attack(written, DIRECT, declared) == ([], [])


def test_a_judge_in_code_is_held_to_the_same(tmp_path):
    class Wrong:
        def score(self, behaviors, replies):
            return [3.0] * len(replies)

    assert judge_problems(Wrong()) == ["it gave a score of 3, not one from 0 to 1 or NaN"]
