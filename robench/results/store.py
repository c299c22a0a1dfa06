"""RunStore: a folder per cell, append-only JSONL, safetensors beside it.

    DIR/run.json                   what every cell of the run shares; a folder made for another
                                   question is refused
    DIR/behaviors.jsonl            the requests, harmful and harmless: for judges that come later
    DIR/judges.json                what judges that came later are: their fields, model and prompt
    DIR/cells/NAME/cell.json       {"header": what was asked, "info": how it was answered}
    DIR/cells/NAME/rows.jsonl      a line per attempt, written behavior by behavior
    DIR/cells/NAME/scores-JUDGE.jsonl      what a later judge says of them: row, sample (null: of
                                           the row's own reply), judge, score
    DIR/cells/NAME/tensors/*.safetensors   soft prompts and edits; memo.safetensors: what was fitted
    DIR/cells/NAME/failed.json     why the cell has a hole, until it succeeds
    DIR/defenses/NAME/             the adapter of a trained defense
    DIR/utility/NAME.json          what harmless tasks say of a defended model

A row of rows.jsonl:
    behavior, category, harmful    of the request
    step, tag, final, access       of the attempt; access is text, embedding or activation
    artifact                       {"messages": [...], "tensors": file name or null}
    prompt_sha256, roundtrip_ok    of the rendered prompt; null where there is no text artifact
    reply, truncated               what the target said; reply null: it said nothing, unscored
    scores                         {judge: score in [0, 1] or null}; null = could not judge
    samples                        of a final attempt: [{"reply", "truncated", "scores"}, ...]
    refused                        whether the reply reads as a refusal
    text                           measures of collapse (see degeneration.py)
    loss, trace                    the attack's own loss, never used for a verdict
    seconds, tflop                 the cost of the cell up to this attempt, per behavior
    tries                          settings compared with the tuning judge
    last                           whether it is the behavior's last row
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robench.config import digest
from robench.errors import InputError

Row = dict[str, Any]

_NAMES = ("model", "defense", "attack", "seed")  # what a row of the tables is known by
_WORN = (
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
    header: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Readable, safe as a folder name, and unique through the header's hash."""
        words = self.slug(f"{self.defense}__{self.attack}__{self.seed}")
        return f"{words}-{digest(self.header)[:10]}"

    @staticmethod
    def slug(words: str) -> str:
        """Words as a part of a file name: no separators, no leading dot, not too long."""
        return re.sub(r"[^A-Za-z0-9_.-]+", "-", words).lstrip(".-")[:80] or "unnamed"


