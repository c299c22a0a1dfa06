"""What a method is known by: a hash of the sources and files that its results depend on."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from importlib.util import find_spec, resolve_name
from pathlib import Path
from typing import Any

from robench.config import digest


def source_digest(instance: Any) -> str:
    """The hash of a method's sources, of its `files`, and of its `identity`, if it has any.

    Its sources are the file that defines it and all files of its own package that this one imports,
    directly or through others. It is part of what names a cell and a trained adapter.
    """
    module = type(instance).__module__
    files = [*sources(module), *getattr(instance, "files", ())]
    parts = [sha256(Path(file).read_bytes()).hexdigest() for file in files]
    return digest([*parts, getattr(instance, "identity", "")]) if parts else ""


@cache
def sources(module: str) -> tuple[Path, ...]:
    """The file of an imported module, then those of its package that it imports, by name.

    The package is the top one of the module's name. Of robench itself, whose version is recorded
    with every run, it is the folder of the module.
    """
    first = getattr(sys.modules[module], "__file__", None)
    if first is None:
        return ()
    top = module.partition(".")[0]
    package = module.rpartition(".")[0] if top == "robench" else top
    found: dict[str, Path] = {module: Path(first)}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        for imported in _imports(found[name], name):
            inside = imported == package or imported.startswith(f"{package}.")
            if not inside or imported in found:
                continue
            file = _file(imported)
            if file is not None:
                found[imported] = file
                waiting.append(imported)
    return (found.pop(module), *(found[name] for name in sorted(found)))


def _imports(file: Path, module: str) -> Iterator[str]:
    """The full names of all modules that a source may import, functions' own imports included."""
    is_package = file.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = resolve_name("." * node.level + base, package)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _file(module: str) -> Path | None:
    """The source file of a module, None where the name is no module's."""
    try:
        spec = find_spec(module)
    except ImportError:
        return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") else None
