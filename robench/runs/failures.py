"""What an error on the way to a cell's rows means: a hole, the end of the run, and whose it is."""

from __future__ import annotations

import torch

from robench.errors import Failure, InputError
from robench.methods.faults import blame, class_of, is_ours, line_of, of
from robench.methods.registry import Method
from robench.runs.answering import BrokenContract
from robench.runs.tasks import Failed


def failed(method: Method, error: BaseException) -> Failed:
    """An error that was raised while a method worked.

    Errors of the disk and of the user end a run in any case, those that a method foresees never.
    What else happens inside a method that does not come with robench is its author's: one line.
    """
    reason = one_line(error)
    if method.kind == "defense":
        reason = f"defense {method.name}: {reason}"
    return Failed(
        reason,
        _named(method, error),
        always=isinstance(error, (OSError, InputError)),
        hole=isinstance(error, (Failure, torch.OutOfMemoryError)),
    )


def _named(method: Method, error: BaseException) -> BaseException:
    """The error by which a run ends, which names the method that is not ours."""
    if isinstance(error, (OSError, InputError)) or is_ours(method.instance):
        return error
    named: InputError | None = None
    if isinstance(error, BrokenContract):
        named = InputError(f"{error} ({class_of(method.instance)})")
    elif line_of(method.instance, error):
        named = InputError(blame(*of(method), error))
    if named is None:
        return error
    named.__cause__ = error
    return named


def one_line(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, Failure):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}"
