"""The identity of a method: a hash of the sources and files that its results depend on."""

import ast
import sys
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from robench.config import digest
from robench.errors import InputError

OURS = ("robench", "robench_attacks", "robench_defenses")  # the packages of this distribution
FROM_FILE = "robench_file_"  # the beginning of the module name of a `FILE.py:Class`


def source_digest(instance: Any) -> str:
    """The hash of a method's sources, of its `files`, and of its `identity`, if it has any.

    Its sources are the file that defines it and all files of its own package that this one imports,
    directly or through others. It is part of what names a cell and a trained adapter. Of a class
    that stands in no file (a notebook's) the code of its functions takes their place.

    Raises:
        InputError: its `files` are no paths, or one of them is missing.
    """
    module = type(instance).__module__
    parts: list[Any] = [
        sha256(file.read_bytes()).hexdigest() for file in (*sources(module), *files_of(instance))
    ]
    if not sources(module):
        parts.append(_code_of(type(instance)))
    return digest([*parts, getattr(instance, "identity", "")])


def files_of(instance: Any) -> tuple[Path, ...]:
    """The `files` that a method declares.

    Raises:
        InputError: they are no paths, or one of them is missing.
    """
    files = getattr(instance, "files", ())
    name = type(instance).__name__
    if isinstance(files, str) or not isinstance(files, Sequence):
        raise InputError(f"class {name}: files must be a tuple of paths, got {files!r}")
    for file in files:
        if not isinstance(file, (str, Path)):
            raise InputError(f"class {name}: files must be a tuple of paths, and has {file!r}")
        if not Path(file).is_file():
            raise InputError(f"class {name} reads a file that does not exist: {file}")
    return tuple(map(Path, files))


def sources(module: str) -> tuple[Path, ...]:
    """The file of an imported module, then those of its package that it imports, by name.

    Imports inside functions count, and so do the `__init__` files that Python runs on the way;
    what is imported by a computed name is not seen. The package is the top one of the module's
    name; of robench itself, whose version is recorded with every run, it is the folder of the
    module. To a `FILE.py:Class` and to a script belong the files beside it.
    """
    first = getattr(sys.modules.get(module), "__file__", None)
    if first is None:
        return ()
    scope = _Scope.of(module, Path(first))
    followed: dict[str, Path] = {}
    waiting = {module: Path(first)}
    while waiting:
        name, file = waiting.popitem()
        followed[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(file.read_bytes(), package):
            target = scope.file(imported)
            if target is not None and imported not in followed:
                waiting[imported] = target
    reached = {parent for name in followed for parent in scope.parents(name)}
    implied = {name: scope.file(name) for name in reached}
    files = followed | {name: file for name, file in implied.items() if file is not None}
    others = {file for file in files.values() if file != Path(first)}
    return (Path(first), *sorted(others))


def module_file(name: str) -> Path | None:
    """The source file of a module, found without importing it; None where there is none."""
    top, *rest = name.split(".")
    loaded = sys.modules.get(top)
    if loaded is not None:
        origin, roots = getattr(loaded, "__file__", None), getattr(loaded, "__path__", ())
    else:
        try:
            spec = find_spec(top)
        except (ImportError, ValueError):
            spec = None
        origin = spec.origin if spec else None
        roots = (spec.submodule_search_locations if spec else None) or ()
    if rest:
        return _below(roots, rest)
    return Path(origin) if origin and origin.endswith(".py") else None


class _Scope(NamedTuple):
    """Whose files count as a method's own.

    package: modules of this name and below it
    folder:  modules of any other name but ours that are files in this folder
    implied: whether the `__init__` files above a module count, too
    """

    package: str
    folder: Path | None
    implied: bool

    @classmethod
    def of(cls, module: str, file: Path) -> "_Scope":
        top = module.partition(".")[0]
        if top == "robench":
            return cls(module.rpartition(".")[0], None, False)
        if not module.startswith(FROM_FILE) and module != "__main__":
            return cls(top, None, True)
        folder = file.resolve().parent
        while (folder / "__init__.py").is_file():
            folder = folder.parent
        return cls(module, folder, True)

    def file(self, name: str) -> Path | None:
        """The source of a module, None where it is not one of the method's own."""
        if name == self.package or name.startswith(f"{self.package}."):
            return module_file(name)
        if self.folder is None or name.partition(".")[0] in OURS:
            return None
        return _below([self.folder], name.split("."))

    def parents(self, name: str) -> list[str]:
        """The packages above a module."""
        parts = name.split(".")
        return [".".join(parts[:k]) for k in range(1, len(parts))] if self.implied else []


def _below(roots: Sequence[Path | str], parts: Sequence[str]) -> Path | None:
    """The source of a module by its place below the folders of a package."""
    for root in roots:
        base = Path(root, *parts)
        for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if file.is_file():
                return file
    return None


@lru_cache(maxsize=256)
def _imports(source: bytes, package: str) -> tuple[str, ...]:
    """The full names of all modules that a source may import, functions' own imports included.

    Args:
        package: the package that relative imports start from, "" where there is none.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # whoever imports it will hear of it
        return ()
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = resolve_name("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return tuple(names)


def _code_of(cls: type) -> Any:
    """The code of a class's own functions as a JSON value, without names of files and lines."""
    inner = {name: getattr(value, "__wrapped__", value) for name, value in vars(cls).items()}
    return {
        name: _plain(value.__code__)
        for name, value in inner.items()
        if isinstance(value, FunctionType)
    }


def _plain(code: CodeType) -> list[Any]:
    constants = [
        _plain(value)
        if isinstance(value, CodeType)
        else sorted(map(repr, value))  # the order of a set is another one in every process
        if isinstance(value, frozenset)
        else repr(value)
        for value in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]
