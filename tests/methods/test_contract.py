"""Every attack on every defense, on tiny models of two shapes; the same rule for strangers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robench.methods.registry import load_class, names, resolve
from robench.testing import (
    attack_problems,
    check,
    defense_problems,
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
PREFILL = f"{Path(__file__).parents[1] / 'prefill.py'}:Prefill"


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


def test_a_strangers_attack_of_a_few_lines_passes():
    assert check(PREFILL) == []


BROKEN = {
    "final attempts": "yield Attempt(behaviors[0], Prompt(user('a')))",
    "same when run again": "\n".join(
        [
            "for b in behaviors:",
            "            yield Attempt(b, Prompt(user(str(torch.rand(1)))), final=True)",
        ]
    ),
    "depends on the behaviors beside": "\n".join(
        [
            "for b in behaviors:",
            "            yield Attempt(b, Prompt(user(str(len(behaviors)))), final=True)",
        ]
    ),
    "left hooks": "\n".join(
        [
            "model.network.register_forward_hook(lambda *a: None)",
            "        for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ]
    ),
    "weights are not": "\n".join(
        [
            "next(model.network.parameters()).data += 1",
            "        for b in behaviors: yield Attempt(b, Prompt(user('a')), final=True)",
        ]
    ),
    "raises ZeroDivisionError": "1 / 0; yield",
}


@pytest.mark.parametrize("problem", BROKEN)
def test_the_check_finds(problem, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "import torch\n"
        "from dataclasses import dataclass\n"
        "from robench.types import Attempt, Prompt, user\n"
        "@dataclass(frozen=True)\n"
        "class Broken:\n"
        "    def run(self, model, behaviors, ctx):\n"
        f"        {BROKEN[problem]}\n"
    )
    assert any(problem in found for found in check(f"{file}:Broken"))
