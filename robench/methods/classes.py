"""The class that a name stands for: an entry point's, or one in a file."""

import importlib
import importlib.util
import inspect
import sys
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from robench.config import digest, suggestion
from robench.errors import InputError
from robench.identity import FROM_FILE, OURS, module_file
from robench.methods.faults import in_words, last_line, shown
from robench.methods.method import KINDS, VERBS, Kind


def names(kind: Kind) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted(_entries(kind))


def is_file(base: str) -> bool:
    """Whether a base name is `path/to/file.py:Class`."""
    return base.rpartition(":")[0].endswith(".py")


def load_class(kind: Kind, base: str) -> Any:
    """The class (or the ready instance) of a registered name or of `file.py:Class`.

    Raises:
        InputError: there is none, two packages offer one, or it cannot be imported.
    """
    if is_file(base) or base.endswith(".py"):
        return _class_in_file(f"{kind} {base!r}", base)
    entry = entry_of(kind, base)
    if not entry.attr:
        raise InputError(f"{kind} {base!r}: {_offered(entry)} names no class: NAME = module:Class")
    try:
        module = importlib.import_module(entry.module)
    except (Exception, SystemExit) as error:
        if entry.module.partition(".")[0] in OURS and not isinstance(error, ImportError):
            raise
        reason = _import_failure(error, entry.module, module_file(entry.module))
        raise InputError(f"{kind} {base!r}: {reason}") from error
    found: Any = module
    for name in entry.attr.split("."):
        found = getattr(found, name, None)
    if found is None or inspect.isroutine(found) or inspect.ismodule(found):
        file = getattr(module, "__file__", None)
        place = f" in {shown(Path(file))}" if file else ""
        raise InputError(
            f"{kind} {base!r}: {entry.module} has no class {entry.attr!r}{place}; "
            f"{_offered(entry)} names it"
        )
    return found


def _offered(entry: EntryPoint) -> str:
    """An entry point, by its package, for messages."""
    return f"the entry point of the package {entry.dist.name}" if entry.dist else "its entry point"


def entry_of(kind: Kind, name: str) -> EntryPoint:
    """The entry point of a registered name.

    Raises:
        InputError: there is none, or two packages offer one.
    """
    entries = _entries(kind).get(name)
    if not entries:
        raise InputError(f"no {kind} called {name!r}{suggestion(name, names(kind))}")
    if len(entries) > 1:
        packages = sorted(entry.dist.name if entry.dist else entry.module for entry in entries)
        raise InputError(
            f"{kind} {name!r} is offered by two packages, {' and '.join(packages)}: "
            "uninstall one of them"
        )
    return entries[0]


def registered_name(kind: Kind, cls: type) -> str:
    """The name under which a class is registered, "" where it is not."""
    for name, entries in _entries(kind).items():
        if (cls.__module__, cls.__qualname__) in {(e.module, e.attr) for e in entries}:
            return name
    return ""


def kinds_of(base: str) -> list[Kind]:
    """What a base name can be used as: by its registration, or by the verb of a class in a file.

    Raises:
        InputError: nothing has this name, or the file or its class is missing.
    """
    if not (is_file(base) or base.endswith(".py")):
        kinds = [kind for kind in KINDS if base in names(kind)]
        if not kinds:
            known = [name for kind in KINDS for name in names(kind)]
            raise InputError(f"nothing is called {base!r}{suggestion(base, known)}")
        return kinds
    cls = _class_in_file(repr(base), base)
    return [kind for kind in KINDS if callable(getattr(cls, VERBS[kind], None))]


@cache
def _entries(kind: Kind) -> dict[str, tuple[EntryPoint, ...]]:
    """By name; an entry that is installed twice (a folder beside its wheel) counts once."""
    entries: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in entry_points(group=f"robench.{kind}s"):
        package = entry.dist.name.lower().replace("_", "-") if entry.dist else ""
        entries.setdefault(entry.name, {})[package, entry.value] = entry
    return {name: tuple(by_value.values()) for name, by_value in entries.items()}


def _class_in_file(subject: str, base: str) -> type:
    """The class of `FILE.py:Class`; `FILE.py` alone is answered with the classes it has."""
    file, name = (base, "") if base.endswith(".py") else base.rsplit(":", 1)
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{subject}: no file {file!r}")
    try:
        module = _module(path.resolve(), sha256(path.read_bytes()).hexdigest())
    except (Exception, SystemExit) as error:
        raise InputError(f"{subject}: {_import_failure(error, 'the file', path)}") from error
    methods = [
        cls.__name__
        for cls in vars(module).values()
        if isinstance(cls, type)
        and cls.__module__ == module.__name__
        and any(callable(getattr(cls, verb, None)) for verb in VERBS.values())
    ]
    cls = getattr(module, name, None) if name else None
    if isinstance(cls, type):
        return cls
    if not methods:
        raise InputError(f"{file} has no class with one of {', '.join(VERBS.values())}")
    if not name:
        raise InputError(f"add :Class: {file} has {', '.join(methods)}")
    raise InputError(f"{file} has no class {name!r}{suggestion(name, methods)}")


@cache
def _module(path: Path, content: str) -> ModuleType:
    """A file as a module; a file that changed is another one, as its source is another method."""
    name = f"{FROM_FILE}{digest([str(path), content])[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_failure(error: BaseException, what: str, file: Path | None) -> str:
    """Why a module cannot be imported, with the line of its file and, where it is one, the fix."""
    line = last_line(error, {file.resolve()}) if file else ""
    place = f" ({line})" if line else ""
    fix = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        fix = f"; install the package {error.name.partition('.')[0]!r}"
    elif isinstance(error, ImportError) and "relative import" in str(error):
        fix = "; FILE.py is loaded on its own: install its package, and import that by its name"
    return f"{what} fails to import{place}: {in_words(error)}{fix}"
