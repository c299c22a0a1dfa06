"""Every attack on every defense and every judge, on tiny models of two shapes."""

from dataclasses import replace

import pytest
import torch

from robench.methods.registry import load_class, names, resolve
from robench.testing import (
    attack_problems,
    defense_problems,
    judge_problems,
    quick,
    tiny,
    tiny_behaviors,
    tiny_context,
)
from robench.types import Prompt, user

FAMILIES = ["llama", "gemma2"]
# Those made elsewhere ask for a folder: tests/test_elsewhere.py
DEFENSES = [
    name for name in names("defense") if not hasattr(load_class("defense", name), "argument")
]


def method(kind: str, name: str):
    return quick(resolve(kind, name).instance)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", names("attack"))
def test_attacks_keep_the_contract(name, family):
    assert attack_problems(method("attack", name), family) == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", DEFENSES)
def test_defenses_keep_the_contract(name, family):
    assert defense_problems(method("defense", name), family) == []


@pytest.mark.parametrize("defense", DEFENSES)
def test_every_attack_on_every_defense(defense, tmp_path):
    model, behaviors, ctx = tiny(), tiny_behaviors(2), tiny_context()
    with method("defense", defense).applied(model, ctx, tmp_path / "cache") as target:
        for name in names("attack"):
            attempts = list(method("attack", name).run(target, behaviors, ctx))
            finals = [a for a in attempts if a.final]
            assert {a.behavior for a in finals} == set(behaviors)
            assert len(target.generate([a.prompt for a in finals])) == len(finals)


def test_the_undefended_view_is_the_base(tmp_path):
    model, ctx = tiny(), tiny_context()
    prompt = [Prompt(user("Why?"))]
    plain = model.hidden(prompt)
    defense = replace(method("defense", "circuit_breaker"), steps=3, rate=0.1)
    with defense.applied(model, ctx, tmp_path / "cache") as target:
        assert not torch.equal(target.hidden(prompt), plain)
        assert torch.equal(target.undefended().hidden(prompt), plain)


@pytest.mark.parametrize("name", ["exact", "keyword"])
def test_judges_keep_the_contract(name):
    assert judge_problems(resolve("judge", name).instance) == []
