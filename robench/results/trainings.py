"""What the records of trained defenses tell: their curves and notes, seed by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from robench.errors import InputError
from robench.results.store import RunStore
from robench.results.verdicts import Answer

RECORD = "robench_defense.yaml"  # in the folder of an adapter


@dataclass(frozen=True)
class Training:
    """The training of one defense with one seed.

    curves: name -> value step by step
    notes:  name -> text, those inside others by both names
    tables: name -> lines under their heads, where a note is a list of records
    """

    defense: str
    seed: int
    steps: int
    seconds: float
    tflop: float
    curves: Mapping[str, Sequence[float]]
    notes: Mapping[str, str]
    tables: Mapping[str, list[list[str]]]


def trainings(stores: Sequence[RunStore], answers: Sequence[Answer]) -> list[Training]:
    """The trainings of the defenses of some cells, each once, in the order of the cells.

    Raises:
        InputError: a record is damaged.
    """
    found: dict[tuple[str, int], Training] = {}
    for answer in answers:
        key = answer.header["defense"], answer.header["seed"]
        for store in stores:
            path = store.adapter(answer.header) / RECORD
            if key not in found and path.is_file():
                found[key] = _training(*key, path.read_text("utf-8"), str(path))
    return list(found.values())


def _training(defense: str, seed: int, text: str, place: str) -> Training:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it is built
    try:
        record = yaml.load(text, loader)
        flat = dict(_flat(record["notes"]))
        return Training(
            defense,
            seed,
            record["steps"],
            record["train_seconds"],
            record["train_tflop"],
            {str(k): [float(v) for v in curve] for k, curve in record["curves"].items() if curve},
            {k: _shown(v) for k, v in flat.items() if not _is_table(v)},
            {k: _lines(v) for k, v in flat.items() if _is_table(v)},
        )
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{place} is damaged: it is not the record of a training") from None


def _flat(notes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in notes.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}, ")
        elif value not in ([], None):
            yield f"{prefix}{name}", value


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _lines(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    heads = list(dict.fromkeys(name for record in records for name in record))
    return [heads, *([_shown(record.get(name, "")) for name in heads] for record in records)]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
