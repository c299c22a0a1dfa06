"""How the defenses were trained: every curve of their records, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robench.results.plots import style
from robench.results.run_tables import RunTables
from robench.results.trainings import trainings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training(tables: RunTables, width: float) -> Figure:
    """A panel for each defense and curve, a line for each seed."""
    found = trainings(tables.stores, tables.answers)
    places = list(dict.fromkeys((t.defense, curve) for t in found for curve in t.curves))
    figure, axes = style.panels(len(places) or 1, width, 0.85)
    for axis, (defense, curve) in zip(axes, places, strict=False):
        seeds = [t for t in found if t.defense == defense and curve in t.curves]
        for number, one in enumerate(seeds):
            look = {**style.series(number), "marker": "", "linewidth": 1.0}
            values = one.curves[curve]
            axis.plot(range(1, len(values) + 1), values, label=f"seed {one.seed}", **look)
        axis.set_title(style.name(f"{defense}: {curve}"))
        axis.locator_params(nbins=4)
        axis.set_xlabel("training step")
        axis.grid(True)
    if not places:
        axes[0].set_title("no defense was trained in this run")
        axes[0].set_axis_off()
    style.legend(figure, axes)
    return figure