def defended_model_id(header: Mapping[str, Any]) -> str:
    """What the defended model of a cell is known by: the hash of all that its training depends on.

    It does not hold the defense's name, so that one model under two names is one model.
    """
    return digest([header[name] for name in _WORN])


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open_for(self, question: Mapping[str, Any], versions: Mapping[str, str]) -> list[str]:
        """Make the folder this run's own, or check that it already is.

        Returns:
            A warning for each package whose version differs from the folder's.

        Raises:
            InputError: the folder belongs to another question, is no run, or cannot be made.
        """
        path = self.folder / "run.json"
        if path.is_file():
            known = _read(path)
            differs = _difference(known["question"], question)
            if differs:
                raise InputError(f"{self.folder} was made for {differs}; choose another --out")
            changed = {k: v for k, v in known["versions"].items() if versions.get(k, v) != v}
            return [f"{k} was {v} here, is now {versions[k]}" for k, v in changed.items()]
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and is no run; choose another --out")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {self.folder}: {error.strerror}") from error
        write_atomically(path, {"question": dict(question), "versions": dict(versions)})
        return []

    def question(self) -> dict[str, Any]:
        """What the run's cells share."""
        path = self.folder / "run.json"
        if not path.is_file():
            raise InputError(f"{self.folder} is no run: it has no run.json")
        return _read(path)["question"]

    def remember(self, behaviors: Sequence[Mapping[str, Any]]) -> None:
        """Keep the requests of the run; the question has their checksums, so they stay the same."""
        path = self.folder / "behaviors.jsonl"
        if not path.is_file():
            _write(path, "".join(_line(behavior) for behavior in behaviors))

    def behaviors(self) -> list[dict[str, Any]]:
        """The requests of the run: the fields of each.

        Raises:
            InputError: the folder is no run, or was made before requests were kept.
        """
        self.question()
        path = self.folder / "behaviors.jsonl"
        if not path.is_file():
            raise InputError(
                f"{self.folder} has no behaviors.jsonl; the command that made it adds it"
            )
        return [_parsed(line, path, number) for number, line in enumerate(_lines(path), 1)]

    def register_judge(self, judge: str, record: Mapping[str, Any]) -> None:
        """Note what a later judge is; where it is the run's own or has scored, check that it is it.

        Raises:
            InputError: names the first field that differs.
        """
        path = self.folder / "judges.json"
        known = _read(path) if path.is_file() else {}
        own = self.question().get("judge_fields", {})
        differs = _difference({**known, **own}.get(judge, record), record)
        if differs and judge in own:
            raise InputError(f"{self.folder} was run with {judge} with {differs}")
        said = (reply for _, rows in self.replies() for row in rows for reply in replied(row))
        if differs and any(reply["scores"].get(judge) is not None for _, reply in said):
            raise InputError(
                f"{self.folder} was judged by {judge} with {differs}; judge a copy of the folder"
            )
        write_atomically(path, {**known, judge: dict(record)})

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
        lines = [
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
            _cut(file, sum(map(len, _lines(file))))
            _append(file, "".join(map(_line, lines)))

    def compatible(self, cells: Sequence[Cell]) -> None:
        """Check that the folder holds no cell of the same names that was asked otherwise.

        Raises:
            InputError: names the first field that differs.
        """
        known = {tuple(header[key] for key in _NAMES): header for header, *_ in self._records()}
        for cell in cells:
            header = known.get(tuple(cell.header[key] for key in _NAMES), cell.header)
            differs = _difference(header, cell.header)
            if differs:
                raise InputError(
                    f"{self.folder} holds {cell.defense} x {cell.attack} with {differs}; "
                    "choose another --out"
                )

    def path(self, cell: Cell) -> Path:
        return self.folder / "cells" / cell.name

    def adapter(self, header: Mapping[str, Any]) -> Path:
        """Where the adapter of a cell's defense is, if it has one and is trained."""
        return self.folder / "defenses" / self._worn_name(header)

    def utility(self, header: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """What each harmless task said of a cell's defended model so far."""
        path = self._utility_file(header)
        return _read(path)["tasks"] if path.is_file() else {}

    def add_utility(self, header: Mapping[str, Any], task: str, found: Mapping[str, Any]) -> None:
        """Record what one more task said."""
        tasks = {**self.utility(header), task: dict(found)}
        known = {
            "worn": defended_model_id(header),
            "defense": header["defense"],
            "seed": header["seed"],
        }
        write_atomically(self._utility_file(header), {**known, "tasks": tasks})

    def utilities(self) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
        """What each defended model is known by, and what each harmless task said of it."""
        for path in sorted((self.folder / "utility").glob("*.json")):
            record = _read(path)
            yield record["worn"], record["tasks"]

    def _utility_file(self, header: Mapping[str, Any]) -> Path:
        return self.folder / "utility" / f"{self._worn_name(header)}.json"

    @staticmethod
    def _worn_name(header: Mapping[str, Any]) -> str:
        return f"{Cell.slug(header['defense'])}-{defended_model_id(header)[:10]}"

    def open(self, cell: Cell, info: Mapping[str, Any]) -> Path:
        """The cell's folder, with its record written and a torn last line cut off."""
        path = self.path(cell)
        (path / "tensors").mkdir(parents=True, exist_ok=True)
        write_atomically(path / "cell.json", {"header": dict(cell.header), "info": dict(info)})
        _cut(path / "rows.jsonl", sum(len(line) for line, _ in _whole(path)))
        return path

    def done(self, cell: Cell) -> set[str]:
        """Ids of the behaviors whose rows are all written."""
        return {row["behavior"] for _, row in _whole(self.path(cell))}

    def complete(self, cell: Cell) -> bool:
        """Whether every planned behavior is done and no failure stands."""
        path = self.path(cell)
        if not (path / "cell.json").is_file() or (path / "failed.json").is_file():
            return False
        return self.done(cell) >= set(cell.header["planned"])

    def append(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Add all rows of some behaviors, behavior by behavior, in one write that reaches the disk.

        The last row of each behavior is marked, so that a torn write is noticed.
        """
        following = [row["behavior"] for row in rows[1:]]
        rows = [
            {**row, "last": row["behavior"] != after}
            for row, after in zip(rows, [*following, None], strict=True)
        ]
        _append(self.path(cell) / "rows.jsonl", "".join(map(_line, rows)))

    def fail(self, cell: Cell, reason: str) -> None:
        """Record why the cell has a hole."""
        write_atomically(self.path(cell) / "failed.json", {"reason": reason})

    def clear_failure(self, cell: Cell) -> None:
        """Forget an earlier failure: the cell is about to be tried again."""
        (self.path(cell) / "failed.json").unlink(missing_ok=True)

    def info(self, cell: Cell) -> dict[str, Any]:
        path = self.path(cell) / "cell.json"
        return _read(path)["info"] if path.is_file() else {}

    def cells(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[Row], str]]:
        """(header, info, rows, reason of failure or "") of every cell of the folder, by name.

        Judges that came later stand in the header behind the run's own, their scores in the rows.
        """
        self.question()
        for header, info, path in self._records():
            failed = path / "failed.json"
            reason = _read(failed)["reason"] if failed.is_file() else ""
            rows, later = _scored(path)
            if later:
                header["judges"] = list(dict.fromkeys([*header["judges"], *later]))
            yield header, info, rows, reason

    def _records(self) -> Iterator[tuple[dict[str, Any], dict[str, Any], Path]]:
        for path in sorted((self.folder / "cells").glob("*/cell.json")):
            record = _read(path)
            yield record["header"], record["info"], path.parent


def replied(row: Row) -> Iterator[tuple[int | None, Mapping[str, Any]]]:
    """What was said to an attempt: None and the row itself, then its samples by number.

    Each has `reply` and `scores`. A row whose reply is null has none of them.
    """
    if row["reply"] is not None:
        yield None, row
    yield from enumerate(row.get("samples", ()))  # rows of runs that drew none have no such key


def write_atomically(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename: a reader never sees half a file."""
    _write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.tmp")
    with draft.open("wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _append(path: Path, lines: str) -> None:
    """Add lines in one write that reaches the disk."""
    with path.open("ab") as file:
        file.write(lines.encode("utf-8", "surrogatepass"))
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError:
        raise InputError(f"{path} is damaged: it is not JSON") from None


def _parsed(line: bytes, file: Path, number: int) -> dict[str, Any]:
    try:
        return json.loads(line)
    except ValueError:
        raise InputError(f"{file}, line {number} is damaged: it is not JSON") from None


def _lines(file: Path) -> list[bytes]:
    """The lines of a file that are whole; none where there is no file."""
    if not file.is_file():
        return []
    lines = file.read_bytes().splitlines(keepends=True)
    return lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]


def _cut(file: Path, size: int) -> None:
    """Cut off the torn end that a killed run left behind `size` bytes."""
    if file.is_file() and size < file.stat().st_size:
        with file.open("r+b") as stream:
            stream.truncate(size)


def _whole(path: Path) -> Iterator[tuple[bytes, Row]]:
    """The lines and rows of the behaviors that are whole; the torn end of a killed run is not.

    Raises:
        InputError: a line that is whole is damaged.
    """
    pending = []
    file = path / "rows.jsonl"
    for number, line in enumerate(_lines(file), 1):
        pending.append((line, _parsed(line, file, number)))
        if pending[-1][1]["last"]:
            yield from pending
            pending = []


def _scored(path: Path) -> tuple[list[Row], list[str]]:
    """A cell's rows with the scores of later judges in them, and the names of these judges.

    Of several scores of a reply the last counts.

    Raises:
        InputError: scores are damaged, or not those of the rows beside them.
    """
    rows = [row for _, row in _whole(path)]
    judges: dict[str, None] = {}
    for file in sorted(path.glob("scores-*.jsonl")):
        for number, line in enumerate(_lines(file), 1):
            score = _parsed(line, file, number)
            # Scores of before drawn replies were judged later have no such key.
            place, sample = score["row"], score.get("sample")
            said = dict(replied(rows[place])) if place < len(rows) else {}
            if sample not in said or rows[place]["behavior"] != score["behavior"]:
                raise InputError(f"{file} does not belong to the rows beside it")
            said[sample]["scores"][score["judge"]] = score["score"]
            judges[score["judge"]] = None
    return rows, list(judges)


def _difference(known: Mapping[str, Any], asked: Mapping[str, Any], place: str = "") -> str:
    """The first field in which two records differ, with both values; "" where they are equal."""
    for key, value in asked.items():
        was = known.get(key)
        if isinstance(was, dict) and isinstance(value, dict):
            inner = _difference(was, value, f"{place}{key}.")
            if inner:
                return inner
        elif was != value:
            if _is_hash(was) and _is_hash(value):
                return f"other {place}{key}"
            return f"{place}{key} = {_short(was)}, not {_short(value)}"
    return ""


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
