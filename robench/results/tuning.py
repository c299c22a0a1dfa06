"""Whether an attack's settings were chosen within what it tried, or at an edge of it."""

from __future__ import annotations

from collections.abc import Sequence

from robench.results.verdicts import Answer

EDGE_OF_GRID = "edge-of-grid"


def is_at_edge(answers: Sequence[Answer]) -> bool:
    """Whether the strongest or the weakest of several settings was the best on any seed."""
    return any(row["edge_of_grid"] for answer in answers for row in answer.rows)
