"""Runs read back: the cells that all tables are made of, and every attempt as a row."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from robench.errors import InputError
from robench.results.degeneration import LIMITS
from robench.results.rates import place
from robench.results.schema import Header, Row
from robench.results.store import RunStore
from robench.results.verdicts import Answer, disambiguate

if TYPE_CHECKING:
    import pandas as pd

_KEPT = (
    "behavior", "category", "step", "tag", "final", "access", "scores", "refused", "text",
    "seconds", "tflop", "tries", "edge_of_grid",
)  # fmt: skip
_NAMES = ("model", "defense", "attack", "defense_note")  # of a header, that tables hold


def read_answers(folders: Iterable[Path | str], slim: bool = False) -> list[Answer]:
    """The cells of some runs together, as `disambiguate` gives them.

    Args:
        slim: whether rows keep only what tables are made of, in a third of the memory: replies
            and thoughts that there are become "", prompts and traces are left out.

    Raises:
        InputError: a folder is not a run's or is damaged, or two cells claim the same place.
    """
    with _no_search_for_cycles():
        stores = [RunStore(Path(folder)) for folder in folders]
        return disambiguate(answer for store in stores for answer in _of_store(store, slim))


def require_cells(answers: Sequence[Answer], folder: Path) -> None:
    """That something was recorded.

    Raises:
        InputError: nothing was yet.
    """
    if not answers:
        raise InputError(f"{folder} has no finished cell; give the command of its run again")


def _of_store(store: RunStore, slim: bool) -> Iterator[Answer]:
    """The cells of one run."""
    thresholds, not_reading = store.thresholds(), store.not_reading()
    for path, (header, info, rows, reason) in store.located_cells():
        for row in rows:
            row["category"] = _encodable(row["category"])
        kept = [_slim(row) for row in rows] if slim else rows
        yield Answer(_whole(header), info, kept, reason, LIMITS, path, thresholds, not_reading)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Rows hold none, and Python would search all of them again and again while they are read."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _whole(header: Header) -> Header:
    """A header whose names can be written as UTF-8, as tables must be."""
    names = {key: _encodable(header[key]) for key in _NAMES}  # type: ignore[literal-required]
    return cast(Header, {**header, **names})


def _slim(row: Row) -> Row:
    """A row without what only a reader of replies wants; names that many rows share stand once."""
    kept: dict[str, Any] = {key: row[key] for key in _KEPT}  # type: ignore[literal-required]
    for key in ("behavior", "category", "tag", "access"):
        kept[key] = sys.intern(kept[key])
    kept["reply"] = None if row["reply"] is None else ""
    kept["samples"] = row["samples"] or ()
    kept |= {key: row[key] for key in ("gradient_norm", "truncated") if key in row}
    kept["thought"] = None if row.get("thought") is None else ""
    return cast(Row, kept)


def _encodable(text: str) -> str:
    """The text, lone surrogates spelled out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def requests(folders: Iterable[Path | str]) -> dict[str, str]:
    """Behavior -> what is requested, where a run kept it."""
    found: dict[str, str] = {}
    for store in (RunStore(Path(folder)) for folder in folders):
        if (store.folder / "behaviors.jsonl").is_file():
            found |= {behavior["id"]: behavior["text"] for behavior in store.behaviors()}
    return found


def load_rows(*folders: Path | str) -> pd.DataFrame:
    """Every recorded attempt of some runs as a row, with what its cell was asked.

    Columns: model, defense, attack, role, tier and seed of the cell, the folder of its `run` and
    the name of the `cell`'s in it, then the row as it was stored (`robench.results.schema.Row`),
    then the deciding `judge` and the `outcome` in its eyes. `robench.load_prompt(row)` gives back
    what the model received.

    Raises:
        InputError: as of `read_answers`.
    """
    import pandas as pd

    return pd.DataFrame(
        {**_place(answer), **row, "judge": answer.judge, "outcome": outcome}
        for answer in read_answers(folders)
        for row, outcome in zip(answer.rows, answer.outcomes(), strict=True)
    )


def _place(answer: Answer) -> dict[str, str | int]:
    """What a row is of, and where it lies."""
    folder = answer.folder
    assert folder is not None  # it was read from one
    return {
        **place(answer),
        "seed": answer.header["seed"],
        "run": str(folder.parent.parent.absolute()),
        "cell": folder.name,
    }
