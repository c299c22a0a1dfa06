"""What a run came to: its folder, its holes and its tables, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from robench.results.answers import load_rows, read_answers
from robench.results.flips import Flips, flips
from robench.results.run_tables import RunTables
from robench.results.schema import BENIGN_VARIANT
from robench.results.store import Cell, RunStore

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Outcome:
    """A run's folder, and how many of the cells asked for are holes.

    A hole is a cell that failed, is unfinished, or in which nothing could be scored.
    """

    folder: Path
    holes: int
    note: str = ""  # what should be done next, in a line

    @classmethod
    def of(cls, store: RunStore, cells: Sequence[Cell], note: str = "") -> Outcome:
        """Of a folder, for the cells that were asked for."""
        answered = {
            answer.folder.name
            for answer in read_answers([store.folder])
            if answer.folder and not answer.hole
        }
        asked = [cell for cell in cells if cell.header["role"] != BENIGN_VARIANT]
        return cls(store.folder, sum(cell.name not in answered for cell in asked), note)

    @cached_property
    def dsr(self) -> pd.DataFrame:
        """The table of dsr.csv: a row per defense, attack, judge and seed."""
        return self._tables.dsr

    @cached_property
    def _tables(self) -> RunTables:
        return RunTables.of([self.folder])

    @cached_property
    def leaderboard(self) -> pd.DataFrame:
        """The table of leaderboard.csv: a row per defense, ranked."""
        return self._tables.board

    def rows(self) -> pd.DataFrame:
        """Every recorded attempt, as `robench.load_rows` gives it."""
        return load_rows(self.folder)

    def compare(self, a: str, b: str) -> Flips:
        """Which behaviors flip between two defenses, with the exact p and the paired interval."""
        return flips(read_answers([self.folder]), a, b)

    def __str__(self) -> str:
        """The tables as dsr.md has them, and the note."""
        text = (self.folder / "dsr.md").read_text("utf-8")
        return f"{text}\n{self.note}" if self.note else text

    def _repr_html_(self) -> str:
        """The leaderboard, for a notebook; names are escaped."""
        shown = ["rank_lo", "rank_hi", "group", "rank_note", "defense", "dsr_worst", "dsr_worst_lo",
                 "dsr_worst_hi", "dsr_mean", "strongest_attack", "benign_compliance",
                 "gate"]  # fmt: skip
        return self.leaderboard[shown].to_html(index=False, float_format="{:.2f}".format)
