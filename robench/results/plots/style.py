"""How plots look: widths of one and two columns, a palette that the colorblind can read, fonts that
are embedded.

Colors never stand alone: each series has a line style and a marker of its own.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from robench.results.visible import columns, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ONE_COLUMN, TWO_COLUMNS = 3.33, 6.9  # inches
LONGEST = 28  # characters of a name in a plot

# Okabe and Ito (2008), without black and without the yellow, which is too pale for lines
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Inches above, below and right of all panels, and from one row of them to the next
_TOP, _BOTTOM, _RIGHT, _BETWEEN = 0.25, 0.72, 0.12, 0.62
INK = "#1a1a1b"  # of text and axes; the page has its own ink in its place

_RC: Mapping[str, Any] = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 8,
    "font.family": "sans-serif",
    "font.size": 8,
    "grid.alpha": 0.25,
    "grid.color": "#808080",
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "robench",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "xtick.labelsize": 7,
    "ytick.color": INK,
    "ytick.labelsize": 7,
}


@contextmanager
def styled() -> Iterator[None]:
    """The look of all plots, inside a with-block; letters that a font lacks raise no warning."""
    import matplotlib

    with matplotlib.rc_context(cast(Any, dict(_RC))), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield


def series(number: int) -> dict[str, Any]:
    """Color, line style and marker of the n-th series."""
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def name(text: str) -> str:
    """A name as a plot can hold it."""
    return one_line(text, LONGEST)


def panels(
    count: int, width: float, height: float, across: int = 3, left: float = 0.5
) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, `across` of them in a row, with room for a legend below.

    Places are computed here: matplotlib's own layout draws everything three times.

    Args:
        height: of a panel's frame, in inches.
        left: room for the labels of each panel's vertical axis, in inches.
    """
    from matplotlib.figure import Figure

    in_row = max(1, min(count, across if width > ONE_COLUMN else 1))
    rows = max(1, -(-count // in_row))
    total = _TOP + rows * height + (rows - 1) * _BETWEEN + _BOTTOM
    figure = Figure(figsize=(width, total))
    frame = (width - in_row * left - _RIGHT) / in_row
    axes = []
    for number in range(max(1, count)):
        row, column = divmod(number, in_row)
        x = left + column * (frame + left)
        y = _BOTTOM + (rows - 1 - row) * (height + _BETWEEN)
        axes.append(figure.add_axes((x / width, y / total, frame / width, height / total)))
    return figure, axes


def room(names: Sequence[str]) -> float:
    """Inches that names take beside a vertical axis."""
    return 0.2 + 0.062 * max(map(columns, names), default=4)


def legend(figure: Figure, axes: Sequence[Axes], across: int = 4) -> None:
    """One legend for all panels, below them."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(
            list(found.values()), list(found), loc="lower center",
            ncols=min(across, len(found)),
        )  # fmt: skip


def percent_axis(axis: Axes, which: str = "y") -> None:
    """An axis of shares in percent, from 0 to 100."""
    from matplotlib.ticker import PercentFormatter

    target = axis.yaxis if which == "y" else axis.xaxis
    target.set_major_formatter(PercentFormatter(1.0, 0, symbol=""))
    target.set_ticks([0, 0.25, 0.5, 0.75, 1])
    (axis.set_ylim if which == "y" else axis.set_xlim)(-0.03, 1.03)
    axis.grid(True)


def file_of(figure: Figure, kind: str) -> bytes:
    """A plot as the content of a file: "pdf", "svg" or "png"."""
    with styled():
        content = io.BytesIO()
        metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
        figure.savefig(content, format=kind, dpi=300, metadata=metadata)
    return content.getvalue()


def inline_svg(figure: Figure, prefix: str) -> str:
    """A plot as SVG inside a page: its text is text, its ink the page's, its ids its own.

    Args:
        prefix: of the ids of this plot, which must be unique in the page.
    """
    import matplotlib

    with styled(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.patch.set_alpha(0)
        for axis in figure.axes:
            axis.patch.set_alpha(0)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(
        r' id="([^"]*)"',
        lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "",
        svg,
    )
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\1{prefix}-", svg)
    return svg.replace(INK, "currentColor")
