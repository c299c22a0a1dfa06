"""Safety against usefulness: the worst case over harmless requests met, and over utility tasks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from robench.results.pareto import front
from robench.results.plots import style
from robench.results.rates import rate
from robench.results.run_tables import RunTables
from robench.results.schema import BENIGN
from robench.results.utility_columns import measured
from robench.results.verdicts import distinct, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPLIANCE = "benign_compliance"


def usefulness(tables: RunTables) -> dict[str, str]:
    """Column of leaderboard.csv -> what it is called, for each measure of usefulness."""
    tasks = {f"utility_{task}": task for task in measured(tables.board)}
    return {COMPLIANCE: "harmless requests met, %", **tasks}


def better_when_low(column: str) -> bool:
    """Whether a smaller figure is the better one, as of a perplexity."""
    return "perplexity" in column


def on_front(tables: RunTables, column: str) -> list[str]:
    """The defenses of one model that no other beats in the worst case and in a measure."""
    sign = -1 if better_when_low(column) else 1
    points = {
        row["defense"]: (sign * row[column], row["dsr_worst"])
        for row in tables.board.to_dict("records")
    }
    return front(points)


def compliance_interval(tables: RunTables, defense: str) -> tuple[float, float]:
    """Wilson's interval of the share of harmless requests that a defense meets."""
    asked = where(tables.answers, defense=defense, role=BENIGN)
    return rate((answer.verdicts() for answer in asked), "complied").interval


def pareto(tables: RunTables, width: float) -> Figure:
    """A panel for each measure of usefulness, a point with its intervals for each defense."""
    columns = usefulness(tables)
    figure, axes = style.panels(len(columns), width, 1.7)
    for axis, (column, label) in zip(axes, columns.items(), strict=True):
        _panel(axis, tables, column)
        axis.set_xlabel(style.name(label))
    axes[0].set_ylabel("worst case DSR, %")
    style.legend(figure, axes)
    return figure


def _panel(axis: Axes, tables: RunTables, column: str) -> None:
    places = {}
    order = distinct(tables.answers, "defense")
    for row in tables.board.to_dict("records"):
        x, y = row[column], row["dsr_worst"]
        places[row["defense"]] = (x, y)
        if math.isnan(x) or math.isnan(y):
            continue
        spread = [[max(0.0, y - row["dsr_worst_lo"])], [max(0.0, row["dsr_worst_hi"] - y)]]
        across = None
        if column == COMPLIANCE:
            low, high = compliance_interval(tables, row["defense"])
            across = None if math.isnan(low) else [[max(0.0, x - low)], [max(0.0, high - x)]]
        look = {**style.series(order.index(row["defense"])), "linestyle": "none"}
        axis.errorbar(x, y, spread, across, label=style.name(row["defense"]), elinewidth=0.8,
                      **look)  # fmt: skip
    kept = [places[name] for name in on_front(tables, column)]
    if len(kept) > 1:
        axis.plot(*zip(*kept, strict=True), color="#808080", linewidth=0.8, zorder=0)
    style.percent_axis(axis)
    if column == COMPLIANCE:
        style.percent_axis(axis, "x")
    if better_when_low(column):
        axis.invert_xaxis()
