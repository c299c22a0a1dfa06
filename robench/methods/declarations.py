"""What a method's class declares, held to the contract before anything runs.

A class is checked when its method is resolved: it has its verb, is a frozen dataclass of plain
fields, and what it declares (see `robench.types.Attack`) has the right shape. Nothing here imports
torch.
"""

import inspect
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from robench.config import as_dict, coerced, suggestion
from robench.errors import InputError
from robench.identity import OURS, files_of
from robench.methods.faults import in_words, is_ours, line_of, shown
from robench.methods.method import KINDS, VERBS, Kind
from robench.types import HARMFUL

ROLES: dict[Kind, tuple[str, ...]] = {
    "attack": ("attack", "baseline", "control"),
    "defense": ("defense", "baseline", "control"),
}
NEEDS = ("references", "tune", "examples")  # the fields of Context that a run may leave empty
_SIGNATURES: dict[Kind, str] = {
    "attack": "run(model, behaviors, ctx)",
    "defense": "applied(model, ctx, cache)",
    "judge": "score(behaviors, replies)",
}


@cache
def check_class(kind: Kind, name: str, cls: type) -> None:
    """Hold a class to what it declares: its verb, its fields, its role, its presets.

    Args:
        kind: what it is used as.
        name: what messages call the method.

    Raises:
        InputError: it breaks the contract; one sentence that names method, class and file.
    """
    problems = (_verb_problem, _dataclass_problem, _role_problem, _mark_problem, _preset_problem)
    for problem in problems:
        if words := problem(kind, cls):
            raise InputError(f"{_subject(kind, name, cls)} {words}")


def configured(kind: Kind, name: str, cls: type, settings: Mapping[str, Any]) -> Any:
    """An instance of a checked class with some of its fields set.

    Raises:
        InputError: an unknown field, a wrong value, a field without a value, or a declaration of
            the instance that breaks the contract.
    """
    values = coerced(cls, settings, where=name)
    missing = [field for field in required(cls) if field not in values]
    if missing:
        raise InputError(
            f"{_subject(kind, name, cls)} needs a value for {missing[0]!r}: "
            f"--set {cls.__name__}.{missing[0]}=VALUE, or give the field a default"
        )
    try:
        instance = cls(**values)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from None
    except Exception as error:
        if _came_with_us(cls):
            raise
        subject = _subject(kind, name, cls)
        raise InputError(f"{subject} cannot be made: {in_words(error)}") from error
    check_instance(kind, name, instance)
    return instance


def check_instance(kind: Kind, name: str, instance: Any) -> None:
    """Hold an instance to what it declares: needs, files, forecast, accepts, plain fields.

    Raises:
        InputError: it breaks the contract; one sentence that names method, class and file.
    """
    subject = _subject(kind, name, type(instance))
    try:
        words = _declaration_problem(instance)
    except Exception as error:
        if is_ours(instance):
            raise
        place = line_of(instance, error)
        where = f" ({place})" if place else ""
        raise InputError(f"{subject} fails when it is read{where}: {in_words(error)}") from error
    if words:
        raise InputError(f"{subject} {words}")


def _verb_problem(kind: Kind, cls: type) -> str:
    verb, signature = VERBS[kind], _SIGNATURES[kind]
    function = getattr(cls, verb, None)
    if not callable(function):
        for other in KINDS:
            if callable(getattr(cls, VERBS[other], None)):
                return f"has no method {signature}; it has {_SIGNATURES[other]}, as a {other} has"
        return f"has no method {signature}"
    if kind == "defense" and inspect.isgeneratorfunction(function):
        return "has an `applied` that is no context manager: put @contextmanager above it"
    try:
        inspect.signature(function).bind(cls, *signature.split(","))
    except TypeError:
        return f"has a method {verb} that cannot be called as {signature}"
    return ""


def _dataclass_problem(kind: Kind, cls: type) -> str:
    parameters = vars(cls).get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        return "must be a dataclass: put @dataclass(frozen=True) above it"
    try:
        typing.get_type_hints(cls)
    except Exception as error:
        return (
            f"has a type hint that cannot be read: {in_words(error)}; "
            "what its fields name must be imported when the file runs"
        )
    return ""


def _role_problem(kind: Kind, cls: type) -> str:
    roles = ROLES.get(kind, ())
    role = getattr(cls, "role", None)
    if role is None or not roles or role in roles:
        return ""
    return f"has an unknown role {role!r}{suggestion(str(role), roles)}"


def _mark_problem(kind: Kind, cls: type) -> str:
    """Of `threshold`, `reads_content` and `unverified`, which the tables read."""
    threshold = getattr(cls, "threshold", HARMFUL)
    is_number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if kind == "judge" and not (is_number and 0 < threshold <= 1):
        return f"must have a threshold above 0 and at most 1, got {threshold!r}"
    content = getattr(cls, "reads_content", True)
    if kind == "judge" and not isinstance(content, bool):
        return f"must have reads_content as True or False, got {content!r}"
    unverified = getattr(cls, "unverified", False)
    if not isinstance(unverified, bool):
        return f"must have unverified as True or False, got {unverified!r}"
    return ""


def _preset_problem(kind: Kind, cls: type) -> str:
    names = [field.name for field in fields(cls)]
    argument = getattr(cls, "argument", None)
    if argument is not None and argument not in names:
        return f"names {argument!r} as its argument, which is none of its fields"
    presets = getattr(cls, "presets", {})
    if not isinstance(presets, Mapping):
        return f"must have presets as a dict, name -> {{field: value}}, got {presets!r}"
    for name, settings in presets.items():
        if not isinstance(name, str) or not isinstance(settings, Mapping):
            return f"must have presets as a dict, name -> {{field: value}}, got {presets!r}"
        try:
            values = coerced(cls, settings, where=name)
            if not set(required(cls)) - set(values):
                cls(**values)
        except Exception as error:
            if _came_with_us(cls) and not isinstance(error, ValueError):
                raise
            return f"has a wrong preset {name!r}: {in_words(error)}"
    return ""


def _declaration_problem(instance: Any) -> str:
    needs = getattr(instance, "needs", ())
    if isinstance(needs, str) or not isinstance(needs, Sequence):
        return f"must have needs as a tuple of names, as needs = ('examples',), got {needs!r}"
    for need in needs:
        if need not in NEEDS:
            return f"has an unknown name among its needs, {need!r}{suggestion(str(need), NEEDS)}"
    for name in ("forecast", "accepts"):
        if not callable(getattr(instance, name, len)):
            return f"must have {name} as a method, got {getattr(instance, name)!r}"
    if not hasattr(inspect.getattr_static(type(instance), "files", ()), "__get__"):
        files_of(instance)  # a property may fetch what it names; it is read with the plan
    try:
        as_dict(instance)
    except (TypeError, ValueError) as error:
        return (
            f"has a field that cannot be recorded ({in_words(error)}): fields are text, numbers, "
            "true or false, None and tuples of these"
        )
    return ""


def required(cls: type) -> list[str]:
    """The fields of a method's class that have no default."""
    return [
        field.name
        for field in fields(cls)
        if field.init and field.default is MISSING and field.default_factory is MISSING
    ]


def _subject(kind: Kind, name: str, cls: type) -> str:
    """The beginning of a sentence: "attack 'mine': class Mine in ./mine.py"."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    place = shown(Path(file)) if file else cls.__module__
    return f"{kind} {name!r}: class {cls.__name__} in {place}"


def _came_with_us(cls: type) -> bool:
    return cls.__module__.partition(".")[0] in OURS
