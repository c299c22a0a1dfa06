"""The cache: models that robench converts itself, and replies that a plan asks for again.

Each folder and each file of it is whole or missing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robench import files
from robench.errors import InputError
from robench.locks import locked

VARIABLE = "ROBENCH_CACHE"  # names a folder that takes the place of the user's cache
_TEXT_BYTES = 64 * 2**20  # room for the tokenizer and the settings


def location() -> Path:
    """The folder of the cache."""
    import platformdirs

    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else platformdirs.user_cache_path("robench", False)


def remembered(name: str, kind: str, key: str, make: Callable[[], Any]) -> Any:
    """A JSON value that is made once.

    Args:
        name: what error messages call it.
        kind: the folder of the cache that such values are in.
        key: a hash of all that the value depends on.
        make: what gives it.

    Raises:
        InputError: the disk refuses; before anything is made where its folder cannot be.
    """
    file = location() / kind / f"{key}.json"
    with _disk_errors(name, file.parent):
        if file.is_file():
            return files.read_json(file)
        files.make_folder(file.parent)
    value = make()
    with _disk_errors(name, file.parent):
        files.write_json(file, value)
    return value


def build_once(name: str, folder: Path, build: Callable[[Path], None]) -> None:
    """Make a folder of the cache by `build(draft)`, whole or not at all, unless it stands there.

    Raises:
        InputError: the disk refuses, or another process is making it.
    """
    if folder.is_dir():
        return
    work = folder.with_name(f"{folder.name}.work")
    advice = f"it converts {name}; give the command again when it is done"
    with _disk_errors(f"{name}: the converted model", folder.parent), locked(work, advice):
        if folder.is_dir():  # another process was faster
            return
        draft = work / "draft"
        shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed
        draft.mkdir()
        try:
            build(draft)
            files.replace_folder(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def require_room(name: str, parameters: int, place: Path) -> None:
    """Raise InputError unless a disk has room for a float32 model and its tokenizer."""
    needed = 4 * parameters + _TEXT_BYTES
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputError(
            f"{name}: no room for the converted model: it takes {_gigabytes(needed)}, and "
            f"{place} has {_gigabytes(free)} free; set {VARIABLE} to a folder with more"
        )


@contextmanager
def _disk_errors(what: str, place: Path) -> Iterator[None]:
    """Report what a disk refuses in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise InputError(
            f"{what} cannot be kept under {place}: {reason}; make room, or set {VARIABLE} to "
            "another folder"
        ) from error


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
