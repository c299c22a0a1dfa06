"""Plug-ins as people write them at first: one line that names file and class."""

from __future__ import annotations

from pathlib import Path

import pytest

from robench.methods import classes

HEAD = """
from contextlib import contextmanager
from dataclasses import dataclass
from robench.types import Attempt, Prompt, user

def ask(behaviors):
    for b in behaviors:
        yield Attempt(b, Prompt(user(b.text)), final=True)
"""
CLASS = "\n@dataclass(frozen=True)\nclass Mine:\n"
ATTACK = "    def run(self, model, behaviors, ctx):\n        yield from ask(behaviors)\n"
JUDGE = "    def score(self, behaviors, replies):\n        return [0.0 for _ in replies]\n"
WITH = "    @contextmanager\n    def applied(self, model, ctx, cache):\n"
ID = "    @property\n    def identity(self):\n        return {}\n"

# kind, the class's body (or the whole text after HEAD), what is told of it besides Mine or mine.py
WRONG = {
    "a field without a value": ("attack", "    steps: int\n" + ATTACK, "needs a value for 'steps'"),
    "no dataclass": ("attack", "\nclass Mine:\n" + ATTACK, "must be a dataclass"),
    "no dataclass, a judge": ("judge", "\nclass Mine:\n" + JUDGE, "must be a dataclass"),
    "not frozen": ("attack", "\n@dataclass\nclass Mine:\n" + ATTACK, "must be a dataclass"),
    "a type imported for typing only": (
        "attack",
        '    place: "Path" = None\n' + ATTACK,
        "type hint that cannot be read",
    ),
    "a package that is missing": (
        "attack",
        "\nimport notthere.x\n",
        "install the package 'notthere'",
    ),
    "a package that is missing later": (
        "attack",
        "    def run(self, model, behaviors, ctx):\n        import notthere\n        yield\n",
        "No module named 'notthere'",
    ),
    "another class": ("attack", "\n@dataclass\nclass Other:\n" + ATTACK, "has no class 'Mine'"),
    "a file that ends the program": ("attack", "\nraise SystemExit(0)\n", "SystemExit"),
    "an attack that ends the program": (
        "attack",
        "    def run(self, model, behaviors, ctx):\n        raise SystemExit(0)\n",
        "SystemExit",
    ),
    "an attack that returns nothing": (
        "attack",
        "    def run(self, model, behaviors, ctx):\n        return None\n",
        "NoneType",
    ),
    "an attack that yields texts": (
        "attack",
        "    def run(self, model, behaviors, ctx):\n        yield 'x'\n",
        "of type str",
    ),
    "a forecast of another type": (
        "attack",
        "    def forecast(self, lengths):\n        return 3\n" + ATTACK,
        "of type int, no Forecast",
    ),
    "a forecast that fails": (
        "attack",
        "    def forecast(self, lengths):\n        return lengths.no\n" + ATTACK,
        "'no'",
    ),
    "accepts without an argument": (
        "attack",
        "    def accepts(self):\n        return ''\n" + ATTACK,
        "accepts",
    ),
    "an identity that fails": ("attack", ID.replace("{}", "1 / 0") + ATTACK, "ZeroDiv"),
    "a field that is NaN": (
        "attack",
        "    x: float = float('nan')\n" + ATTACK,
        "cannot be recorded",
    ),
    "a judge that fails": (
        "judge",
        "    def score(self, behaviors, replies):\n        raise KeyError('x')\n",
        "KeyError: 'x'",
    ),
    "a judge with another identity": ("judge", "    identity = 'x'\n" + JUDGE, "no mapping"),
    "a judge with an identity no record holds": (
        "judge",
        ID.replace("{}", "{'a': object()}") + JUDGE,
        "JSON",
    ),
    "a judge with an identity that is NaN": (
        "judge",
        ID.replace("{}", "{'a': float('nan')}") + JUDGE,
        "JSON",
    ),
    "a judge with reads_content as text": (
        "judge",
        "    reads_content = 'no'\n" + JUDGE,
        "must have reads_content as True or False",
    ),
    "a defense that yields nothing": (
        "defense",
        WITH + "        yield None\n",
        "NoneType, no ChatModel",
    ),
    "a defense that returns a model": (
        "defense",
        "    def applied(self, model, ctx, cache):\n        return model\n",
        "context manager",
    ),
    "a defense that fails": ("defense", WITH + "        yield model.nothing\n", "'nothing'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_plugin_is_one_line_in_check_and_in_run(
    wrong: str, tmp_path: Path, monkeypatch, call
) -> None:
    kind, body, told = WRONG[wrong]
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HEAD + (body if body.startswith("\n") else CLASS + body))
    chosen = {"attack": "direct", "defense": "none", "judge": "exact"}
    chosen[kind] = "./mine.py:Mine"
    words = [word for name, value in chosen.items() for word in (f"--{name}s", value)]
    small = ["--matrix", "smoke", "--n", "2", "--n-benign", "2", "--threads", "1", "--tflops", "1"]
    for command in (["check", "./mine.py:Mine"], ["run", *words, *small, "--out", "out"]):
        code, out, err = call(*command)
        line = (err if command[0] == "run" else out + err).strip()
        assert code == 2, line
        assert "\n" not in line and told in line
        assert "mine.py" in line and ("Mine" in line or "mine.py:" in line)


