"""A plot by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from robench.config import suggestion
from robench.errors import InputError
from robench.results.plots import style
from robench.results.plots.budget import budget
from robench.results.plots.categories import categories
from robench.results.plots.leaderboard import leaderboard
from robench.results.plots.matrix import matrix
from robench.results.plots.pareto import pareto
from robench.results.plots.training import training
from robench.results.run_tables import RunTables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS: dict[str, Callable[..., Figure]] = {
    "matrix": matrix,
    "leaderboard": leaderboard,
    "budget": budget,
    "pareto": pareto,
    "categories": categories,
    "training": training,
}


def draw(kind: str, tables: RunTables, columns: int = 2, **options: Any) -> Figure:
    """A plot of one model's tables.

    Args:
        kind: one of KINDS.
        columns: of a paper, 1 or 2, that it is as wide as.
        options: of the kind: `by` for "budget".

    Raises:
        InputError: there is no such kind.
    """
    if kind not in KINDS:
        raise InputError(f"no plot called {kind!r}{suggestion(kind, KINDS)}")
    width = style.ONE_COLUMN if columns == 1 else style.TWO_COLUMNS
    with style.styled():
        return KINDS[kind](tables, width, **options)
