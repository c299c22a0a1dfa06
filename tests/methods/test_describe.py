"""What `robench show` and `robench list` say of methods, from their sources."""

from importlib.metadata import EntryPoint

import pytest

from robench.errors import InputError
from robench.methods import classes, registry
from robench.methods.describe import describe, field_comments, summary
from robench.methods.registry import load_class

MINE = '''"""A method of a stranger."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Base:
    """Add a suffix."""

    length: int = 20  # tokens
    # what stands
    # in front of it
    word: str = "#"  # no comment
    plain: bool = False
    grid: tuple[
        float, ...
    ] = (1.0,)  # of strengths

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "short": {"length": 3, "word": "#"},
    }

    def run(self, model, behaviors, ctx):
        local: int = 3  # not a field
        yield


@dataclass(frozen=True)
class Mine(Base):
    """Add a longer one."""

    role: ClassVar[str] = "control"
    needs: ClassVar[tuple[str, ...]] = ("references", "tune")

    more: tuple[str, ...] = field(default_factory=tuple)  # words  # noqa: E501
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_a_field_has_its_comments_those_of_its_bases_too(file):
    comments = field_comments(load_class("attack", f"{file}:Mine"))
    assert {name: list(filter(None, words)) for name, words in comments.items()} == {
        "length": ["tokens"],
        "word": ["no comment", "what stands in front of it"],
        "plain": [],
        "grid": ["of strengths"],
        "presets": [],
        "role": [],
        "needs": [],
        "more": ["words  # noqa: E501"],
    }


def test_a_method_is_shown_with_all_that_it_declares(file):
    lines = describe(f"{file}:Mine").splitlines()
    assert lines[0] == f"{file}:Mine (attack)"
    assert "A method of a stranger." in lines
    assert "Add a longer one." in lines
    assert "role: control" in lines
    assert "needs: references, tune" in lines
    text = "\n".join(lines)
    assert "    length: int = 20                        tokens\n" in text
    assert "                                            short: 3\n" in text
    assert "short: '#'" not in text  # as the default
    assert "    paper  the defaults\n    short  changes length" in text


def test_the_meaning_of_a_field_that_ships_is_shown():
    text = describe("gcg")
    assert "Zou et al., experiments/configs" in text
    assert "nanogcg: 250, demo: 16" in text
    assert "    paper      the defaults\n" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("kind", ["attack", "defense", "judge"])
def test_every_method_that_ships_can_be_shown(kind):
    for name in registry.names(kind):
        assert describe(name).startswith(f"{name} ({kind})")


def test_nothing_of_a_name_is_an_error_with_the_nearest():
    with pytest.raises(InputError, match="nothing is called 'gcgg'; did you mean 'gcg'"):
        describe("gcgg")


@pytest.mark.parametrize("kind", ["attack", "defense", "judge"])
def test_every_method_has_a_line_of_its_own(kind):
    lines = [summary(kind, name) for name in registry.names(kind)]
    assert all(lines)
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["no_such_package.attack:Attack"], "(cannot be found: its package is broken or gone)"),
        (["json.gone:Attack"], "(cannot be found: its package is broken or gone)"),
        (["json:a", "csv:b"], "(attack 'gone' is offered by two packages, csv and json: uninstall"),
    ],
)
def test_a_broken_plugin_breaks_no_list(monkeypatch, entries, words):
    offers = tuple(EntryPoint("gone", value, "robench.attacks") for value in entries)
    monkeypatch.setattr(classes, "_entries", lambda kind: {"gone": offers})
    assert summary("attack", "gone").startswith(words)
