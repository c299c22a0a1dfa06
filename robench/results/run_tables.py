"""Everything that is computed of some runs, once: the files of tables, the page and the plots
show parts of it, so that their numbers are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robench.results import agreement, utility_columns
from robench.results.answers import read_answers
from robench.results.dsr_table import dsr_rows
from robench.results.leaderboard import leaderboard_and_pairs
from robench.results.rates import category_rows
from robench.results.store import RunStore
from robench.results.validity import Flag, flags
from robench.results.verdicts import Answer, decided_by, distinct, where

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunTables:
    """The cells of some runs put together, and the tables that they come to.

    stores:     the runs
    answers:    their cells, as `disambiguate` gives them, with slim rows (`read_answers`)
    board:      leaderboard.csv
    pairs:      pairs.csv
    dsr:        dsr.csv
    categories: dsr_by_category.csv
    judges:     judge_agreement.csv, empty where one judge scored
    flags:      of each model
    """

    stores: Sequence[RunStore]
    answers: Sequence[Answer]
    board: pd.DataFrame
    pairs: pd.DataFrame
    dsr: pd.DataFrame
    categories: pd.DataFrame
    judges: pd.DataFrame
    flags: Mapping[str, Sequence[Flag]]

    @classmethod
    def of(cls, folders: Sequence[Path], judge: str = "") -> RunTables:
        """Of the folders of runs.

        Args:
            judge: the one whose verdicts count, by default the first that each run was asked for.

        Raises:
            InputError: a folder is not a run's, two cells claim the same place in a table, or the
                judge scored nothing here.
        """
        stores = [RunStore(folder) for folder in folders]
        for store in stores:
            store.question()
        answers = read_answers(folders, slim=True)
        if judge:
            answers = decided_by(judge, answers)
        flagged = {m: flags(where(answers, model=m)) for m in distinct(answers, "model")}
        board, pairs = leaderboard_and_pairs(answers, flagged)
        return cls(
            stores,
            answers,
            utility_columns.joined(board, answers, stores),
            pairs,
            dsr_rows(answers, flagged),
            category_rows(answers),
            agreement.rows(answers),
            flagged,
        )

    @property
    def models(self) -> list[str]:
        """The models under test, in order of appearance."""
        return distinct(self.answers, "model")

    def of_model(self, model: str) -> RunTables:
        """What concerns one of the models."""
        tables = (self.board, self.pairs, self.dsr, self.categories, self.judges)
        board, pairs, dsr, categories, judges = (t[t["model"] == model] for t in tables)
        answers, flagged = where(self.answers, model=model), {model: self.flags[model]}
        return RunTables(self.stores, answers, board, pairs, dsr, categories, judges, flagged)
