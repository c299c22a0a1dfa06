"""Output for people: colored tables on a terminal, plain Markdown where it is piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import click


def paged(paragraphs: Iterable[str]) -> None:
    """Print paragraphs, through a pager on a terminal."""
    if sys.stdout.isatty():
        click.echo_via_pager(f"{paragraph}\n" for paragraph in paragraphs)
    else:
        for paragraph in paragraphs:
            click.echo(paragraph)
