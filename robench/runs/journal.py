"""progress.json in a run's folder: what a run is doing, for whoever looks from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from robench import files
from robench.runs.tasks import Group

FILE = "progress.json"
EVERY = 5.0  # seconds between two versions


class PlannedCell(TypedDict):
    """A cell that the last command was to do."""

    name: str
    defense: str
    attack: str
    seed: int
    behaviors: int
    seconds: float | None
    """Forecast, its defense's training included where it is the first one; null: none."""


class ProgressRecord(TypedDict):
    """progress.json."""

    cells: list[PlannedCell]
    running: list[str]
    """Names of cells, and "training DEFENSE" of what is being trained."""
    workers: dict[str, int]
    """How many are busy, idle, starting and lost."""
    begun: str
    updated: str
    elapsed: float
    """Seconds between the two."""
    done_before: dict[str, int]
    """Behaviors of each cell that were done when the command began."""


@dataclass
class Journal:
    """Writes progress.json of one command, every few seconds at most.

    weights:     forecast seconds by the cell's name
    done_before: behaviors of each cell that are done already
    """

    folder: Path
    groups: Sequence[Group]
    weights: Mapping[str, float]
    done_before: Mapping[str, int]
    _begun: datetime = field(default_factory=lambda: datetime.now(UTC))
    _written: float = 0.0

    def note(
        self, running: Sequence[str], workers: Mapping[str, int], at_once: bool = False
    ) -> None:
        """Write what runs now, unless that was done a moment ago.

        Args:
            at_once: write in any case.
        """
        now = time.monotonic()
        if not at_once and now - self._written < EVERY:
            return
        self._written = now
        updated = datetime.now(UTC)
        record: ProgressRecord = {
            "cells": [
                {
                    "name": cell.name,
                    "defense": cell.defense,
                    "attack": cell.attack,
                    "seed": cell.seed,
                    "behaviors": len(cell.header["planned"]),
                    "seconds": self.weights.get(cell.name),
                }
                for group in self.groups
                for cell, _ in group.cells
            ],
            "running": list(running),
            "workers": dict(workers),
            "begun": self._begun.isoformat(timespec="seconds"),
            "updated": updated.isoformat(timespec="seconds"),
            "elapsed": round((updated - self._begun).total_seconds(), 3),
            "done_before": dict(self.done_before),
        }
        files.write_json(self.folder / FILE, record)
