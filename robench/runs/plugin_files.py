"""Methods that are a file (`FILE.py:Class`), sent to hosts that may not have the file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from robench import files
from robench.errors import InputError
from robench.identity import FROM_FILE, files_of, sources
from robench.methods.faults import in_words
from robench.methods.registry import Method


@dataclass(frozen=True)
class PluginFiles:
    """A module that was loaded from a file, with the files of its folder that it reads.

    module: its name, which is the same in every process
    folder: where the driver has them
    first:  the place of its file in `files`
    files:  content by place in the folder
    """

    module: str
    folder: str
    first: str
    files: dict[str, bytes]


def packed_plugins(methods: Iterable[Method]) -> tuple[PluginFiles, ...]:
    """The files of those methods that are a file, each module once.

    Files that a method declares (`files`) go along where they lie beside it or below.
    """
    instances: dict[str, list[object]] = {}
    for method in methods:
        module = type(method.instance).__module__
        if module.startswith(FROM_FILE):
            instances.setdefault(module, []).append(method.instance)
    return tuple(_packed(module, found) for module, found in instances.items())


def _packed(module: str, instances: Iterable[object]) -> PluginFiles:
    first, *others = (path.resolve() for path in sources(module))
    folder = first.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    declared = {file.resolve() for each in instances for file in files_of(each)}
    near = [file for file in (first, *others, *sorted(declared)) if file.is_relative_to(folder)]
    content = {file.relative_to(folder).as_posix(): file.read_bytes() for file in near}
    return PluginFiles(module, str(folder), first.relative_to(folder).as_posix(), content)


def load_plugin(plugin: PluginFiles, scratch: Path) -> None:
    """Load a module from its files, under the name that it has in every process.

    Args:
        scratch: a folder of this process, for a copy where the driver's files are not here.

    Raises:
        InputError: it cannot be loaded here.
    """
    if plugin.module in sys.modules:
        return
    folder = Path(plugin.folder)
    if not all(_is_same(folder / name, content) for name, content in plugin.files.items()):
        folder = scratch / "plugins" / plugin.module
        for name, content in plugin.files.items():
            files.write_bytes(folder / name, content)
        sys.path.append(str(folder))
    path = folder / plugin.first
    spec = importlib.util.spec_from_file_location(plugin.module, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[plugin.module] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[plugin.module]
        raise InputError(f"{plugin.first} cannot be loaded: {in_words(error)}") from error


def _is_same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content
