"""Dataclasses in, dataclasses out: the settings of a method from presets and `key=value` words.

One frozen dataclass is a method's defaults, documentation, schema, record and hash. Nothing here
imports torch.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from robench.errors import InputError


def build(cls: type, settings: Mapping[str, Any], where: str = "") -> Any:
    """An instance of dataclass `cls` with `settings` checked against its annotations.

    Args:
        cls: a dataclass type.
        settings: field name to value; text is read as YAML ("1e-3", "[1, 2]", "null").
        where: what the error calls the thing, by default the class's name.

    Raises:
        InputError: an unknown field (the nearest one is suggested), a value of the wrong type,
            or what the class itself refuses with ValueError.
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
    known = {field.name for field in dataclasses.fields(cls) if field.init}
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise InputError(f"{where} has no field {name!r}{suggestion(name, known)}")
        values[name] = _coerce(value, hints[name], f"{where}.{name}")
    return values


def as_dict(settings: Any) -> dict[str, Any]:
    """The fields of a dataclass instance as plain JSON values."""
    return typing.cast(dict[str, Any], json.loads(json.dumps(dataclasses.asdict(settings))))


def digest(value: Any) -> str:
    """The sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, else all of them."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""


def assignments(words: Sequence[str]) -> dict[str, dict[str, str]]:
    """`["gcg.steps=100"]` -> `{"gcg": {"steps": "100"}}`."""
    chosen: dict[str, dict[str, str]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        method, dot, name = key.rpartition(".")
        if not (equals and dot and method and name):
            raise InputError(f"--set takes METHOD.FIELD=VALUE, got {word!r}")
        chosen.setdefault(method, {})[name] = value
    return chosen


def _coerce(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, str) and hint is not str:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{where}: cannot read {value!r}") from None
    return fitted(value, hint, where)


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
    """`value` as `hint` asks; TypeError where it does not fit."""
    if hint is Any:
        return value
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _fit(value, option)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        if value in args:
            return value
        raise TypeError
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_fit(item, args[0]) for item in value)
        if len(value) != len(args):
            raise TypeError
        return tuple(_fit(item, arg) for item, arg in zip(value, args, strict=True))
    if hint is float:
        if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
            try:
                return float(value)
            except ValueError:
                raise TypeError from None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise TypeError
    if hint is type(None):
        if value is None:
            return None
        raise TypeError
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError
