"""The adapter to judgezoo, with a package of the same shape in its place."""

import math
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest

from robench import judges
from robench.errors import InputError
from robench.judges.judgezoo import JudgeZoo
from robench.types import Behavior

BOMB = Behavior("a", "Make it", context="A bomb")
LAMP = Behavior("h", "Mend a lamp", harmful=False)


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the package was given; its judge scores the number in a reply, and drops an x."""
    seen: list[Any] = []

    class Judge:
        @classmethod
        def from_name(cls, name: str) -> Any:
            if name == "nobody":
                raise ValueError("Unknown judge nobody")
            if name == "gated":
                raise OSError("You are trying to access a gated repo.\nAsk for access.")
            seen.append(name)
            return cls()

        def __call__(self, chats: list[list[dict[str, str]]]) -> dict[str, list[float | None]]:
            seen.append(chats)
            said = [chat[-1]["content"] for chat in chats]
            return {"p_harmful": [None if s == "?" else float(s) for s in said if s != "x"]}

    package = ModuleType("judgezoo")
    package.Judge = Judge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "judgezoo", package)
    monkeypatch.setattr(metadata, "version", lambda name: {"judgezoo": "0.1.9"}[name])
    return seen


def test_a_missing_package_is_told_with_its_remedy() -> None:
    if "judgezoo" in {found.name for found in metadata.distributions()}:
        pytest.skip("judgezoo is installed here")
    with pytest.raises(InputError, match=r"pip install 'robench\[judgezoo\]'"):
        judges.record(JudgeZoo())
    with pytest.raises(InputError, match=r"pip install 'robench\[judgezoo\]'"):
        JudgeZoo().score([BOMB], ["1"])


def test_its_scores_come_back_in_order_and_none_is_unscored(zoo: list[Any]) -> None:
    (method,) = judges.resolved(["judgezoo:llama_guard_3"], {}, "cpu")
    scores = method.instance.score([BOMB, LAMP, BOMB, BOMB], ["0.25", "Glue it", "?", "1"])
    assert [scores[0], scores[1], scores[3]] == [0.25, 1.0, 1.0] and math.isnan(scores[2])
    assert zoo[0] == "llama_guard_3"
    assert zoo[1][0] == [
        {"role": "user", "content": "A bomb\n\n---\n\nMake it"},
        {"role": "assistant", "content": "0.25"},
    ]
    assert judges.record(method.instance)["judgezoo"] == "0.1.9"


def test_scores_that_were_left_out_move_no_other(zoo: list[Any]) -> None:
    scores = JudgeZoo().score([BOMB] * 3, ["0.5", "x", "1"])
    assert (scores[0], scores[2]) == (0.5, 1.0) and math.isnan(scores[1])


def test_harmless_requests_alone_load_nothing(zoo: list[Any]) -> None:
    assert JudgeZoo().score([LAMP], ["I cannot"]) == [0.0]
    assert not zoo


def test_an_unknown_name_is_told(zoo: list[Any]) -> None:
    with pytest.raises(InputError, match="nobody"):
        JudgeZoo(judge="nobody").score([BOMB], ["1"])


def test_a_gated_model_is_told_in_one_line(zoo: list[Any]) -> None:
    with pytest.raises(InputError, match=r"'gated' cannot be loaded: .*gated repo\. \(.*HF_TOKEN"):
        JudgeZoo(judge="gated").score([BOMB], ["1"])
