"""Where methods come from: entry points, or a class in a file.

A reference is `NAME`, `NAME:PRESET`, or `path/to/file.py:Class` with an optional `:PRESET`.
Presets stand in the class attribute `presets`: name -> fields that differ from the defaults. A
class that names a field in the attribute `argument` has no presets: what stands behind the colon is
that field's value (`adapter:FOLDER`).
"""

import ast
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, NamedTuple

from robench.config import build, digest, suggestion
from robench.errors import InputError

Kind = Literal["attack", "defense", "judge"]
EXTERNAL = "external"  # the tier of what was made elsewhere


class Method(NamedTuple):
    """A resolved reference: the configured instance, and what its row is called."""

    name: str  # as written by the user, preset included: the row's name
    base: str  # without the preset: what `--set BASE.FIELD=VALUE` names
    tier: str  # the preset, or "custom" where a field was set by hand
    instance: Any


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"robench.{kind}s")}


def names(kind: Kind) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted(_entries(kind))


def summary(kind: Kind, name: str) -> str:
    """The first line of the file that defines a registered method, read without importing it."""
    try:
        spec = importlib.util.find_spec(_entries(kind)[name].module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        return "(cannot be found: its package is broken or gone)"
    words = ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or ""
    return words.partition("\n")[0]


def load_class(kind: Kind, base: str) -> Any:
    """The class (or the ready instance) behind a name or `file.py:Class`."""
    if is_file(base):
        return _from_file(kind, base)
    entry = _entries(kind).get(base)
    if entry is None:
        raise InputError(f"no {kind} called {base!r}{suggestion(base, names(kind))}")
    return entry.load()


def resolve(
    kind: Kind, reference: str, tier: str = "demo", settings: dict[str, Any] | None = None
) -> Method:
    """The configured method behind a reference.

    Args:
        kind: "attack", "defense" or "judge".
        reference: `NAME`, `NAME:PRESET` or `file.py:Class[:PRESET]`.
        tier: the preset of a bare name; a method without that preset takes its defaults.
        settings: fields set by hand, over the preset; they make the tier "custom".

    Raises:
        InputError: unknown name, preset or field; a file or class that is not there.
    """
    base, preset = split(reference)
    found = load_class(kind, base)
    if not isinstance(found, type):
        if settings or preset:
            raise InputError(f"{kind} {base!r} is a ready instance: it has no presets or fields")
        return Method(reference, base, tier, found)
    if hasattr(found, "argument"):
        if not preset:
            raise InputError(f"{kind} {base!r} needs a {found.argument}: {base}:VALUE")
        fields = {found.argument: preset, **(settings or {})}
        return Method(reference, base, EXTERNAL, build(found, fields, where=base))
    presets = presets_of(found)
    if preset and preset not in presets:
        raise InputError(f"{kind} {base!r} has no preset {preset!r}{suggestion(preset, presets)}")
    fields = {**presets.get(preset or tier, {}), **(settings or {})}
    instance = build(found, fields, where=base)
    return Method(reference, base, "custom" if settings else preset or tier, instance)


def presets_of(cls: type) -> dict[str, dict[str, Any]]:
    """The named presets of a method's class: field values that differ from its defaults."""
    return getattr(cls, "presets", {})


def split(reference: str) -> tuple[str, str]:
    """`NAME:PRESET` -> (`NAME`, `PRESET`), `file.py:Class:PRESET` likewise; "" without preset."""
    head, _, last = reference.rpartition(":")
    if not head:
        return reference, ""
    if head.endswith(".py"):
        return reference, ""
    return head, last


def is_file(base: str) -> bool:
    """Whether a base name is `path/to/file.py:Class`."""
    return base.rpartition(":")[0].endswith(".py")


@cache
def _from_file(kind: Kind, base: str) -> Any:
    file, _, cls = base.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{kind} {base!r}: no file {file!r}")
    module_name = f"robench_file_{digest(str(path.resolve()))[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"{kind} {base!r}: the file fails to import: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(getattr(module, cls, None), type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise InputError(f"{file} has no class {cls!r}{suggestion(cls, classes)}")
    return getattr(module, cls)
