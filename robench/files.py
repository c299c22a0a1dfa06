"""The one way to put bytes on disk: a reader never sees half a file, and a power cut loses none.

A file is written under a temporary name in its own folder, flushed to the disk (fsync), renamed,
and its folder is flushed too, without which the new name could be lost. Records that grow are JSON
Lines: lines are added in one write that reaches the disk, and a line that a killed process left
unfinished is not read and can be cut off.
"""

import errno
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robench.errors import InputError

# What file systems that cannot flush a folder answer: it is then as durable as they make it.
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; folders that are missing above it are made.

    Raises:
        OSError: the disk is full or refuses; the old file stands.
    """
    make_folder(path.parent)
    draft = path.with_name(f"{path.name}.tmp")
    draft.unlink(missing_ok=True)  # of a killed process; never written through, it may be a link
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8, line ends as they are; lone surrogates are kept."""
    write_bytes(path, _encoded(text))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` of a JSON value.

    Raises:
        ValueError: it holds NaN or an infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def json_line(value: Any) -> str:
    """A JSON value as a line of a JSON Lines file, its end included.

    Raises:
        ValueError: as of `write_json`.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Add lines, their ends included, in one write that reaches the disk."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(_encoded("".join(lines)))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        _sync_folder(path.parent)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        InputError: it is not JSON.
    """
    return _parsed(path.read_bytes(), str(path))


def read_json_lines(path: Path) -> list[Any]:
    """The values of the lines that are whole; none where there is no file.

    Raises:
        InputError: names the line that is not JSON.
    """
    lines = _whole_lines(path)
    try:
        values: list[Any] = json.loads(b"[" + b",".join(lines) + b"]")  # names of fields stand once
    except ValueError:
        values = []
    if len(values) == len(lines):
        return values
    return [_parsed(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def cut_lines(path: Path, count: int | None = None) -> None:
    """Cut a file after its first `count` lines, by default after the last one that is whole."""
    size = sum(map(len, _whole_lines(path)[:count]))
    if path.is_file() and size < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(size)
            os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and those missing above it, so that a power cut does not lose them.

    Raises:
        OSError: it cannot be made, or a file stands there.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def replace_folder(draft: Path, folder: Path) -> None:
    """Give a folder that is finished under a temporary name its own: it is whole or not there.

    Args:
        draft: beside `folder`; all its files and folders are flushed first.
        folder: missing or empty.
    """
    for path in sorted(draft.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(draft)
    os.replace(draft, folder)
    _sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder: renamed first, so that a killed removal leaves no part of it in its place.

    What such a removal leaves is called `.NAME.removed`.
    """
    removed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    _sync_folder(folder.parent)
    shutil.rmtree(removed)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that end in a line feed; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [line + b"\n" for line in lines[:-1]]


def _parsed(content: bytes, place: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise InputError(f"{place} is damaged: it is not JSON") from None


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk, where the system can."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
