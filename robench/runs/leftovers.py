"""Temporary folders that a killed process cannot remove: the next one that starts does."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "robench-"
_OLD = 600.0  # seconds: what a worker left that died just now, its driver still reads


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """A folder for the with-block, short enough for sockets in it."""
    folder = new_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_folder() -> Path:
    """A new folder, which tells whose it is; old ones of processes that are gone are removed."""
    parent = Path(tempfile.gettempdir())
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdecimal() and not _is_alive(int(owner)) and _is_old(folder):
            shutil.rmtree(folder, ignore_errors=True)  # of others: not permitted, and left
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime > _OLD
    except OSError:  # it has gone meanwhile
        return False
