"""The worst case of each defense in each category of behaviors, with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.results.plots import style
from robench.results.run_tables import RunTables
from robench.results.verdicts import distinct, where
from robench.results.weaknesses import worst_categories

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def categories(tables: RunTables, width: float) -> Figure:
    """A panel for each defense, a bar for each category, in the order of their names."""
    defenses = distinct(tables.answers, "defense")
    rates = {d: worst_categories(where(tables.answers, defense=d)) for d in defenses}
    kinds = sorted({kind for of_defense in rates.values() for kind in of_defense})
    names = [style.name(kind or "(none)") for kind in kinds]
    height = 0.16 * max(3, len(kinds))
    figure, axes = style.panels(len(defenses), width, height, left=style.room(names))
    for number, (axis, defense) in enumerate(zip(axes, defenses, strict=False)):
        shown = [(place, rates[defense][k]) for place, k in enumerate(kinds) if k in rates[defense]]
        color = style.series(number)["color"]
        for place, rate in shown:
            low, high = rate.interval
            axis.barh(place, rate.value, color=color, height=0.7, alpha=0.75)
            axis.plot([low, high], [place, place], color=style.INK, linewidth=0.8)
        axis.set_yticks(range(len(kinds)), names)
        axis.invert_yaxis()
        style.percent_axis(axis, "x")
        axis.set_title(style.name(defense))
        axis.set_xlabel("worst case DSR, %")
    return figure
