"""Errors inside a method's own code: whose they are, and where."""

from pathlib import Path
from traceback import extract_tb
from typing import Any

from robench.errors import InputError
from robench.identity import OURS, sources
from robench.methods.method import Method


def is_ours(instance: Any) -> bool:
    """Whether a method comes with robench: an error in its code is then a bug of ours."""
    return type(instance).__module__.partition(".")[0] in OURS


def blame(method: Method, error: BaseException) -> str:
    """What went wrong in a method, in one line: "attack 'mine' (./mine.py:12): TypeError: ..."."""
    place = line_of(method.instance, error)
    return f"{method.kind} {method.name!r}{f' ({place})' if place else ''}: {in_words(error)}"


def line_of(instance: Any, error: BaseException) -> str:
    """The last line of a method's own files that an error passed through, as FILE:LINE, or ""."""
    return last_line(error, {file.resolve() for file in sources(type(instance).__module__)})


def last_line(error: BaseException, files: set[Path]) -> str:
    """The last line of these (resolved) files that an error passed through, as FILE:LINE, or ""."""
    frames = [f for f in extract_tb(error.__traceback__) if Path(f.filename).resolve() in files]
    return f"{shown(Path(frames[-1].filename))}:{frames[-1].lineno}" if frames else ""


def in_words(error: BaseException) -> str:
    """An error in one line; the user's mistakes are sentences of their own."""
    words = " ".join(str(error).split())
    if isinstance(error, InputError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def shown(file: Path) -> str:
    """A path as messages show it: from the working directory, where it lies below it."""
    resolved, here = file.resolve(), Path.cwd()
    return f"./{resolved.relative_to(here)}" if resolved.is_relative_to(here) else str(file)