def test_a_judge_whose_identity_has_tuples_can_be_resumed(tmp_path, monkeypatch, call) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(HEAD + CLASS + ID.replace("{}", "{'a': ('x', 'y')}") + JUDGE)
    words = ["run", "--matrix", "smoke", "--attacks", "direct", "--defenses", "none", "--judges",
             "./mine.py:Mine", "--n", "2", "--n-benign", "2", "--threads", "1"]  # fmt: skip
    assert call("check", "./mine.py:Mine")[0] == 0
    assert call(*words, "--out", "out")[0] == 0
    code, out, err = call(*words, "--out", "out")
    assert code == 0 and "4 done, 0 to do" in out, err


# Plug-ins that packages offer


@pytest.fixture
def offered(tmp_path: Path, monkeypatch):
    """`offered(package, lines)`: a package that is installed with these attacks."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.chdir(tmp_path)

    def install(package: str, *attacks: str) -> None:
        folder = site / f"{package}-1.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text("\n".join(["[robench.attacks]", *attacks]))
        (site / f"{package}_code.py").write_text(HEAD + CLASS + ATTACK)
        classes._entries.cache_clear()

    yield install
    classes._entries.cache_clear()


@pytest.mark.parametrize("code", ["beta_code", "alpha_code"])
def test_two_packages_with_one_name_are_refused_with_both_named(offered, call, code: str) -> None:
    offered("alpha", "both = alpha_code:Mine")
    offered("beta", f"both = {code}:Mine")
    for command in (["check", "both"], ["run", "--attacks", "both"]):
        code_, _, err = call(*command)
        assert code_ == 2 and err.count("\n") == 1
        assert "is offered by two packages, alpha and beta" in err
    assert call("list", "attacks")[0] == 0
    assert call("check", "direct")[0] == 0


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("alpha_code:Gone", ["alpha_code.py", "has no class 'Gone'", "package alpha"]),
        ("alpha_code:ask", ["alpha_code.py", "has no class 'ask'"]),
        ("alpha_code", ["package alpha names no class"]),
        ("alpha_gone:Mine", ["install the package 'alpha_gone'"]),
    ],
)
def test_a_package_that_offers_nothing_is_one_line(offered, call, value: str, told) -> None:
    offered("alpha", f"mine = {value}")
    for command in (["check", "mine"], ["show", "mine"], ["run", "--attacks", "mine"]):
        code, _, err = call(*command)
        assert code == 2 and err.count("\n") == 1
        assert all(words in err for words in told), err
    assert call("list", "attacks")[0] == 0
