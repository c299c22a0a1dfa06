"""Tables and numbers as Markdown text that lines up in a terminal, too."""

from __future__ import annotations

import math
import re
from typing import Any

from robench.results.visible import columns


def align(lines: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal, too; the first line is its head."""
    cells = [[escape(cell) for cell in line] for line in lines]
    widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
    padded = [
        "| "
        + " | ".join(c + " " * (w - columns(c)) for c, w in zip(line, widths, strict=True))
        + " |"
        for line in cells
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([padded[0], rule, *padded[1:]]) + "\n"


def escape(text: str) -> str:
    """Text that a Markdown table can hold in one cell: no markup, no link, no terminal's codes."""
    line = "".join(char for char in re.sub(r"\s+", " ", text) if char.isprintable())
    return re.sub(r"([\\|<`]|(?<=\])\()", r"\\\1", line)


def with_interval(value: float, low: float, high: float) -> str:
    return "?" if math.isnan(value) else f"{percent(value)} [{percent(low)}, {percent(high)}]"


def against(value: float, delta: float) -> str:
    """A figure of any size, and how far it is from the undefended model's."""
    if math.isnan(value):
        return "?"
    return f"{value:.4g}" if math.isnan(delta) else f"{value:.4g} ({delta:+.2g})"


def percent(share: float) -> str:
    return "?" if math.isnan(share) else f"{100 * share:.0f}"


def figure(number: float) -> str:
    return "?" if math.isnan(number) else f"{number:.2f}"


def whole(number: Any) -> str:
    """A number without decimals, "" where there is none."""
    import pandas as pd

    return "" if pd.isna(number) else f"{number:.0f}"
