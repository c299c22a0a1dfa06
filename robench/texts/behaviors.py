"""Behavior and instruction sets: published ones and one's own, and the harmless list that ships.

A set is a file (CSV, TSV, JSONL, JSON, Parquet), a dataset on the hub (see records.py) or one of
these names, which stand for a file on the hub: advbench, harmbench, jailbreakbench, strongreject;
of harmless requests jailbreakbench, or-bench, xstest. Columns are found by name, whatever their
case, spaces and underscores (the first that is there):

    text       prompt, text, goal, forbidden_prompt, behavior, instruction
    id         id, BehaviorID; without one, a hash of text and context
    target     target; else from a file that maps ids to targets: the one that is given, or a
               `*targets*.json` beside; else the affirmative template of `affirmation`
    category   category, SemanticCategory, type
    context    context, ContextString

So HarmBench, AdvBench, StrongREJECT, JailbreakBench, XSTest and OR-Bench are read as published.
Where there is a column FunctionalCategory, as in HarmBench, the standard behaviors are taken, or
those that the end of the name asks for: `FILE:contextual`, `:copyright`, `:all`; likewise
`harmbench:contextual` on the hub.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from robench.config import digest, suggestion
from robench.errors import InputError
from robench.texts import records
from robench.texts.records import Entry
from robench.types import Behavior

# JailbreakBench has a Goal, which is the request, and a Behavior, which is a title.
TEXT = ("prompt", "text", "goal", "forbidden_prompt", "behavior", "instruction")
ID = ("id", "behavior_id")
CATEGORY = ("category", "semantic_category", "type")
CONTEXT = ("context", "context_string")

FUNCTIONAL = ("standard", "contextual", "copyright", "all")

# HarmBench's copy has neither ids nor targets; the authors' CSV and targets file have them.
_HARMBENCH = "walledai/HarmBench/{}/train-*.parquet"
HARMFUL = {
    "advbench": "walledai/AdvBench/data/train-*.parquet",
    "harmbench": _HARMBENCH.format("standard"),
    "harmbench:standard": _HARMBENCH.format("standard"),
    "harmbench:contextual": _HARMBENCH.format("contextual"),
    "harmbench:copyright": _HARMBENCH.format("copyright"),
    "harmbench:all": _HARMBENCH.format("*"),
    "jailbreakbench": "JailbreakBench/JBB-Behaviors/data/harmful-behaviors.csv",
    "strongreject": "walledai/StrongREJECT/data/train-*.parquet",
}
HARMLESS = {
    "jailbreakbench": "JailbreakBench/JBB-Behaviors/data/benign-behaviors.csv",
    "or-bench": "bench-llm/or-bench/or-bench-hard-1k.csv",
    "xstest": "walledai/XSTest/data/*.parquet",
}


def load_behaviors(
    reference: Path | str, harmful: bool = True, targets: Path | str | None = None
) -> tuple[list[Behavior], str]:
    """The behaviors of a set, in its order, each with an id, a text and a target.

    Args:
        targets: a JSON file that maps ids to targets.

    Returns:
        The behaviors, and a line on what was left out, "" where nothing was.

    Raises:
        InputError: the set cannot be read, has no rows, lacks a column of texts, or has a row
            without text or with the id of another row; or `targets` has none of its ids.
    """
    known = HARMFUL if harmful else HARMLESS
    name, functional = _split(str(reference), known)
    found = _find(name, known)
    rows, rest = _functional(records.read(found, text=TEXT), functional, name)
    rows, contrasts = _without_contrasts(rows, harmful)
    behaviors = []
    seen: dict[str, str] = {}
    for row in rows:
        behavior = of(row, harmful)
        if behavior.id in seen:
            repeated = "text" if records.value(row[1], *ID) is None else f"id {behavior.id!r}"
            raise InputError(f"{row[0]} repeats the {repeated} of {seen[behavior.id]}")
        seen[behavior.id] = row[0]
        behaviors.append(behavior)
    known = _targets(found, seen, targets)
    filled = [
        replace(b, target=b.target or known.get(b.id) or affirmation(b.text)) for b in behaviors
    ]
    return filled, _left_out(name, rest | contrasts)


def of(row: Entry, harmful: bool) -> Behavior:
    """The behavior of a row, without a target where the row names none.

    Raises:
        InputError: the row has no text.
    """
    text, context = records.text(row, *TEXT), records.text(row, *CONTEXT)
    if not text:
        raise InputError(f"{row[0]} has no text")
    return Behavior(
        id=records.text(row, *ID) or digest([text, context])[:12],
        text=text,
        target=records.text(row, "target"),
        category=records.text(row, *CATEGORY),
        context=context,
        harmful=harmful,
    )


def harmless() -> list[Behavior]:
    """The everyday requests that ship, some of them with words that sound harmful."""
    with as_file(files("robench.texts") / "harmless.csv") as path:
        return load_behaviors(path, harmful=False)[0]


def affirmation(text: str) -> str:
    """The target of a behavior that comes without one: an affirmative start that names it.

    Differs: published targets are phrased for each behavior ("Sure, here is a tutorial on ...").
    """
    return f'Sure, here is a detailed answer to "{text}"'


def draw_behaviors(behaviors: Sequence[Behavior], n: int, seed: int = 0) -> list[Behavior]:
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


def checksum(behaviors: Sequence[Behavior]) -> str:
    """The sha256 of everything that the behaviors say, in their order."""
    return digest([astuple(b) for b in behaviors])


def _split(reference: str, known: Mapping[str, str]) -> tuple[str, str]:
    """`FILE:contextual` -> its name and the functional category asked for, "" where none is."""
    name, _, end = reference.rpartition(":")
    if reference in known or Path(reference).exists() or not name:
        return reference, ""
    if end not in FUNCTIONAL and Path(name).exists():
        raise InputError(f"{name} has no part ':{end}'{suggestion(end, FUNCTIONAL)}")
    return (name, end) if end in FUNCTIONAL else (reference, "")


def _find(name: str, known: Mapping[str, str]) -> list[Path]:
    word = not Path(name).suffix and "/" not in name and not Path(name).exists()
    if word and name not in known:
        raise InputError(f"no file and no set called {name!r}{suggestion(name, known)}")
    return records.find_files(known[name] if word else name)


def _functional(rows: list[Entry], wanted: str, name: str) -> tuple[list[Entry], Counter[str]]:
    """The rows of one functional category, and how many there are of the others."""
    column = "FunctionalCategory"
    if not records.has(rows, column):
        if wanted:
            raise InputError(f"{name} has no column {column}, which ':{wanted}' asks for")
        return rows, Counter()
    if wanted == "all":
        return rows, Counter()
    kept = [row for row in rows if records.text(row, column) == (wanted or "standard")]
    found = Counter(records.text(row, column) for row in rows)
    if not kept:
        raise InputError(
            f"{name} has no {wanted or 'standard'} behaviors, but {_counted(found)}: "
            f"ask for them at the end of the name, as in {name}:{next(iter(found))}"
        )
    return kept, found - Counter({wanted or "standard": len(kept)})


def _without_contrasts(rows: list[Entry], harmful: bool) -> tuple[list[Entry], Counter[str]]:
    """Of XSTest (Röttger et al., arXiv 2308.01263) the safe prompts, or their unsafe contrasts."""
    if not records.has(rows, "type", "focus"):
        return rows, Counter()
    kept = [row for row in rows if records.text(row, "type").startswith("contrast_") == harmful]
    return kept, Counter({"safe" if harmful else "unsafe": len(rows) - len(kept)})


def _left_out(name: str, rest: Counter[str]) -> str:
    return f"{name}: left out {_counted(rest)}" if rest.total() else ""


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in found.items() if n)


def _targets(found: Sequence[Path], ids: Iterable[str], given: Path | str | None) -> dict[str, str]:
    """The targets of `ids` in the file given, else in the `*targets*.json` files beside."""
    wanted = set(ids)
    if given:
        named = records.parsed(records.content(Path(given)), str(given))
        if not isinstance(named, dict) or not wanted & named.keys():
            raise InputError(f"{given} maps none of the behaviors' ids to a target")
        return _named(named, wanted)
    targets: dict[str, str] = {}
    for file in sorted(found[0].parent.glob("*targets*.json")):  # the first by name wins
        if file not in found:
            named = records.parsed(records.content(file), str(file))
            targets = (_named(named, wanted) if isinstance(named, dict) else {}) | targets
    return targets


def _named(targets: Mapping[str, Any], ids: set[str]) -> dict[str, str]:
    return {i: target for i, target in targets.items() if i in ids and isinstance(target, str)}
