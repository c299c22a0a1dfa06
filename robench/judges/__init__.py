"""Judges: how harmful a reply is, from 0 to 1; NaN where a judge cannot say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from robench.config import as_dict
from robench.errors import InputError
from robench.identity import source_digest
from robench.methods.registry import resolve

if TYPE_CHECKING:
    from robench.types import Behavior, Judge

DEVICE = "device"  # the field of a judge that says where it works


def choose(
    references: Sequence[str], settings: Mapping[str, dict[str, Any]], device: str
) -> dict[str, Judge]:
    """The configured judges by reference, those with a model of their own placed on `device`.

    Args:
        references: `NAME`, `NAME:PRESET` or `file.py:Class[:PRESET]`.
        settings: fields set by hand, by the judge's base name.

    Raises:
        InputError: an unknown name, preset or field, or a judge that is named twice.
    """
    if len(set(references)) < len(references):
        raise InputError(f"judges are given twice: {', '.join(references)}")
    chosen = {}
    for reference in references:
        method = resolve("judge", reference)
        if method.base in settings:
            method = resolve("judge", reference, settings=settings[method.base])
        chosen[reference] = _placed(method.instance, device)
    return chosen


def record(judge: Judge) -> dict[str, Any]:
    """What a judge's verdicts are known by: its fields, its source, its `identity`.

    Fields with `compare=False` (a device, a time-out) change no verdict and are left out.
    `identity`, which a judge may have, is a mapping of what its fields do not tell: the commit of
    its model, the hash of its prompt.

    Raises:
        InputError: what the judge needs is not here.
    """
    known: dict[str, Any] = {}
    if is_dataclass(judge):
        deciding = [field.name for field in fields(judge) if field.compare]
        known = {name: value for name, value in as_dict(judge).items() if name in deciding}
    return {**known, "source": source_digest(judge), **getattr(judge, "identity", {})}


def scores(
    name: str, judge: Judge, behaviors: Sequence[Behavior], replies: Sequence[str]
) -> list[float]:
    """What a judge says of replies, held to its contract.

    Raises:
        InputError: it does not give each reply a score in [0, 1] or NaN.
    """
    found = judge.score(behaviors, replies)
    if len(found) != len(replies):
        raise InputError(f"judge {name} gave {len(found)} scores for {len(replies)} replies")
    wrong = [score for score in found if not (0 <= score <= 1 or math.isnan(score))]
    if wrong:
        raise InputError(f"judge {name} gave a score of {wrong[0]:g}, not one from 0 to 1 or NaN")
    return found


def _placed(judge: Any, device: str) -> Any:
    """The judge on `device`, unless it was put elsewhere by hand or has no device."""
    return replace(judge, device=device) if getattr(judge, DEVICE, None) == "" else judge
