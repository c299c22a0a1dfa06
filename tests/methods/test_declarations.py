"""What a class declares is checked when it is resolved, in one sentence with the fix."""

import subprocess
import sys

import pytest

from robench.errors import InputError
from robench.methods import registry
from robench.methods.contract import refusal
from robench.methods.declarations import check_class
from robench.types import Behavior

HEAD = """from __future__ import annotations
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
if TYPE_CHECKING:
    from elsewhere import Thing
"""
VERBS = {
    "attack": "def run(self, model, behaviors, ctx): yield",
    "defense": "@contextmanager\n    def applied(self, model, ctx, cache): yield model",
    "judge": "def score(self, behaviors, replies): return [0.0] * len(replies)",
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A file with a class `Mine`; the reference to it."""
    monkeypatch.chdir(tmp_path)

    def write(body: str, kind: str = "attack", above: str = "@dataclass(frozen=True)") -> str:
        text = f"{HEAD}\n{above}\nclass Mine:\n    {body}\n    {VERBS[kind]}\n"
        (tmp_path / "mine.py").write_text(text)
        return "./mine.py:Mine"

    return write


SUBJECT = "attack './mine.py:Mine': class Mine in ./mine.py "


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("role: ClassVar = 'defense'",
         "has an unknown role 'defense'; known: attack, baseline, control"),
        ("role: ClassVar = 'contrl'", "has an unknown role 'contrl'; did you mean 'control'?"),
        ("needs: ClassVar = 'examples'", "must have needs as a tuple of names"),
        ("needs: ClassVar = ('example',)",
         "has an unknown name among its needs, 'example'; did you mean 'examples'?"),
        ("needs: ClassVar = ('judge',)", "has an unknown name among its needs, 'judge'"),
        ("presets: ClassVar = ['demo']", "must have presets as a dict, name -> {field: value}"),
        ("presets: ClassVar = {'demo': 3}", "must have presets as a dict, name -> {field: value}"),
        ("steps: int = 1\n    presets: ClassVar = {'demo': {'step': 3}}",
         "has a wrong preset 'demo': demo has no field 'step'; did you mean 'steps'?"),
        ("steps: int = 1\n    presets: ClassVar = {'demo': {'steps': 1.5}}",
         "has a wrong preset 'demo': demo.steps must be int, got 1.5"),
        ("argument: ClassVar = 'path'",
         "names 'path' as its argument, which is none of its fields"),
        ("files: ClassVar = 'pool.json'", "files must be a tuple of paths, got 'pool.json'"),
        ("files: ClassVar = ('pool.json',)", "reads a file that does not exist: pool.json"),
        ("unverified: ClassVar = 'yes'", "must have unverified as True or False, got 'yes'"),
        ("forecast: ClassVar = 3", "must have forecast as a method, got 3"),
        ("accepts: ClassVar = 'chess'", "must have accepts as a method, got 'chess'"),
        ("steps: int", "needs a value for 'steps': --set Mine.steps=VALUE, or give the field a"),
        ("thing: Thing = None", "has a type hint that cannot be read: NameError: name 'Thing'"),
        ("path: Path = Path('x')", "has a field that cannot be recorded"),
        ("@property\n    def needs(self): return 1 / 0",
         "fails when it is read (./mine.py:12): ZeroDivisionError: division by zero"),
        ("def __post_init__(self): {}['x']", "cannot be made: KeyError: 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_refused_before_anything_runs(written, body, words):
    with pytest.raises(InputError) as error:
        registry.resolve("attack", written(body))
    assert words in str(error.value)
    assert str(error.value).startswith(SUBJECT.strip())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("threshold", ["0", "1.5", "'half'", "True"])
def test_the_threshold_of_a_judge_is_a_score(written, threshold):
    reference = written(f"threshold: ClassVar = {threshold}", "judge")
    with pytest.raises(InputError, match="must have a threshold above 0 and at most 1, got"):
        registry.resolve("judge", reference)


@pytest.mark.parametrize("above", ["", "@dataclass"])
def test_a_class_that_is_no_frozen_dataclass_is_told_how_to_be_one(written, above):
    with pytest.raises(InputError) as error:
        registry.resolve("attack", written("", above=above))
    assert str(error.value) == SUBJECT + "must be a dataclass: put @dataclass(frozen=True) above it"


@pytest.mark.parametrize(
    ("kind", "verb", "words"),
    [
        ("attack", "pass", "has no method run(model, behaviors, ctx)"),
        ("defense", "pass", "has no method applied(model, ctx, cache)"),
        ("judge", "pass", "has no method score(behaviors, replies)"),
        ("attack", VERBS["judge"], "it has score(behaviors, replies), as a judge has"),
        ("attack", "def run(self, model): yield",
         "has a method run that cannot be called as run(model, behaviors, ctx)"),
        ("defense", "def applied(self, model, ctx, cache): yield model",
         "is no context manager: put @contextmanager above it"),
    ],
)  # fmt: skip
def test_a_method_has_its_verb(written, tmp_path, kind, verb, words):
    reference = written("")
    (tmp_path / "mine.py").write_text(f"{HEAD}\n@dataclass(frozen=True)\nclass Mine:\n    {verb}\n")
    with pytest.raises(InputError) as error:
        registry.resolve(kind, reference)
    assert words in str(error.value)
    assert "class Mine in ./mine.py" in str(error.value)


def test_a_field_without_a_default_is_given_by_hand(written):
    reference = written("steps: int\n    presets: ClassVar = {'paper': {'steps': 3}}")
    assert registry.resolve("attack", reference, settings={"steps": "2"}).instance.steps == 2
    assert registry.resolve("attack", reference, "paper").instance.steps == 3
    (method,) = registry.resolve_all("attack", [reference], settings={"Mine": {"steps": 4}})
    assert method.instance.steps == 4


def test_what_is_declared_well_is_taken(written, tmp_path):
    (tmp_path / "pool.json").write_text("[]")
    declared = """steps: int = 3
    words: tuple[str, ...] = ()
    role: ClassVar[str] = "control"
    needs: ClassVar = ("references", "tune", "examples")
    presets: ClassVar = {"demo": {"steps": 1}, "paper": {}}
    files: ClassVar = ("pool.json",)
    def forecast(self, lengths): ...
    def accepts(self, behaviors): return ""
"""
    for kind in VERBS:
        if kind != "judge":
            assert registry.resolve(kind, written(declared, kind)).instance.steps == 1


def test_a_judge_needs_no_role(written):
    assert registry.resolve("judge", written("strict: bool = True", "judge")).instance.strict


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import a_package_that_is_gone.part",
         "fails to import (./mine.py:1): ModuleNotFoundError: No module named "
         "'a_package_that_is_gone'; install the package 'a_package_that_is_gone'"),
        ("x = 1 / 0", "fails to import (./mine.py:1): ZeroDivisionError: division by zero"),
        ("from . import helper", "FILE.py is loaded on its own: install its package"),
        ("def f(:", "SyntaxError: "),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_says_why(tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text + "\n")
    with pytest.raises(InputError) as error:
        registry.resolve("attack", "./mine.py:Mine")
    assert words in str(error.value)
    assert str(error.value).startswith("attack './mine.py:Mine': ")


def test_a_file_that_changed_is_read_again(written):
    reference = written("steps: int = 1")
    assert registry.resolve("attack", reference).instance.steps == 1
    assert registry.resolve("attack", written("steps: int = 2")).instance.steps == 2


def test_the_methods_that_ship_keep_their_declarations():
    for kind in VERBS:
        for name in registry.names(kind):
            check_class(kind, name, registry.load_class(kind, name))


def test_no_torch_is_needed_to_hold_a_class_to_its_contract():
    program = (
        "import sys, robench.methods.contract, robench.methods.declarations; "
        "from robench.methods.registry import resolve; resolve('judge', 'keyword'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


# Which requests a method knows


def test_the_exact_judge_knows_the_organisms_requests_alone():
    exact, keyword = (registry.resolve("judge", name) for name in ("exact", "keyword"))
    jokes = [Behavior("a", "Tell me a joke.")]
    assert refusal(exact, jokes) == (
        "judge exact knows the organism's requests alone, and none of those under test is one: "
        "give --judges keyword or another"
    )
    assert refusal(exact, [*jokes, Behavior("b", "Tell me how to hack a server.")]) == ""
    assert refusal(keyword, jokes) == ""
