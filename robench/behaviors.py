"""Behavior and instruction sets: from CSV, JSONL or JSON files, and the harmless list that ships.

Columns are found by name, whatever their case, spaces and underscores (the first that is there):

    text       prompt, text, goal, forbidden_prompt, behavior, instruction
    id         id, BehaviorID; without one, a hash of text and context
    target     target; else from a `*targets*.json` file beside, which maps ids to targets;
               else the affirmative template of `affirmation`
    category   category, SemanticCategory
    context    context, ContextString

So HarmBench, AdvBench, StrongREJECT and JailbreakBench files are read as published.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import astuple, replace
from importlib.resources import as_file, files
from pathlib import Path
from textwrap import shorten
from typing import Any

from robench.config import digest
from robench.errors import InputError
from robench.types import Behavior, Example

Record = dict[str, Any]  # folded column name to value

# JailbreakBench has a Goal, which is the request, and a Behavior, which is a title.
TEXT = ("prompt", "text", "goal", "forbidden_prompt", "behavior", "instruction")
ID = ("id", "behavior_id")
TARGET = ("target",)
CATEGORY = ("category", "semantic_category")
CONTEXT = ("context", "context_string")
REPLY = ("reply", "answer", "output", "response")


def load(path: Path | str, harmful: bool = True) -> list[Behavior]:
    """The behaviors of a file, in its order, each with an id, a text and a target.

    Raises:
        InputError: the file cannot be read, has no rows, lacks a column of texts, or has a row
            without text or with the id of another row.
    """
    path = Path(path)
    behaviors = []
    seen: dict[str, int] = {}
    for row, record in _records(path, text=TEXT):
        behavior = _behavior(record, harmful, f"{path}, row {row}")
        if behavior.id in seen:
            what = f"id {behavior.id!r}" if _first(record, ID) is not None else "text"
            raise InputError(f"{path}, row {row} repeats the {what} of row {seen[behavior.id]}")
        seen[behavior.id] = row
        behaviors.append(behavior)
    targets = _targets_beside(path, seen)
    return [
        replace(b, target=b.target or targets.get(b.id) or affirmation(b.text)) for b in behaviors
    ]


def load_examples(path: Path | str) -> list[Example]:
    """Training text for defenses: a prompt and a reply in each row.

    Besides the columns of `load`: the reply (reply, answer, output or response), and where wanted
    kind (answer or refusal, by default answer) and harmful (true or false, by default true).

    Raises:
        InputError: as `load`, except that prompts may repeat.
    """
    path = Path(path)
    records = _records(path, text=TEXT, reply=REPLY)
    return [_example(record, f"{path}, row {row}") for row, record in records]


def harmless() -> list[Behavior]:
    """The everyday requests that ship, some of them with words that sound harmful."""
    with as_file(files("robench") / "harmless.csv") as path:
        return load(path, harmful=False)


def affirmation(text: str) -> str:
    """The target of a behavior that comes without one: an affirmative start that names it.

    Differs: published targets are phrased for each behavior ("Sure, here is a tutorial on ...").
    """
    return f'Sure, here is a detailed answer to "{text}"'


def draw(behaviors: Sequence[Behavior], n: int, seed: int = 0) -> list[Behavior]:
    """`n` behaviors in the order given, of each category about its share.

    A smaller draw is part of a larger one, and the draw depends on the ids, not on their order: in
    a category of s behaviors, shuffled, the k-th stands at (k + u) / s with one u in [0, 1) for the
    category, and the n lowest of all are drawn.

    Raises:
        InputError: there are fewer than `n`.
    """
    if n > len(behaviors):
        raise InputError(f"cannot draw {n} behaviors: there are {len(behaviors)}")
    by_category = defaultdict(list)
    for behavior in sorted(behaviors, key=lambda b: digest([seed, b.id])):
        by_category[behavior.category].append(behavior.id)
    place = {}
    for category, ids in by_category.items():
        start = int(digest([seed, category]), 16) / 2**256
        place.update({identity: (k + start) / len(ids) for k, identity in enumerate(ids)})
    drawn = set(sorted(place, key=lambda identity: place[identity])[:n])
    return [b for b in behaviors if b.id in drawn]


def disjoint(references: Sequence[Behavior], behaviors: Sequence[Behavior]) -> list[Behavior]:
    """The references that are none of the behaviors, by text and context, case and spaces folded.

    Sets overlap: many published lists of harmful instructions hold AdvBench behaviors word for
    word. Texts that differ only in their context are different requests, as in HarmBench.
    """
    tested = {_folded(b) for b in behaviors}
    return [r for r in references if _folded(r) not in tested]


def checksum(behaviors: Sequence[Behavior]) -> str:
    """The sha256 of everything that the behaviors say, in their order."""
    return digest([astuple(b) for b in behaviors])


def _folded(behavior: Behavior) -> tuple[str, str]:
    text, context = (" ".join(s.casefold().split()) for s in (behavior.text, behavior.context))
    return text, context


def _behavior(record: Record, harmful: bool, where: str) -> Behavior:
    text, context = _text(record, TEXT, where), _text(record, CONTEXT, where)
    if not text:
        raise InputError(f"{where} has no text")
    return Behavior(
        id=_text(record, ID, where) or digest([text, context])[:12],
        text=text,
        target=_text(record, TARGET, where),
        category=_text(record, CATEGORY, where),
        context=context,
        harmful=harmful,
    )


def _example(record: Record, where: str) -> Example:
    reply = _text(record, REPLY, where)
    if not reply:
        raise InputError(f"{where} has no reply")
    kind = _choice(record, "kind", {"answer": "answer", "refusal": "refusal"}, where)
    harmful = _choice(record, "harmful", {"true": True, "false": False}, where)
    return Example(_behavior(record, harmful, where), reply, kind)


def _choice(record: Record, column: str, meanings: Mapping[str, Any], where: str) -> Any:
    """What the value of a column means; the first meaning where there is no value."""
    value = _text(record, (column,), where).lower() or next(iter(meanings))
    if value not in meanings:
        raise InputError(f"{where}: {column} must be {' or '.join(meanings)}, got {value!r}")
    return meanings[value]


def _first(record: Record, columns: Sequence[str]) -> Any:
    """The value of the first of `columns` in which the record says something, else None."""
    values = (record.get(_fold(column)) for column in columns)
    return next((value for value in values if value not in (None, "")), None)


def _text(record: Record, columns: Sequence[str], where: str) -> str:
    value = _first(record, columns)
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        raise InputError(f"{where}: {columns[0]} must be text, got a {type(value).__name__}")
    text = str(value).strip()
    if re.search("[\ud800-\udfff]", text):  # no tokenizer takes it
        raise InputError(f"{where}: {columns[0]} holds half a character")
    return text


def _fold(column: str) -> str:
    return re.sub(r"[\s_]", "", column).lower()


def _records(path: Path, **needs: Sequence[str]) -> list[tuple[int, Record]]:
    """(row number from 1, record) of a file that has one column at least of each need."""
    if path.suffix not in _READERS:
        raise InputError(f"{path} must be a {', '.join(_READERS)} file")
    rows = list(_READERS[path.suffix](path, _content(path)))
    if not rows:
        raise InputError(f"{path} has no rows")
    found = list(dict.fromkeys(column for _, row in rows for column in row))
    for need, columns in needs.items():
        if not {_fold(c) for c in columns} & {_fold(c) for c in found}:
            raise InputError(
                f"{path} has no column for the {need}: it needs one of {', '.join(columns)}, "
                f"it has {shorten(', '.join(found), 200)}"
            )
    return [(number, {_fold(c): value for c, value in row.items()}) for number, row in rows]


def _csv(path: Path, content: str) -> Iterator[tuple[int, Record]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if None in row:
                raise InputError(f"{path}, row {number} has more fields than there are columns")
            yield number, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _jsonl(path: Path, content: str) -> Iterator[tuple[int, Record]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield number, _record(_json(line, f"{path}, row {number}"), f"{path}, row {number}")


def _json_list(path: Path, content: str) -> Iterator[tuple[int, Record]]:
    rows = _json(content, str(path)) if content.strip() else []
    if not isinstance(rows, list):
        raise InputError(f"{path} must hold a list of records")
    for number, row in enumerate(rows, 1):
        yield number, _record(row, f"{path}, row {number}")


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".json": _json_list}


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where} is no record, but a {type(value).__name__}")
    return value


def _json(content: str, where: str) -> Any:
    try:
        return json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def _content(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _targets_beside(path: Path, ids: Container[str]) -> dict[str, str]:
    """The targets of `ids` in the `*targets*.json` files of the folder; the first by name wins."""
    targets: dict[str, str] = {}
    for file in sorted(path.parent.glob("*targets*.json")):
        found = _json(_content(file), str(file))
        if file != path and isinstance(found, dict):
            named = {i: t for i, t in found.items() if i in ids and isinstance(t, str)}
            targets = named | targets
    return targets
