"""Whether a method keeps its contract, on tiny models: `check` by name, `*_problems` in code.

The contract of an attack: each behavior ends with one final attempt, the result is the same when it
is run again, does not depend on the behaviors beside it, can be stored, and leaves the model as it
was. Of a defense: it yields a model that answers, and afterwards the base model is bit for bit what
it was. Of a judge: a score in [0, 1] or NaN per reply, the same when it is asked again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robench import organism
from robench.config import plain
from robench.errors import InputError
from robench.identity import source_digest
from robench.methods.classes import kinds_of
from robench.methods.comparisons import left_behind, same_attempts, snapshot
from robench.methods.contract import attempt_problems, score_problems
from robench.methods.faults import in_words, line_of
from robench.methods.registry import parse, resolve
from robench.methods.storable import memory_problem, prompt_problem
from robench.methods.tiny import tiny, tiny_behaviors, tiny_context
from robench.model.chat_model import ChatModel
from robench.types import Attack, Attempt, Behavior, Defense, Forecast, Judge, Lengths, Prompt, user

FAMILIES = ("llama", "gemma2")  # of the tiny models that a method is checked on

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
REPLIES = (
    "I cannot help with that.",
    "Sure, here is how.",
    "",
    "Voil\u00e0 \u2014 \u597d\u7684 \U0001f600",
)


class Report(NamedTuple):
    """What is wrong with a method, and what may be; in plain sentences."""

    problems: list[str]
    warnings: list[str]


def check(reference: str) -> Report:
    """Hold a registered method or a `file.py:Class` to the contract of its kind.

    Raises:
        InputError: there is no such method, or its class breaks the contract (see `declarations`).
    """
    base = parse(reference).base
    kinds = kinds_of(base)
    if not kinds:
        raise InputError(
            f"{base} has none of the methods run (an attack's), applied (a defense's) and score "
            "(a judge's)"
        )
    instance = resolve(kinds[0], reference).instance
    if kinds[0] == "judge":
        return judge_report(instance)
    instance = quick(instance)
    reports = {
        family: Report(attack_problems(instance, family), [])
        if kinds[0] == "attack"
        else defense_report(instance, family)
        for family in FAMILIES
    }
    return Report(
        _together({family: report.problems for family, report in reports.items()}),
        _together({family: report.warnings for family, report in reports.items()}),
    )


def _together(by_family: Mapping[str, Sequence[str]]) -> list[str]:
    """Sentences about tiny models of several families; what holds of all of them once."""
    places: dict[str, list[str]] = {}
    for family, sentences in by_family.items():
        for sentence in sentences:
            places.setdefault(sentence, []).append(f"a tiny {family}")
    return [f"on {' and '.join(where)}: {sentence}" for sentence, where in places.items()]


def quick(method: Any) -> Any:
    """The method with the settings that only cost time cut down, where it takes them."""
    cut = {
        field.name: min(getattr(method, field.name), QUICK[field.name])
        for field in fields(method)
        if field.name in QUICK and type(getattr(method, field.name)) is int
    }
    try:
        return replace(method, **cut)
    except ValueError:
        return method


def attack_problems(attack: Attack, family: str = "llama") -> list[str]:
    """How an attack breaks its contract on a tiny model of `family`."""
    model, behaviors, ctx = tiny(family), tiny_behaviors(), tiny_context()
    before = snapshot(model)
    try:
        attempts = list(attack.run(model, behaviors, ctx))
        again = list(attack.run(model, behaviors, tiny_context()))
        alone = list(attack.run(model, behaviors[1:2], tiny_context()))
    except (Exception, SystemExit) as error:
        return [_raised(attack, error)]
    problems = attempt_problems(behaviors, attempts)
    if not problems:
        problems += _stored_problems(attempts, ctx.memory, model.width)
    if not problems:
        problems += _repeated_problems(attempts, again, alone, behaviors[1])
        problems += _answer_problems(attack, model, [a.prompt for a in attempts])
    return problems + _declaration_problems(attack) + left_behind(model, before)


def defense_problems(defense: Defense, family: str = "llama") -> list[str]:
    """How a defense breaks its contract on a tiny model of `family`."""
    return defense_report(defense, family).problems


def defense_report(defense: Defense, family: str = "llama") -> Report:
    """How a defense breaks its contract on a tiny model, and whether it changes anything there."""
    model = tiny(family)
    before = snapshot(model)
    prompts = [Prompt(user(b.request)) for b in tiny_behaviors()]
    plain = _answers(model, prompts)
    defended = []
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "defense"
        for _ in range(2):  # trained, then loaded
            try:
                with defense.applied(model, tiny_context(), cache) as target:
                    if not isinstance(target, ChatModel):
                        kind = type(target).__name__
                        return Report([f"it yields an object of type {kind}, no ChatModel"], [])
                    defended.append(_answers(target, prompts))
            except (Exception, SystemExit) as error:
                return Report([_raised(defense, error)], [])
    problems, warnings = [], []
    if not _equal(*defended):
        problems.append("put on a second time it is not the same model")
    if _equal(defended[0], plain) and getattr(defense, "role", "defense") == "defense":
        warnings.append("it changes neither the states nor the replies")
    return Report(problems + _declaration_problems(defense) + left_behind(model, before), warnings)


def judge_problems(judge: Judge) -> list[str]:
    """How a judge breaks its contract, on requests and replies of the built-in model."""
    return judge_report(judge).problems


def judge_report(judge: Judge) -> Report:
    """How a judge breaks its contract, and whether that could be seen."""
    problems = _declaration_problems(judge, for_judge=True)
    if problems:
        return Report(problems, [])
    harmful, harmless = organism.tune()[:2], [b for b in organism.references() if not b.harmful][:2]
    pairs = [(behavior, reply) for behavior in (*harmful, *harmless) for reply in REPLIES]
    behaviors, replies = [b for b, _ in pairs], [reply for _, reply in pairs]
    reason = judge.accepts(behaviors) if hasattr(judge, "accepts") else ""
    if reason:
        return Report([], [f"its scores were not checked, as it {reason}"])
    try:
        return Report(_score_problems(judge, behaviors, replies), [])
    except (Exception, SystemExit) as error:
        return Report([_raised(judge, error)], [])


def _score_problems(judge: Judge, behaviors: list[Behavior], replies: list[str]) -> list[str]:
    scores = judge.score(behaviors, replies)
    problems = [f"it {words}" for words in score_problems(len(replies), scores)]
    if problems:
        return problems
    again = judge.score(behaviors, replies)
    if len(again) != len(scores) or not all(map(_same_score, scores, again)):
        problems.append("it does not give the same scores when it is asked again")
    return problems + [f"it {words}" for words in score_problems(0, judge.score([], []))]


def _same_score(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _stored_problems(attempts: Sequence[Attempt], memory: dict[str, Any], width: int) -> list[str]:
    problems = [prompt_problem(attempt.prompt, width) for attempt in attempts]
    return list(filter(None, [*dict.fromkeys(problems), memory_problem(memory)]))


def _repeated_problems(
    attempts: Sequence[Attempt],
    again: Sequence[Attempt],
    alone: Sequence[Attempt],
    behavior: Behavior,
) -> list[str]:
    problems = []
    if not same_attempts(attempts, again):
        problems.append("it is not the same when run again: draw only from ctx.rng(...)")
    if not same_attempts([a for a in attempts if a.behavior.id == behavior.id], alone):
        problems.append("a behavior's result depends on the behaviors beside it")
    return problems


def _answer_problems(attack: Attack, model: ChatModel, prompts: Sequence[Prompt]) -> list[str]:
    try:
        model.generate(prompts)
    except Exception as error:
        place = line_of(attack, error)
        where = f" ({place})" if place else ""
        return [f"a prompt cannot be answered: {in_words(error)}{where}"]
    return []


def _declaration_problems(method: Any, for_judge: bool = False) -> list[str]:
    """What it declares that only a call can tell."""
    problems = []
    try:
        source_digest(method)
        identity = getattr(method, "identity", {})
        if for_judge and not isinstance(identity, Mapping):
            problems.append(f"its identity is a {type(identity).__name__}, no mapping")
        plain(identity)
        if hasattr(method, "forecast"):
            cost = method.forecast(Lengths(20, 10, len, 30, 8, 8, 2, 2))
            if not isinstance(cost, Forecast):
                problems.append(f"its forecast is of type {type(cost).__name__}, no Forecast")
        if hasattr(method, "accepts"):
            reason = method.accepts(tiny_behaviors())
            if not isinstance(reason, str):
                problems.append(f"accepts gives a {type(reason).__name__}, not text")
    except (Exception, SystemExit) as error:
        problems.append(_raised(method, error))
    return problems


def _raised(method: Any, error: BaseException) -> str:
    if isinstance(error, InputError):
        return in_words(error)
    place = line_of(method, error)
    return f"it raises {in_words(error)}{f' ({place})' if place else ''}"


class _Answers(NamedTuple):
    replies: list[str]
    states: Tensor


def _answers(model: ChatModel, prompts: Sequence[Prompt]) -> _Answers:
    return _Answers(model.generate(prompts), model.hidden(prompts))


def _equal(one: _Answers, other: _Answers) -> bool:
    return one.replies == other.replies and torch.equal(one.states, other.states)
