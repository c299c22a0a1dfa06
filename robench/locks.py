"""A folder is written by one process at a time.

The lock is one of the operating system on the file `.lock` in the folder, taken through `filelock`
(flock, and what Windows has in its place), which huggingface_hub and torch bring along. The system
releases it when its process ends, however it ends: no lock of a dead process is ever left that
somebody would have to recognise and to take over, which two processes could do at once. On NFS
flock is one of the server, so it holds between hosts; on a file system without flock, filelock
makes do with the existence of the file. The file stays where it is, as removing it would let two
processes lock two files of one name.

Who holds the lock stands beside it, in `.lock-owner.json`, for the message of those who do not get
it; only the lock itself decides.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from robench import files
from robench.errors import InputError

LOCK, OWNER = ".lock", ".lock-owner.json"

_holders: dict[Path, int] = {}  # the lock files that are held here, and by which process


ADVICE = "wait for it, or choose another --out"


@contextmanager
def locked(folder: Path, advice: str = ADVICE) -> Iterator[None]:
    """Hold a folder, which is made if need be, while the with-block runs.

    A process that holds a folder may lock it again: the innermost block then changes nothing, and
    the outermost one releases it. Threads of one process are not kept apart.

    Args:
        folder: to hold.
        advice: ends the message of those who do not get it.

    Raises:
        InputError: another process holds it; the message names it.
        OSError: the folder or the lock file cannot be made.
    """
    place = folder.resolve()
    with _held(folder, place / LOCK, place / OWNER, advice):
        yield


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """As `locked`, for a folder that is not to exist before it is whole: the lock stands beside it.

    Raises:
        InputError, OSError: as of `locked`.
    """
    place = folder.resolve()
    beside = place.with_name(f".{place.name}")
    with _held(folder, Path(f"{beside}{LOCK}"), Path(f"{beside}{OWNER}"), ADVICE):
        yield


@contextmanager
def _held(folder: Path, lock_file: Path, owner_file: Path, advice: str) -> Iterator[None]:
    """Hold a lock file.

    Args:
        folder: what messages call it.
        advice: ends them.
    """
    if _holders.get(lock_file) == os.getpid():  # another id: inherited by a forked process
        yield
        return
    files.make_folder(lock_file.parent)
    lock = FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder} is in use by {_owner(owner_file)}; {advice}") from None
    try:
        _holders[lock_file] = os.getpid()
        since = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        owner = {"process": os.getpid(), "host": socket.gethostname(), "since": since}
        files.write_json(owner_file, owner)
        yield
    finally:
        _holders.pop(lock_file, None)
        owner_file.unlink(missing_ok=True)
        lock.release()


def holder(folder: Path) -> str:
    """Who holds a folder, as it is written there: "process 12 on here (since ...)", or "".

    A process of this host that is gone holds nothing.
    """
    owner_file = folder / OWNER
    if not owner_file.is_file():
        return ""
    try:
        owner = files.read_json(owner_file)
        if owner["host"] == socket.gethostname():
            os.kill(owner["process"], 0)
    except (ProcessLookupError, InputError, KeyError, TypeError):
        return ""
    except OSError:  # it is another user's, or the file has gone meanwhile
        pass
    return _owner(owner_file)


def _owner(owner_file: Path) -> str:
    """Who holds a lock, as far as it is written beside it."""
    try:
        owner = files.read_json(owner_file)
        return "process {process} on {host} (since {since})".format(**owner)
    except (OSError, InputError, KeyError, TypeError):
        return "another process"
