"""Whose an error is, and in which line."""

import pytest

from robench.methods.faults import blame, is_ours, of
from robench.methods.registry import resolve
from robench.testing import tiny, tiny_behaviors, tiny_context

MINE = """from dataclasses import dataclass


@dataclass(frozen=True)
class Mine:
    wrong: str = "own"

    def run(self, model, behaviors, ctx):
        if self.wrong == "own":
            yield 1 / 0
        yield model.nll(behaviors, [])
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)

    def method(**settings: str):
        return resolve("attack", "mine=./mine.py:Mine", settings=settings)

    return method


def error_of(method) -> Exception:
    with pytest.raises(Exception) as caught:
        list(method.instance.run(tiny(), tiny_behaviors(), tiny_context()))
    return caught.value


def test_an_error_is_told_with_its_line(mine):
    method = mine()
    words = blame(*of(method), error_of(method))
    assert words == "attack 'mine' (./mine.py:10): ZeroDivisionError: division by zero"


def test_an_error_of_ours_is_told_with_the_line_that_called(mine):
    method = mine(wrong="call")
    assert blame(*of(method), error_of(method)).startswith(
        "attack 'mine' (./mine.py:11): AttributeErr"
    )


def test_an_error_that_never_passed_the_methods_file_has_no_line(mine):
    where = "attack 'mine' (class Mine in ./mine.py)"
    assert blame(*of(mine()), ValueError("a\nb")) == f"{where}: ValueError: a b"
    assert blame(*of(mine()), ValueError()) == f"{where}: ValueError"


def test_what_comes_with_robench_is_ours(mine):
    assert not is_ours(mine().instance)
    assert is_ours(resolve("attack", "gcg").instance)
    assert is_ours(resolve("defense", "none").instance)
    assert is_ours(resolve("judge", "keyword").instance)
