"""Further judges on the replies of a run, drawn ones too: nothing is attacked or generated again.

Scores go to scores-JUDGE.jsonl beside each cell's rows; every table reads them from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from robench import judges
from robench.methods.faults import blamed, of
from robench.methods.registry import refuse_unused_settings
from robench.results.store import RunStore, replied
from robench.runs.question import Settings
from robench.types import Behavior, Judge

CHUNK = 64  # replies that a judge receives at once; what is scored is on the disk before the next


class Rejudged(NamedTuple):
    """unscored: replies that are still without a score of one of the judges
    silent: judges that have no score on any reply to a harmful request
    """

    unscored: int
    silent: tuple[str, ...]


def judge(
    folder: str | Path,
    references: Sequence[Any],
    settings: Settings | None = None,
    device: str = "cpu",
) -> Rejudged:
    """Score every reply of a run that has no score of these judges yet.

    Args:
        folder: of the run.
        references: judges, as after --judges, or configured instances.
        settings: judge -> field -> value.
        device: where judges with a model of their own work.

    Raises:
        InputError: the folder is not a run's or is in use, or a judge of the same name has scored
            it that is another; a judge breaks its contract.
    """
    store = RunStore(Path(folder))
    with store.locked():
        requests = {(r["harmful"], r["id"]): Behavior(**r) for r in store.behaviors()}
        chosen = judges.resolved(references, settings or {}, device)
        refuse_unused_settings(settings or {}, chosen)
        for method in chosen:
            with blamed(*of(method)):
                record = judges.record(method.instance)
            apart = judges.circumstances(method.instance)
            store.register_judge(method.name, record, apart)
        unscored = sum(_score(store, requests, method.name, method.instance) for method in chosen)
        return Rejudged(unscored, tuple(m.name for m in chosen if _silent(store, m.name)))


def _silent(store: RunStore, name: str) -> bool:
    """Whether a judge has no score on any reply to a harmful request, though there are some."""
    scores = [
        said["scores"].get(name)
        for _, rows in store.replies()
        for row in rows
        if row["harmful"]
        for _, said in replied(row)
    ]
    return bool(scores) and all(score is None for score in scores)


def _score(
    store: RunStore, asked: dict[tuple[bool, str], Behavior], name: str, instance: Judge
) -> int:
    """All cells in the eyes of one judge; what could not be judged before is tried again."""
    cells = [
        (
            path,
            [
                (place, row, sample, text)
                for place, row in enumerate(rows)
                for sample, said in replied(row)
                if (text := said["reply"]) is not None and said["scores"].get(name) is None
            ],
        )
        for path, rows in store.replies()
    ]
    without = 0
    with tqdm(total=sum(len(waiting) for _, waiting in cells), desc=name, disable=None) as bar:
        for path, waiting in cells:
            for start in range(0, len(waiting), CHUNK):
                part = waiting[start : start + CHUNK]
                behaviors = [asked[row["harmful"], row["behavior"]] for _, row, *_ in part]
                found = judges.scores(name, instance, behaviors, [reply for *_, reply in part])
                pairs = zip(part, found, strict=True)
                lines = [(place, row, sample, score) for (place, row, sample, _), score in pairs]
                store.score(path, name, lines)
                without += sum(map(math.isnan, found))
                bar.update(len(part))
    return without
