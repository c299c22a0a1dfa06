"""The worst case of each defense with its interval, in the order of the leaderboard."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from robench.results.plots import style
from robench.results.run_tables import RunTables

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def leaderboard(tables: RunTables, width: float) -> Figure:
    """A line for each defense: the worst case, its 95 % interval, and the mean over attacks."""
    rows = tables.board.to_dict("records")
    names = [style.name(row["defense"]) + (" ≤" if row["attacks_missing"] else "") for row in rows]
    figure, (axis,) = style.panels(1, width, 0.24 * max(2, len(rows)), left=style.room(names))
    for place, row in enumerate(rows):
        if math.isnan(row["dsr_worst"]):
            continue
        color = style.COLORS[0]
        axis.plot([row["dsr_worst_lo"], row["dsr_worst_hi"]], [place, place], color=color,
                  linewidth=4, alpha=0.35, solid_capstyle="butt")  # fmt: skip
        axis.plot(row["dsr_worst"], place, color=color, marker="o", linestyle="none",
                  label="worst case, 95 % interval")  # fmt: skip
        axis.plot(row["dsr_mean"], place, color=style.COLORS[1], marker="|", markersize=9,
                  linestyle="none", label="mean over attacks")  # fmt: skip
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    style.percent_axis(axis, "x")
    axis.set_xlabel("DSR, %")
    style.legend(figure, [axis])
    return figure
