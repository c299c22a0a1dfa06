"""A plot as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from robench import files
from robench.errors import InputError
from robench.results.answers import require_cells
from robench.results.plots.draw import draw
from robench.results.plots.style import file_of
from robench.results.run_tables import RunTables

FORMATS = (".pdf", ".svg", ".png")


def write(folder: Path, kind: str, out: Path, columns: int = 2, **options: Any) -> None:
    """Write a plot of a run.

    Args:
        folder: of the run.
        kind: one of `KINDS`.
        out: the file; its ending says which format.
        columns: of a paper, 1 or 2, that the plot is as wide as.

    Raises:
        InputError: no such run, kind or format, or nothing was recorded yet.
    """
    if out.suffix.lower() not in FORMATS:
        raise InputError(f"--out must end in {', '.join(FORMATS)}, got {out}")
    tables = RunTables.of([folder])
    require_cells(tables.answers, folder)
    figure = draw(kind, tables.of_model(tables.models[0]), columns, **options)
    files.write_bytes(out, file_of(figure, out.suffix.lower()[1:]))
