"""Errors inside a method's own code: whose they are, and where."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb
from typing import Any

from robench.errors import Failure, InputError
from robench.identity import OURS, sources
from robench.methods.method import Kind, Method


def is_ours(instance: Any) -> bool:
    """Whether a method comes with robench: an error in its code is then a bug of ours."""
    return type(instance).__module__.partition(".")[0] in OURS


def blame(kind: Kind, name: str, instance: Any, error: BaseException) -> str:
    """What went wrong in a method, in one line: "attack 'mine' (./mine.py:12): TypeError: ..."."""
    return f"{kind} {name!r} ({line_of(instance, error) or class_of(instance)}): {in_words(error)}"


def class_of(instance: Any) -> str:
    """A method's class and file, for errors at its border, which have no line in it."""
    files = sources(type(instance).__module__)
    return f"class {type(instance).__name__}" + (f" in {shown(files[0])}" if files else "")


@contextmanager
def blamed(kind: Kind, name: str, instance: Any) -> Iterator[None]:
    """Around a call into a method alone: what it raises is reported as its author's, in one line.

    Errors of the disk and of memory, and those that a method reports in the user's words, pass.

    Raises:
        InputError: the method does not come with robench and raised something else.
    """
    try:
        yield
    except (InputError, Failure, OSError):
        raise
    except (Exception, SystemExit) as error:
        if is_ours(instance) or type(error).__name__ == "OutOfMemoryError":
            raise
        raise InputError(blame(kind, name, instance, error)) from error


def of(method: Method) -> tuple[Kind, str, Any]:
    """A method as `blame` and `blamed` take it."""
    return method.kind, method.name, method.instance


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
