"""report.html on the disk, and in a browser."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from robench import files
from robench.errors import InputError
from robench.results.report.page import PAGE, render
from robench.results.run_tables import RunTables
from robench.results.store import RunStore


def write(
    folders: Sequence[Path],
    out: Path | None = None,
    replies: bool = False,
    compare: Path | None = None,
) -> Path:
    """Write the page of some runs; nothing but this file is written.

    Args:
        folders: runs; their cells are put together.
        out: the file, by default report.html in the folder of a single run.
        replies: whether prompts and replies of models that are not make-believe are shown.
        compare: another run, which the page compares these with.

    Returns:
        The file.

    Raises:
        InputError: a folder is not a run's, several runs have no `out`, or it is a folder.
    """
    for folder in (*folders, *([compare] if compare else [])):
        RunStore(folder).question()
    if out is None:
        if len(folders) > 1:
            raise InputError("several runs: give --out FILE.html for the page of all of them")
        out = folders[0] / PAGE
    if out.is_dir():
        raise InputError(f"{out} is a folder; give --out FILE.html")
    other = RunTables.of([compare]) if compare else None
    files.write_text(out, render(RunTables.of(folders), replies, other))
    return out


def show(page: Path) -> None:
    """Open a page in the user's browser.

    Raises:
        InputError: there is none.
    """
    try:
        opened = webbrowser.open(page.absolute().as_uri())
    except webbrowser.Error:
        opened = False
    if not opened:
        raise InputError(f"no browser could be started; open {page} yourself")
