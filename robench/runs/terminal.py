"""Output for people: colored tables on a terminal, plain Markdown where it is piped."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

_CELL = re.compile(r"(?<!\\)\|")  # what parts the cells of a Markdown table
_RATE = re.compile(r"^(?:≤ )?(\d+) \[")
_HEAT = ("red", "dark_orange", "yellow", "green_yellow", "green")  # from broken to held


def show(text: str) -> None:
    """Print the tables of a run: drawn and colored on a terminal, as they are elsewhere."""
    if not sys.stdout.isatty():
        click.echo(text)
        return
    from rich.console import Console

    console = Console(highlight=False)
    lines = text.splitlines()
    while lines:
        if lines[0].startswith("| "):
            rows = [line for line in lines if line.startswith("|")][: _height(lines)]
            console.print(_drawn(rows))
            lines = lines[len(rows) :]
        else:
            line = lines.pop(0)
            heading = line.startswith("## ")
            console.print(line.removeprefix("## "), style="bold" if heading else "", markup=False)


def paged(paragraphs: Iterable[str]) -> None:
    """Print paragraphs, through a pager on a terminal."""
    if sys.stdout.isatty():
        click.echo_via_pager(f"{paragraph}\n" for paragraph in paragraphs)
    else:
        for paragraph in paragraphs:
            click.echo(paragraph)


def _height(lines: Sequence[str]) -> int:
    """How many lines the table takes that begins with the first."""
    return next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))


def _drawn(lines: Sequence[str]) -> Any:
    """A Markdown table as one that rich draws, cut to the width of the terminal."""
    from rich.table import Table
    from rich.text import Text

    heads, _, *rows = (
        [re.sub(r"\\(.)", r"\1", cell.strip()) for cell in _CELL.split(line)[1:-1]]
        for line in lines
    )
    table = Table(header_style="bold", box=None, pad_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_style(cell)) for cell in row))
    return table


def _style(cell: str) -> str:
    """The color of a rate, and of what is not well."""
    if found := _RATE.match(cell):
        return _HEAT[min(len(_HEAT) - 1, int(found[1]) * len(_HEAT) // 100)]
    return "bold red" if cell == "fail" or cell.startswith("hole") else ""
