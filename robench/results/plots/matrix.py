"""DSR of every attack on every defense, as a heat map."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from robench.results.effects import failures
from robench.results.flags import holes
from robench.results.markdown import percent
from robench.results.plots import style
from robench.results.rates import dsr
from robench.results.run_tables import RunTables
from robench.results.verdicts import attacked, distinct, where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALE = "cividis"  # colorblind-safe, and its lightness rises with the value


def matrix(tables: RunTables, width: float) -> Figure:
    """A row for each defense, a column for each attack; a cell has DSR and its interval."""
    import matplotlib
    from matplotlib.figure import Figure

    answers = list(tables.answers)
    harmful, gaps, failed = attacked(answers), holes(answers), failures(answers)
    attacks, defenses = distinct(harmful, "attack"), distinct(answers, "defense")
    figure = Figure(figsize=(width, 0.5 * len(defenses) + 0.9), layout="constrained")
    axis = figure.subplots()
    scale = matplotlib.colormaps[SCALE]
    for i, defense in enumerate(defenses):
        for j, attack in enumerate(attacks):
            rate = dsr(where(harmful, defense=defense, attack=attack))
            hole = (defense, attack) in gaps or math.isnan(rate.value)
            color = (0.85, 0.85, 0.85, 1.0) if hole else scale(rate.value)
            axis.fill([j, j + 1, j + 1, j], [i, i, i + 1, i + 1], facecolor=color,
                      edgecolor="white", hatch="///" if hole else None)  # fmt: skip
            dark = not hole and rate.value < 0.55
            low, high = (percent(end) for end in rate.interval)
            text = "hole" if hole else f"{percent(rate.value)}\n[{low}, {high}]"
            axis.text(j + 0.5, i + 0.5, text, ha="center", va="center", fontsize=6,
                      color="white" if dark else "black")  # fmt: skip
    heads = [style.name(a) + ("\n(no effect on none)" if failed.get(a) else "") for a in attacks]
    axis.set(xlim=(0, max(1, len(attacks))), ylim=(max(1, len(defenses)), 0))
    axis.set_xticks([j + 0.5 for j in range(len(attacks))], heads, rotation=20, ha="left")
    axis.set_yticks([i + 0.5 for i in range(len(defenses))], [style.name(d) for d in defenses])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    axis.set_xlabel("DSR in percent, 95 % interval; dark = broken")
    return figure
