"""A method in its own words: docstrings, fields, defaults and presets, as `robench show` prints."""

import dataclasses
import inspect
import sys
import typing
from typing import Any

from robench.config import suggestion
from robench.errors import InputError
from robench.methods import registry

KINDS: tuple[registry.Kind, ...] = typing.get_args(registry.Kind)


def describe(reference: str) -> str:
    """The description of a method of any kind: `NAME`, `NAME:PRESET` or `file.py:Class`.

    Raises:
        InputError: nothing has this name.
    """
    base, _ = registry.split(reference)
    kinds = [kind for kind in KINDS if base in registry.names(kind)]
    if not kinds and not registry.is_file(base):
        known = [name for kind in KINDS for name in registry.names(kind)]
        raise InputError(f"nothing is called {base!r}{suggestion(base, known)}")
    found = registry.load_class(kinds[0] if kinds else "attack", base)
    cls = found if isinstance(found, type) else type(found)
    title = f"{base} ({', '.join(kinds)})" if kinds else base
    parts = [title, sys.modules[cls.__module__].__doc__, _words_of(cls), _fields(cls)]
    return "\n\n".join(part.strip("\n") for part in parts if part)


def _words_of(cls: type) -> str:
    """The class's docstring, unless it is the signature that `dataclass` puts there."""
    words = inspect.getdoc(cls) or ""
    return "" if words.startswith(f"{cls.__name__}(") else words


def _fields(cls: type) -> str:
    """A line per field: `name: type = default`, then the presets that differ."""
    if not dataclasses.is_dataclass(cls):
        return ""
    hints = typing.get_type_hints(cls)
    lines = {
        field.name: f"{field.name}: {inspect.formatannotation(hints[field.name])}{_default(field)}"
        for field in dataclasses.fields(cls)
    }
    width = min(40, max(map(len, lines.values()), default=0))
    return "\n".join(
        f"    {line:{width}}  {_presets(cls, name)}".rstrip() for name, line in lines.items()
    )


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return f" = {field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f" = {field.default_factory()!r}"
    return ""


def _presets(cls: type, field: str) -> str:
    presets = registry.presets_of(cls).items()
    return ", ".join(f"{name}: {values[field]!r}" for name, values in presets if field in values)
