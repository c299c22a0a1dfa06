"""What methods give back, held to the contract: an attack's attempts, a judge's scores.

The rules are written here once, as pure functions that the harness and `robench check` share.
Nothing here imports torch.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from robench.methods.faults import blamed, of
from robench.methods.method import Method
from robench.types import Attempt, Behavior, Prompt


def attempt_problems(behaviors: Sequence[Behavior], attempts: Sequence[Attempt]) -> list[str]:
    """How an attack's attempts break the contract, in sentences whose subject is the attack.

    Each (behavior, tag) ends with one final attempt, every behavior has one, all behaviors are
    those that were given, and a trace is a tuple of finite numbers.
    """
    strange = _type_problem(attempts)
    if strange:
        return [strange]
    given = {behavior.id: behavior for behavior in behaviors}
    foreign = {a.behavior.id for a in attempts} - given.keys()
    changed = {a.behavior.id for a in attempts if given.get(a.behavior.id) != a.behavior} - foreign
    problems = []
    if foreign:
        problems.append(f"it attempts behaviors it was not given: {sorted(foreign)}")
    if changed:
        problems.append(f"it changes the behaviors it was given: {sorted(changed)}")
    return problems + _final_problems(given, attempts) + _number_problems(attempts)


def score_problems(count: int, scores: Any) -> list[str]:
    """How a judge's scores for `count` replies break the contract; the subject is the judge.

    There is one per reply, each a number in [0, 1] or NaN.
    """
    try:
        values = list(scores)
    except TypeError:
        return [f"gave {type(scores).__name__}, not a list of scores"]
    if len(values) != count:
        return [f"gave {len(values)} scores for {count} replies"]
    for score in values:
        if not isinstance(score, Real):
            return [f"gave a score of {score!r}, not a number: NaN says that it cannot judge"]
        if not (0 <= float(score) <= 1 or math.isnan(score)):
            return [f"gave a score of {float(score):g}, not one from 0 to 1 or NaN"]
    return []


def refusal(method: Method, behaviors: Sequence[Behavior]) -> str:
    """Why a method cannot work on these behaviors, as a sentence that names it; "" where it can."""
    if not hasattr(method.instance, "accepts"):
        return ""
    with blamed(*of(method)):
        reason = method.instance.accepts(behaviors)
    return f"{method.kind} {method.name} {reason}" if reason else ""


def _final_problems(given: Iterable[str], attempts: Sequence[Attempt]) -> list[str]:
    tags: dict[str, set[str]] = {}
    finals: Counter[tuple[str, str]] = Counter()
    for attempt in attempts:
        tags.setdefault(attempt.behavior.id, set()).add(attempt.tag)
        finals[attempt.behavior.id, attempt.tag] += bool(attempt.final)
    return [
        f"{f'{identity} {tag}'.strip()} has {finals[identity, tag]} final attempts, not one"
        for identity in given
        for tag in sorted(tags.get(identity, {""}))
        if finals[identity, tag] != 1
    ]


def _type_problem(attempts: Sequence[Any]) -> str:
    for attempt in attempts:
        if not isinstance(attempt, Attempt):
            return f"it yields objects of type {type(attempt).__name__}, not Attempts"
        for name, wanted in (("behavior", Behavior), ("prompt", Prompt)):
            value = getattr(attempt, name)
            if not isinstance(value, wanted):
                return f"the {name} of an attempt is of type {type(value).__name__}"
        if not isinstance(attempt.tag, str) or not isinstance(attempt.final, bool):
            return "an attempt has a tag that is not text, or a `final` that is not True or False"
    return ""


def _number_problems(attempts: Sequence[Attempt]) -> list[str]:
    """What of an attempt's numbers and names cannot be recorded."""
    for attempt in attempts:
        of = f"an attempt on {attempt.behavior.id}"
        if not isinstance(attempt.trace, tuple) or not all(map(_finite, attempt.trace)):
            return [f"{of} has a trace that is not a tuple of finite numbers"]
        if any(type(n) is not int for n in (attempt.step, attempt.tries, attempt.chosen)):
            return [f"{of} has a step or a number of tries that is not an int"]
        if type(attempt.edge_of_grid) is not bool:
            return [f"{of} has an edge_of_grid that is not True or False"]
    return []


def _finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)
