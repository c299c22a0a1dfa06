"""The settings of a method: built from presets and `key=value` arguments, checked, hashed.

One frozen dataclass is a method's defaults, documentation, schema, record and hash. Nothing here
imports torch.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import operator
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import yaml

from robench.errors import InputError


def build(cls: type, settings: Mapping[str, Any], where: str = "") -> Any:
    """An instance of dataclass `cls` with `settings` checked against its annotations.

    Args:
        cls: a dataclass type.
        settings: field name to value; text is read as YAML ("1e-3", "[1, 2]", "null").
        where: what error messages call the dataclass; by default its name.

    Raises:
        InputError: an unknown field (the nearest one is suggested), a value of the wrong type, or
            a value that the class itself rejects with ValueError.
    """
    where = where or cls.__name__
    values = coerced(cls, settings, where)
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def coerced(cls: type, settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`settings` as `build` reads them, without an instance.

    Raises:
        InputError: an unknown field or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    values = {}
    for name, value in settings.items():
        if name not in names:
            raise InputError(f"{where} has no field {name!r}{suggestion(name, names)}")
        values[name] = _coerce(value, hints[name], f"{where}.{name}")
    return values


def as_dict(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass instance as plain JSON values; infinite ones as YAML spells them.

    Raises:
        TypeError, ValueError: a field is none, or is NaN, which no record can hold.
    """
    return typing.cast(dict[str, Any], plain(_spelled(dataclasses.asdict(settings))))


def _spelled(value: Any) -> Any:
    """A value whose infinite numbers, which JSON lacks, are text that `coerced` reads back."""
    if isinstance(value, dict):
        return {key: _spelled(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_spelled(part) for part in value]
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return value


def plain(value: Any) -> Any:
    """A value as a record gives it back: plain JSON.

    Raises:
        TypeError, ValueError: it has no such form.
    """
    return json.loads(json.dumps(value, allow_nan=False))


def digest(value: Any) -> str:
    """The sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def suggestion(name: str, names: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest of `names`, or all of them."""
    options = sorted(names)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""


def assignments(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["gcg.steps=100"]` -> `{"gcg": {"steps": "100"}}`."""
    settings: dict[str, dict[str, str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        method, dot, name = key.rpartition(".")
        if not (equals and dot and method and name):
            raise InputError(f"--set takes METHOD.FIELD=VALUE, got {word!r}")
        settings.setdefault(method, {})[name] = value
    return settings


def at_least(settings: Any, least: float, *names: str) -> None:
    """Check fields in a method's `__post_init__`: a number, or every number of a tuple, >= least.

    Raises:
        ValueError: names the field and its range. NaN is in no range.
    """
    _require(settings, names, lambda value: value >= least, f"at least {least}")


def above(settings: Any, bound: float, *names: str) -> None:
    """As `at_least`, for numbers that must be greater than `bound`."""
    _require(settings, names, lambda value: value > bound, f"above {bound}")


def within(settings: Any, interval: str, *names: str) -> None:
    """As `at_least`, for numbers that must lie in an interval such as "[0, 1)"."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    over = operator.ge if interval[0] == "[" else operator.gt
    under = operator.le if interval[-1] == "]" else operator.lt
    _require(settings, names, lambda x: over(x, low) and under(x, high), f"in {interval}")


def not_empty(settings: Any, *names: str) -> None:
    """As `at_least`, for texts and tuples that must not be empty."""
    for name in names:
        if not getattr(settings, name):
            raise ValueError(f"{name} must not be empty")


def _require(
    settings: Any, names: Iterable[str], holds: Callable[[float], bool], what: str
) -> None:
    for name in names:
        value = getattr(settings, name)
        if not all(map(holds, value if isinstance(value, tuple) else (value,))):
            raise ValueError(f"{name} must be {what}")


def _coerce(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, str) and hint is not str:
        value = read_value(value, where)
    return fitted(value, hint, where)


def read_value(text: str, where: str) -> Any:
    """The value that a word of the command line writes, as YAML has it: true, 3, some text.

    Raises:
        InputError: it cannot be read; `where` names it.
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"{where}: cannot read {text!r}") from None


def fitted(value: Any, hint: Any, where: str) -> Any:
    """`value` as a type annotation asks for it: lists become tuples, whole numbers floats.

    Raises:
        InputError: it does not fit; `where` names it.
    """
    try:
        return _fit(value, hint)
    except TypeError:
        name = hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
        raise InputError(f"{where} must be {name}, got {value!r}") from None


def _fit(value: Any, hint: Any) -> Any:
    """`value` as the annotation `hint` requires; TypeError if it does not fit."""
    if hint is Any:
        return value
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _fit_one(value, options)
    if origin is typing.Literal and value in options:
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        if len(options) == 2 and options[1] is Ellipsis:
            options = (options[0],) * len(value)
        if len(value) == len(options):
            return tuple(_fit(item, option) for item, option in zip(value, options, strict=True))
    if hint is float:
        return _fit_float(value)
    if hint is type(None) and value is None:
        return None
    is_type = isinstance(hint, type) and isinstance(value, hint)
    if is_type and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError


def _fit_one(value: Any, options: Sequence[Any]) -> Any:
    """`value` as the first of several annotations that it fits."""
    for option in options:
        try:
            return _fit(value, option)
        except TypeError:
            continue
    raise TypeError


def _fit_float(value: Any) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            raise TypeError from None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise TypeError
