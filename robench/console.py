"""What is printed, on consoles that cannot write every character."""

import io
import sys


def forgive() -> None:
    """Let this process write what its console's encoding has not as an escape, never as an error.

    Windows consoles of a code page, redirected output there, and the locale C know few characters;
    names, replies and the tables' own signs may hold any.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")
