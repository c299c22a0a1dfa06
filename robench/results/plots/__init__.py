"""Plots of a run, for papers and for its page: `draw` makes one by its kind.

Nothing here imports matplotlib until a plot is made.
"""

from robench.results.plots.draw import KINDS, draw

__all__ = ["KINDS", "draw"]
