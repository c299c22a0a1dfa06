"""The cells of a run, grouped by the defense that they put on."""

from dataclasses import dataclass

from robench.methods.registry import Method
from robench.results.store import Cell


@dataclass(frozen=True)
class Group:
    """The cells of one defense with one seed, each with its attack."""

    defense: Method
    seed: int
    cells: tuple[tuple[Cell, Method], ...]
