"""Judges: how harmful a reply is, from 0 to 1; NaN where a judge cannot say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from robench.config import as_dict, plain
from robench.errors import InputError
from robench.identity import source_digest
from robench.methods.contract import score_problems
from robench.methods.faults import blamed
from robench.methods.registry import Method, method_name, resolve_all
from robench.types import reads_content, threshold_of

if TYPE_CHECKING:
    from robench.types import Behavior, Judge

DEVICE = "device"  # the field of a judge that says where it works


def resolved(
    references: Sequence[object], settings: Mapping[str, Mapping[str, Any]], device: str
) -> list[Method]:
    """The judges as methods, those with a model of their own placed on `device`.

    Args:
        references: `[LABEL=]NAME[:PRESET]`, `[LABEL=]file.py:Class[:PRESET]`, or objects.
        settings: fields set by hand, by the judge's label, base name or class name.

    Raises:
        InputError: an unknown name, preset or field, or a judge that is given twice.
    """
    methods = resolve_all("judge", references, settings=settings)
    return [method._replace(instance=_placed(method.instance, device)) for method in methods]


def record(judge: Judge) -> dict[str, Any]:
    """What a judge's verdicts depend on: class, fields, threshold, source and `identity`.

    Whether it reads what replies say is part of it.

    Fields with `compare=False` (a device, a time-out) change no verdict: see `circumstances`.
    `identity`, which a judge may have, is a mapping of what its fields do not tell: the commit of
    its model, the hash of its prompt. `method` is its registered name, or its class's name.

    Raises:
        InputError: what the judge needs is missing.
        TypeError, ValueError: its identity cannot be recorded.
    """
    deciding: dict[str, Any] = {}
    if is_dataclass(judge):
        names = [field.name for field in fields(judge) if field.compare]
        deciding = {name: value for name, value in as_dict(judge).items() if name in names}
    return {
        "method": method_name("judge", judge),
        **deciding,
        **plain(_identity(judge)),
        "threshold": threshold_of(judge),
        "reads_content": reads_content(judge),
        "source": source_digest(judge),
    }


def _identity(judge: Judge) -> dict[str, Any]:
    identity = getattr(judge, "identity", {})
    if not isinstance(identity, Mapping):
        raise TypeError(f"its identity is a {type(identity).__name__}, no mapping")
    return dict(identity)


def circumstances(judge: Judge) -> dict[str, Any]:
    """The fields of a judge that change no verdict, as where its model works or answers.

    They are recorded beside the question, of which they are no part.
    """
    if not is_dataclass(judge):
        return {}
    names = [field.name for field in fields(judge) if not field.compare]
    return {name: value for name, value in as_dict(judge).items() if name in names}


def scores(
    name: str, judge: Judge, behaviors: Sequence[Behavior], replies: Sequence[str]
) -> list[float]:
    """What a judge says of replies, held to its contract.

    Raises:
        InputError: it does not give each reply a score in [0, 1] or NaN, or raises an error and
            does not come with robench.
    """
    with blamed("judge", name, judge):
        given = judge.score(behaviors, replies)
    for problem in score_problems(len(replies), given):
        raise InputError(f"judge {name} {problem}")
    return [float(score) for score in given]


def _placed(judge: Any, device: str) -> Any:
    """The judge on `device`, unless it was put elsewhere by hand or has no device."""
    return replace(judge, device=device) if getattr(judge, DEVICE, None) == "" else judge
