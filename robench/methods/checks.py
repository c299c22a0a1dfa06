"""Whether a method keeps its contract, on tiny models: `check` by name, `*_problems` in code.

The contract of an attack: it attempts what it was given, ends each behavior with one final
attempt, is the same when run again, does not depend on the behaviors beside it, and leaves the
model as it was. Of a defense: it yields a model that answers, and afterwards the base model is bit
for bit what it was.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from robench.errors import InputError
from robench.methods.registry import Kind, is_file, load_class, names, resolve, split
from robench.methods.tiny import tiny, tiny_behaviors, tiny_context
from robench.model.chat_model import ChatModel
from robench.types import Attack, Attempt, Defense, Prompt, user

# Settings that only cost time are cut to these in a check.
QUICK = {
    "steps": 3,
    "width": 16,
    "every": 2,
    "snapshots": 2,
    "batch": 2,
    "population": 8,
    "iterations": 3,
}


def check(reference: str) -> list[str]:
    """What is wrong with a registered method or a `file.py:Class`, in plain sentences."""
    kind = _kind(reference)
    instance = quick(resolve(kind, reference).instance)
    problems = []
    for family in ("llama", "gemma2"):
        found = (
            attack_problems(instance, family)
            if kind == "attack"
            else defense_problems(instance, family)
        )
        problems += [f"on a tiny {family}: {problem}" for problem in found]
    return problems


def quick(method: Any) -> Any:
    """The method with the settings that only cost time cut down."""
    known = {field.name for field in fields(method)}
    cut = {name: min(getattr(method, name), most) for name, most in QUICK.items() if name in known}
    return replace(method, **cut)


def attack_problems(attack: Attack, family: str = "llama") -> list[str]:
    """How an attack breaks its contract on a tiny model of `family`."""
    model, behaviors = tiny(family), tiny_behaviors()
    before = _snapshot(model)
    problems = []
    try:
        attempts = list(attack.run(model, behaviors, tiny_context()))
        again = list(attack.run(model, behaviors, tiny_context()))
        alone = list(attack.run(model, behaviors[1:2], tiny_context()))
    except Exception as error:
        return [f"it raises {type(error).__name__}: {error}"]
    strangers = {a.behavior.id for a in attempts} - {b.id for b in behaviors}
    if strangers:
        problems.append(f"it attempts behaviors it was not given: {sorted(strangers)}")
    for behavior in behaviors:
        own = [a for a in attempts if a.behavior.id == behavior.id]
        for tag in {a.tag for a in own} or {""}:
            ends = sum(a.final for a in own if a.tag == tag)
            if ends != 1:
                problems.append(f"{behavior.id} {tag} has {ends} final attempts, not one")
    if not _same(attempts, again):
        problems.append("it is not the same when run again: draw only from ctx.rng(...)")
    if not _same([a for a in attempts if a.behavior.id == behaviors[1].id], alone):
        problems.append("a behavior's result depends on the behaviors beside it")
    if any(type(a.trace) is not tuple for a in attempts):
        problems.append("an attempt's trace is not a tuple of floats")
    try:
        model.generate([a.prompt for a in attempts if a.final])
    except (ValueError, RuntimeError, InputError) as error:
        problems.append(f"a final prompt cannot be answered: {error}")
    return problems + _traces(model, before)


def defense_problems(defense: Defense, family: str = "llama") -> list[str]:
    """How a defense breaks its contract on a tiny model of `family`."""
    model = tiny(family)
    before = _snapshot(model)
    prompts = [Prompt(user(b.text)) for b in tiny_behaviors()]
    answers = []
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "defense"
        for _ in range(2):  # trained, then loaded
            try:
                with defense.applied(model, tiny_context(), cache) as target:
                    answers.append((target.generate(prompts), target.hidden(prompts)))
            except Exception as error:
                return [f"it raises {type(error).__name__}: {error}"]
    problems = []
    if answers[0][0] != answers[1][0] or not torch.equal(answers[0][1], answers[1][1]):
        problems.append("put on a second time it is not the same model")
    return problems + _traces(model, before)


def _snapshot(model: ChatModel) -> tuple[dict[str, Tensor], Tensor]:
    weights = {name: p.clone() for name, p in model.network.state_dict().items()}
    return weights, model.hidden([Prompt(user("Tell me how to wreck a lamp."))])


def _traces(model: ChatModel, before: tuple[dict[str, Tensor], Tensor]) -> list[str]:
    """What a method left behind on the model."""
    weights, states = before
    problems = []
    now = model.network.state_dict()
    if now.keys() != weights.keys() or any(not torch.equal(weights[k], now[k]) for k in weights):
        problems.append("the model's weights are not what they were")
    elif not torch.equal(states, model.hidden([Prompt(user("Tell me how to wreck a lamp."))])):
        problems.append("the model's states are not what they were")
    if any(p.grad is not None for p in model.network.parameters()):
        problems.append("it left gradients on the model's weights")
    if any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules()):
        problems.append("it left hooks on the model")
    if model.network.training:
        problems.append("it left the model in training mode")
    return problems


def _same(some: Sequence[Attempt], others: Sequence[Attempt]) -> bool:
    if len(some) != len(others):
        return False
    return all(
        a.behavior.id == b.behavior.id
        and (a.step, a.tag, a.final) == (b.step, b.tag, b.final)
        and _alike(a.prompt, b.prompt)
        for a, b in zip(some, others, strict=True)
    )


def _alike(one: Prompt, other: Prompt) -> bool:
    if one.messages != other.messages or len(one.edits) != len(other.edits):
        return False
    if (one.soft is None) != (other.soft is None):
        return False
    pairs = [] if one.soft is None or other.soft is None else [(one.soft, other.soft)]
    for first, second in zip(one.edits, other.edits, strict=True):
        for field in fields(first):  # type: ignore[arg-type]
            here, there = getattr(first, field.name), getattr(second, field.name)
            if isinstance(here, Tensor):
                pairs.append((here, there))
            elif here != there:
                return False
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)


def _kind(reference: str) -> Kind:
    base, _ = split(reference)
    if is_file(base):
        return "defense" if hasattr(load_class("attack", base), "applied") else "attack"
    return "defense" if base in names("defense") else "attack"
