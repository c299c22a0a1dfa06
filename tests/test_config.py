"""Settings: what fits an annotation, what is rejected, and the messages."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import pytest

from robench.config import (
    above,
    as_dict,
    assignments,
    at_least,
    build,
    digest,
    not_empty,
    suggestion,
    within,
)
from robench.errors import InputError


@dataclass(frozen=True)
class Settings:
    steps: int = 10
    rate: float = 0.5
    name: str = "a"
    greedy: bool = False
    layers: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    limit: int | None = None
    mode: Literal["mean", "last"] = "mean"

    def __post_init__(self) -> None:
        at_least(self, 1, "steps")


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("steps", "100", 100),
        ("rate", "1e-3", 1e-3),
        ("rate", "2", 2.0),
        ("name", "100", "100"),
        ("greedy", "true", True),
        ("layers", "[3, 4]", (3, 4)),
        ("layers", "[]", ()),
        ("pair", "[3, 4]", (3, 4.0)),
        ("limit", "null", None),
        ("limit", "7", 7),
        ("mode", "last", "last"),
    ],
)
def test_text_becomes_values(field, text, value):
    built = getattr(build(Settings, {field: text}), field)
    assert built == value
    assert type(built) is type(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", "many"),
        ("steps", "1.5"),
        ("steps", "true"),
        ("steps", "[1"),
        ("rate", "fast"),
        ("rate", True),
        ("name", 3),
        ("greedy", "1"),
        ("layers", "3"),
        ("layers", "[a]"),
        ("pair", "[1]"),
        ("limit", "none at all"),
        ("mode", "first"),
    ],
)
def test_a_value_of_the_wrong_type_is_rejected_by_field(field, value):
    with pytest.raises(InputError, match=rf"^gcg\.{field}\b"):
        build(Settings, {field: value}, where="gcg")


def test_an_unknown_field_suggests_the_nearest():
    with pytest.raises(InputError, match="gcg has no field 'step'; did you mean 'steps'"):
        build(Settings, {"step": "1"}, where="gcg")


def test_a_value_that_the_class_rejects_is_the_users_mistake():
    with pytest.raises(InputError, match="gcg: steps must be at least 1"):
        build(Settings, {"steps": 0}, where="gcg")


def test_settings_survive_json():
    settings = build(Settings, {"layers": "[3]", "limit": "2"})
    assert build(Settings, as_dict(settings)) == settings
    endless = build(Settings, {"rate": ".inf"})
    assert as_dict(endless)["rate"] == ".inf"
    assert build(Settings, as_dict(endless)) == endless


def test_assignments_are_grouped_by_method():
    words = ["gcg.steps=100", "gcg.rate=a=b", "./mine.py:Class.length=3"]
    assert assignments(words) == {
        "gcg": {"steps": "100", "rate": "a=b"},
        "./mine.py:Class": {"length": "3"},
    }


@pytest.mark.parametrize("word", ["gcg.steps", "steps=100", ".steps=1", "gcg.=1", "=", ""])
def test_a_malformed_assignment_is_rejected(word):
    with pytest.raises(InputError, match=r"METHOD\.FIELD=VALUE"):
        assignments([word])


def test_a_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1, 2]) != digest([2, 1])
    assert digest("\ud800") != digest("")


def test_without_a_near_name_all_are_listed():
    assert suggestion("gcgg", ["gcg", "direct"]) == "; did you mean 'gcg'?"
    assert suggestion("xyz", ["gcg", "direct"]) == "; known: direct, gcg"
    assert suggestion("xyz", []) == ""


@pytest.mark.parametrize(
    ("check", "accepted", "rejected", "message"),
    [
        (lambda s: at_least(s, 1, "x"), [1, 2.5, (1, 3), ()], [0, (2, 0.5)], "at least 1"),
        (lambda s: above(s, 0, "x"), [0.1, math.inf], [0, (1.0, -1.0)], "above 0"),
        (lambda s: within(s, "[0, 1]", "x"), [0, 1, (0.5,)], [-0.1, 1.1], r"in \[0, 1\]"),
        (lambda s: within(s, "(0, 1)", "x"), [0.5], [0, 1, (0.5, 1)], r"in \(0, 1\)"),
        (lambda s: within(s, "[0, 1)", "x"), [0, 0.9], [1, -1], r"in \[0, 1\)"),
        (lambda s: within(s, "(0, 1]", "x"), [1], [0, 2], r"in \(0, 1\]"),
    ],
)
def test_ranges_of_numbers_and_of_tuples(check, accepted, rejected, message):
    for value in accepted:
        check(SimpleNamespace(x=value))
    for value in [*rejected, math.nan]:
        with pytest.raises(ValueError, match=f"^x must be {message}$"):
            check(SimpleNamespace(x=value))


def test_empty_fields_are_rejected():
    not_empty(SimpleNamespace(text="a", entries=(0,)), "text", "entries")
    for settings in (SimpleNamespace(text="", entries=(0,)), SimpleNamespace(text="a", entries=())):
        with pytest.raises(ValueError, match="must not be empty"):
            not_empty(settings, "text", "entries")
