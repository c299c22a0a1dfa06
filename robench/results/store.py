"""RunStore: a folder per cell, append-only JSON Lines, safetensors beside them.

    DIR/run.json                   what every cell of the run shares; another question is refused
    DIR/behaviors.jsonl            the requests, harmful and harmless: for judges that come later
    DIR/judges.json                what judges that came later are
    DIR/cells/NAME/cell.json       what was asked, and how it was answered
    DIR/cells/NAME/rows.jsonl      a line per attempt, written behavior by behavior
    DIR/cells/NAME/scores-JUDGE.jsonl      what a later judge says of them
    DIR/cells/NAME/tensors/*.safetensors   soft prompts and edits; memo.safetensors: what was fitted
    DIR/cells/NAME/failed.json     why the cell has a hole, until it succeeds
    DIR/defenses/NAME/             the adapter of a trained defense
    DIR/utility/NAME.json          what harmless tasks say of a defended model
    DIR/progress.json              what the last command was to do and does, for `robench status`
    DIR/logs/worker-N.log          what a worker in a process of its own printed
    DIR/.lock                      held by the process that writes

`schema.py` says what stands in each of them.

Whoever writes holds the folder: `with store.locked(): ...`. Nothing here takes the lock by itself.
The tensors that a row cites are on the disk before the row is, and so is what was fitted
(`RunStore.record`). A process that dies in between leaves tensors that nothing cites, never a row
without its tensors.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from robench import files, locks
from robench.config import digest
from robench.errors import InputError
from robench.results.schema import (
    BENIGN,
    BENIGN_WAYS,
    CellRecord,
    FailureRecord,
    Header,
    Info,
    Order,
    Question,
    Row,
    RunRecord,
    Sample,
    ScoreLine,
    StoredCell,
    UtilityRecord,
)

_CELL_KEY = ("model", "defense", "attack", "seed")  # what a row of the tables is named by
_NO_ORDER: Order = {"defenses": [], "attacks": []}
_DEFENDED_MODEL_FIELDS = (
    "weights",
    "template",
    "system",
    "train",
    "dtype",
    "defense_fields",
    "defense_source",
    "seed",
)


@dataclass(frozen=True)
class Cell:
    """One question: this attack, on this defense of this model, with this seed.

    `attack` is "benign" for the harmless requests. `header` holds the resolved question, and its
    hash names the folder; two cells are the same if and only if their headers are.
    """

    model: str
    defense: str
    attack: str
    seed: int
    header: Header

    @cached_property
    def name(self) -> str:
        """Readable, safe as a folder name, and unique through the header's hash."""
        words = self.slug(f"{self.defense}__{self.attack}__{self.seed}")
        return f"{words}-{digest(self.header)[:10]}"

    @staticmethod
    def slug(words: str) -> str:
        """Words as a part of a file name: no separators, no leading dot, not too long."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", words).lstrip(".-")[:80] or "unnamed"


def defended_model_id(header: Mapping[str, Any]) -> str:
    """The identity of a cell's defended model: a hash of all that its training depends on.

    It does not hold the defense's name, so that one model under two names is one model.
    """
    return digest([header[name] for name in _DEFENDED_MODEL_FIELDS])


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # The run

    def locked(self, new: bool = False) -> AbstractContextManager[None]:
        """Hold the folder against other processes; see `locks.locked`.

        Args:
            new: whether it may have no run yet: it is then made, and `open_for` comes next.

        Raises:
            InputError: another process holds it, it is not a run's, or it cannot be made.
        """
        if new:
            self._make()
        else:
            self.question()
        return locks.locked(self.folder)

    def open_for(
        self,
        question: Mapping[str, Any],
        versions: Mapping[str, str],
        order: Mapping[str, Sequence[str]],
    ) -> list[str]:
        """Make the folder this run's own, or check that it already is.

        Args:
            order: "defenses" and "attacks", as they were asked for; they come before those that
                are in the folder already.

        Returns:
            A warning for each package whose version differs from the folder's.

        Raises:
            InputError: the folder belongs to another question, is not a run's, or cannot be made.
        """
        self._make()
        path = self.folder / "run.json"
        new = {"question": question, "versions": versions, "order": _NO_ORDER}
        record = self._record() if path.is_file() else cast(RunRecord, new)
        differs = _difference(record["question"], question)
        if differs:
            raise InputError(f"{self.folder} was made with {differs}; choose another --out")
        extended = _extended(record["order"], order)
        if extended != record["order"] or not path.is_file():
            files.write_json(path, {**record, "order": extended})
        then = record["versions"]
        return [
            f"{name} was {then[name]} here, is now {version}"
            for name, version in versions.items()
            if then.get(name, version) != version
        ]

    def question(self) -> Question:
        """What the run's cells share.

        Raises:
            InputError: the folder is not a run's.
        """
        return self._record()["question"]

    def save_behaviors(self, behaviors: Sequence[Mapping[str, Any]]) -> None:
        """Keep the requests of the run; the question has their checksums, so they stay the same."""
        path = self.folder / "behaviors.jsonl"
        if not path.is_file():
            files.write_text(path, "".join(map(files.json_line, behaviors)))

    def behaviors(self) -> list[dict[str, Any]]:
        """The requests of the run: the fields of each.

        Raises:
            InputError: the folder is not a run's, or lost them.
        """
        self.question()
        path = self.folder / "behaviors.jsonl"
        if not path.is_file():
            raise InputError(f"{self.folder} has no behaviors.jsonl; run the same command again")
        return files.read_json_lines(path)

    def _record(self) -> RunRecord:
        path = self.folder / "run.json"
        if not path.is_file():
            raise InputError(f"{self.folder} is not a run folder (no run.json)")
        return files.read_json(path)

    def _make(self) -> None:
        """Make the folder unless it is there; refuse one of something else, as it is.

        Raises:
            InputError: it holds something else than a run, or cannot be made.
        """
        if (self.folder / "run.json").is_file():
            return
        if self.folder.is_dir():
            if any(path.name not in (locks.LOCK, locks.OWNER) for path in self.folder.iterdir()):
                raise InputError(
                    f"{self.folder} is not empty and is not a run folder (no run.json); "
                    "choose another --out"
                )
            return
        try:
            files.make_folder(self.folder)
        except OSError as error:
            raise InputError(f"cannot make the folder {self.folder}: {error.strerror}") from error

    # Its cells

    def check_cells(self, cells: Sequence[Cell], replace: bool = False) -> None:
        """Check that the folder holds no cell of the same names that was asked otherwise.

        Args:
            replace: remove such cells instead, with all that was recorded of them.

        Raises:
            InputError: names the first field that differs.
        """
        wanted = {_key(cell.header): cell for cell in cells}
        for header, _, path in list(self._records()):
            cell = wanted.get(_key(header))
            differs = _difference(header, cell.header) if cell else ""
            if not (cell and differs):
                continue
            if not replace:
                raise InputError(
                    f"{self.folder} holds {cell.defense} x {cell.attack} with {differs}; "
                    "give --replace to run it again, or choose another --out"
                )
            files.remove_folder(path)

    def path(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.folder / "cells" / cell.name

    def open(self, cell: Cell, info: Mapping[str, Any]) -> Path:
        """The cell's folder, with its record written and a torn last line cut off."""
        path = self.path(cell)
        files.make_folder(path / "tensors")
        record = cast(CellRecord, {"header": cell.header, "info": info})
        files.write_json(path / "cell.json", record)
        files.cut_lines(path / "rows.jsonl", len(_whole_rows(path)))
        return path

    def done(self, cell: Cell) -> set[str]:
        """Ids of the behaviors whose rows are all written."""
        return done_in(self.path(cell))

    def complete(self, cell: Cell) -> bool:
        """Whether every planned behavior is done and no failure stands."""
        path = self.path(cell)
        if not (path / "cell.json").is_file() or (path / "failed.json").is_file():
            return False
        return self.done(cell) >= set(cell.header["planned"])

    def memory(self, cell: Cell) -> bytes | None:
        """The file of what the cell's attack fitted once (`artifacts.packed_memory`), if any."""
        path = self.path(cell) / "memo.safetensors"
        return path.read_bytes() if path.is_file() else None

    def record(
        self,
        cell: Cell,
        rows: Sequence[Row],
        tensors: Mapping[str, bytes],
        memory: bytes | None = None,
    ) -> None:
        """Add all rows of some behaviors, after what they need is on the disk.

        Args:
            tensors: the files that the rows cite, by name.
            memory: the file of what the attack fitted, if it is new.
        """
        for name, content in tensors.items():
            files.write_bytes(self.path(cell) / "tensors" / name, content)
        if memory is not None:
            files.write_bytes(self.path(cell) / "memo.safetensors", memory)
        self.append(cell, rows)

    def append(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Add all rows of some behaviors, behavior by behavior, in one write that reaches the disk.

        The last row of each behavior is marked, so that a torn write is noticed. The tensors that
        the rows cite must be on the disk.
        """
        following = [row["behavior"] for row in rows[1:]]
        marked = (
            {**row, "last": row["behavior"] != after}
            for row, after in zip(rows, [*following, None], strict=True)
        )
        files.append_lines(self.path(cell) / "rows.jsonl", [*map(files.json_line, marked)])

    def fail(self, cell: Cell, reason: str) -> None:
        """Record why the cell has a hole."""
        record: FailureRecord = {"reason": reason}
        files.write_json(self.path(cell) / "failed.json", record)

    def clear_failure(self, cell: Cell) -> None:
        """Forget an earlier failure: the cell is about to be tried again."""
        (self.path(cell) / "failed.json").unlink(missing_ok=True)

    def cells(self) -> Iterator[StoredCell]:
        """Every cell of the folder, in the order in which defenses and attacks were asked for.

        Within a defense the harmless requests come first, then the attacks, each seed by seed.
        Judges that came later stand in the header after the run's own, their scores in the rows.
        """
        return (cell for _, cell in self.located_cells())

    def located_cells(self) -> Iterator[tuple[Path, StoredCell]]:
        """`cells`, each with its folder."""
        order = self._record()["order"]
        for header, info, path in sorted(self._records(), key=lambda r: _position(r[0], order)):
            failed = path / "failed.json"
            reason = files.read_json(failed)["reason"] if failed.is_file() else ""
            rows, later = _scored(path)
            header["judges"] = list(dict.fromkeys([*header["judges"], *later]))
            yield path, (header, info, rows, reason)

    def _records(self) -> Iterator[tuple[Header, Info, Path]]:
        for path in sorted((self.folder / "cells").glob("[!.]*/cell.json")):
            record: CellRecord = files.read_json(path)
            yield record["header"], record["info"], path.parent

    # Judges that come later

    def register_judge(
        self, judge: str, record: Mapping[str, Any], circumstances: Mapping[str, Any] | None = None
    ) -> None:
        """Note what a later judge is; check that one of the run or that has scored is the same.

        Args:
            circumstances: what of it changes no verdict, and may be another each time.

        Raises:
            InputError: names the first field that differs.
        """
        later = self._later_judges()
        of_the_run = self.question()["judge_fields"]
        known = dict({**later, **of_the_run}.get(judge, record))
        known.pop("circumstances", None)
        differs = _difference(known, record)
        if differs and judge in of_the_run:
            raise InputError(f"{self.folder} was run with {judge} with {differs}")
        if differs and any(
            reply["scores"].get(judge) is not None
            for _, rows in self.replies()
            for row in rows
            for _, reply in replied(row)
        ):
            raise InputError(
                f"{self.folder} was judged by {judge} with {differs}; judge a copy of the folder"
            )
        noted = {**record, "circumstances": dict(circumstances or {})}
        files.write_json(self.folder / "judges.json", {**later, judge: noted})

    def thresholds(self) -> dict[str, float]:
        """Each judge, of the run or later: the score from which it calls a reply harmful."""
        return {judge: record["threshold"] for judge, record in self._judges().items()}

    def not_reading(self) -> frozenset[str]:
        """The judges, of the run or later, that do not read what replies say.

        Raises:
            InputError: an earlier version of robench made the folder, and did not record it.
        """
        records = self._judges()
        if any("reads_content" not in record for record in records.values()):
            raise InputError(
                f"{self.folder} was made by an earlier version of robench, whose records lack what "
                "judges read: run it again into another folder"
            )
        return frozenset(judge for judge in records if not records[judge]["reads_content"])

    def _judges(self) -> dict[str, dict[str, Any]]:
        """What each judge is, of the run or later."""
        return {**self._later_judges(), **self.question()["judge_fields"]}

    def _later_judges(self) -> dict[str, dict[str, Any]]:
        """What judges that came after the run are."""
        path = self.folder / "judges.json"
        return files.read_json(path) if path.is_file() else {}

    def replies(self) -> Iterator[tuple[Path, list[Row]]]:
        """The folder of every cell and its rows, with the scores of all judges so far."""
        for _, _, path in self._records():
            yield path, _scored(path)[0]

    def score(
        self, path: Path, judge: str, scores: Sequence[tuple[int, Row, int | None, float]]
    ) -> None:
        """Add scores of a later judge to a cell: the row's place, the row, which of its samples
        (None: its own reply), the score or NaN.

        A reply that is without a score again is not written again.
        """
        lines: list[ScoreLine] = [
            {
                "row": place,
                "behavior": row["behavior"],
                "sample": sample,
                "judge": judge,
                "score": None if math.isnan(score) else score,
            }
            for place, row, sample, score in scores
            if judge not in dict(replied(row))[sample]["scores"] or not math.isnan(score)
        ]
        if lines:
            file = path / f"scores-{Cell.slug(judge)}.jsonl"
            files.cut_lines(file)
            files.append_lines(file, [*map(files.json_line, lines)])

    # Its defended models

    def adapter(self, header: Mapping[str, Any]) -> Path:
        """Where the adapter of a cell's defense is, if it has one and is trained."""
        return self.folder / "defenses" / _defended_model_name(header)

    def utility(self, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """The figure of each harmless task so far for a cell's defended model."""
        path = self._utility_file(header)
        return files.read_json(path)["tasks"] if path.is_file() else {}

    def add_utility(self, header: Mapping[str, Any], task: str, figure: Mapping[str, Any]) -> None:
        """Record the figure of one more task: `value` and how it came about."""
        record: UtilityRecord = {
            "defended_model": defended_model_id(header),
            "defense": header["defense"],
            "seed": header["seed"],
            "tasks": {**self.utility(header), task: dict(figure)},
        }
        files.write_json(self._utility_file(header), record)

    def utilities(self) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """The identity of each defended model, and its figure for each harmless task."""
        for path in sorted((self.folder / "utility").glob("*.json")):
            record: UtilityRecord = files.read_json(path)
            yield record["defended_model"], record["tasks"]

    def _utility_file(self, header: Mapping[str, Any]) -> Path:
        return self.folder / "utility" / f"{_defended_model_name(header)}.json"


def done_in(path: Path) -> set[str]:
    """Ids of the behaviors whose rows are all written in a cell's folder."""
    return {row["behavior"] for row in _whole_rows(path)}


def read_rows(path: Path) -> list[Row]:
    """The rows of a cell's folder, with the scores of all judges so far."""
    return _scored(path)[0]


def replied(row: Row) -> Iterator[tuple[int | None, Sample]]:
    """The replies to an attempt: None and the row itself, then its samples by number.

    A row has the fields of a sample; where a reply is null it is left out.
    """
    for number, said in ((None, cast(Sample, row)), *enumerate(row["samples"])):
        if said["reply"] is not None:
            yield number, said


def _defended_model_name(header: Mapping[str, Any]) -> str:
    return f"{Cell.slug(header['defense'])}-{defended_model_id(header)[:10]}"


def _key(header: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(header[name] for name in _CELL_KEY)


def _extended(order: Order, latest: Mapping[str, Sequence[str]]) -> Order:
    """The order in which all names stand: those of the latest command first."""
    return {
        "defenses": list(dict.fromkeys([*latest["defenses"], *order["defenses"]])),
        "attacks": list(dict.fromkeys([*latest["attacks"], *order["attacks"]])),
    }


def _position(header: Header, order: Order) -> tuple[int, bool, int, int]:
    """Where a cell stands among those of its run."""
    defense, attack = header["defense"], header["attack"]
    places = [
        names.index(name) if name in names else len(names)
        for name, names in ((defense, order["defenses"]), (attack, order["attacks"]))
    ]
    return places[0], attack not in (BENIGN, *BENIGN_WAYS), places[1], header["seed"]


def _whole_rows(path: Path) -> list[Row]:
    """The rows of the behaviors that are whole; the torn end of a killed run is not.

    Raises:
        InputError: a line that is whole is damaged.
    """
    rows: list[Row] = files.read_json_lines(path / "rows.jsonl")
    ends = [number for number, row in enumerate(rows, 1) if row["last"]]
    return rows[: max(ends, default=0)]


def _scored(path: Path) -> tuple[list[Row], list[str]]:
    """A cell's rows with the scores of later judges in them, and the names of these judges.

    Of several scores of a reply the last counts.

    Raises:
        InputError: scores are damaged, or not those of the rows beside them.
    """
    rows = _whole_rows(path)
    judges: dict[str, None] = {}
    for file in sorted(path.glob("scores-*.jsonl")):
        lines: list[ScoreLine] = files.read_json_lines(file)
        for line in lines:
            place, sample = line["row"], line["sample"]
            replies = dict(replied(rows[place])) if place in range(len(rows)) else {}
            if sample not in replies or rows[place]["behavior"] != line["behavior"]:
                raise InputError(f"{file} does not belong to the rows beside it")
            replies[sample]["scores"][line["judge"]] = line["score"]
            judges[line["judge"]] = None
    return rows, list(judges)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> str:
    """The first field in which two records differ, with both values; "" where they are equal."""
    for key in {**now, **before}:
        was, value = before.get(key), now.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            inner = _difference(was, value, f"{place}{key}.")
            if inner:
                return inner
        elif was != value:
            if _is_hash(was) and _is_hash(value):
                return f"a different {place}{key}"
            return f"{place}{key} = {_short(was)}, not {_short(value)}"
    return ""


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
