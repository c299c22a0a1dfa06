"""Sets of behaviors and instructions: published ones, one's own, and the harmless ones that ship.

A set is a file (CSV, TSV, JSONL, JSON, Parquet), a dataset on the hub (see records.py) or a name.
`forbidden_geography`, with `:train`, `:probe`, `:dev` or `:test` after it, ships (geography.py).
These refer to files on the hub: advbench, harmbench, jailbreakbench, strongreject; of harmless
requests jailbreakbench, or-bench, xstest. Columns are matched by name, ignoring case, spaces and
underscores; the first that exists is used:

    text       prompt, text, goal, forbidden_prompt, behavior, instruction
    id         id, BehaviorID; without one, a hash of text and context
    target     target; else from a file that maps ids to targets: the one that is given, or any
               `*targets*.json` in the same folder; else the template of `affirmation`
    category   category, SemanticCategory, type
    context    context, ContextString
    answer     answer: what the judge `contains` accepts, a list or a text with | between them
    fact       fact: the same for requests that ask for the same thing in different words

So HarmBench, AdvBench, StrongREJECT, JailbreakBench, XSTest and OR-Bench are read as published.
Where there is a column FunctionalCategory, as in HarmBench, the standard behaviors are taken, or
those that a suffix of the name selects: `FILE:contextual`, `:copyright`, `:all`; likewise
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
from robench.texts import geography, readers, records
from robench.texts.records import Row
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
        reference: a file, a dataset or a name, with a functional category or without.
        harmful: whether the set is one of harmful requests.
        targets: a JSON file that maps ids to targets.

    Returns:
        The behaviors, and a line that says which rows were left out, "" if none were.

    Raises:
        InputError: the set cannot be read, has no rows, lacks a column of texts, or has a row
            without text or with the id of another row; or `targets` has none of its ids.
    """
    if split := geography.split_of(str(reference)):
        return geography.behaviors(split, harmful), ""
    names = HARMFUL if harmful else HARMLESS
    name, category = _split(str(reference), names)
    set_files = _find_set(name, names)
    rows, others = _functional(records.read(set_files, text=TEXT), category, name)
    rows, contrasts = _without_contrasts(rows, harmful)
    behaviors = _distinct(rows, harmful)
    targets_of = _targets(set_files, [b.id for b in behaviors], targets)
    filled = [
        replace(b, target=b.target or targets_of.get(b.id) or affirmation(b.text))
        for b in behaviors
    ]
    return filled, _left_out(name, others | contrasts)


def behavior_of(row: Row, harmful: bool) -> Behavior:
    """The behavior of a row, without a target if the row has none.

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
    """The everyday requests that ship, some of them with words that sound harmful.

    Every second one, from the first, is a request under test on models other than the organism.
    """
    return _shipped("harmless.csv")


def harmless_references() -> list[Behavior]:
    """The harmless requests that ship for fitting directions and probes, none of them under test.

    Imperatives and questions in the form of published harmful sets (their first words, lengths and
    final marks), and every second one of `harmless`. Style varies: `style.matched` selects.
    """
    return [
        *_shipped("harmless_imperatives.csv"),
        *_shipped("harmless_questions.csv"),
        *harmless()[1::2],
    ]


def _shipped(name: str) -> list[Behavior]:
    with as_file(files("robench.texts") / name) as path:
        return load_behaviors(path, harmful=False)[0]


def affirmation(text: str) -> str:
    """The target of a behavior that comes without one: an affirmative start that names it.

    Differs: published targets are phrased for each behavior ("Sure, here is a tutorial on ...").
    """
    return f'Sure, here is a detailed answer to "{text}"'


def draw_behaviors(behaviors: Sequence[Behavior], n: int, seed: int = 0) -> list[Behavior]:
    """A sample of `n` behaviors in the order given, stratified by category.

    A smaller sample is part of a larger one, and it depends on the ids, not on their order: in a
    category of s behaviors, shuffled, the k-th has rank (k + u) / s with one u in [0, 1) for the
    category, and the n behaviors of lowest rank are taken.

    Raises:
        InputError: there are fewer than `n`.
    """
    if n > len(behaviors):
        raise InputError(f"cannot draw {n} behaviors: there are {len(behaviors)}")
    ids_by_category = defaultdict(list)
    for behavior in sorted(behaviors, key=lambda b: digest([seed, b.id])):
        ids_by_category[behavior.category].append(behavior.id)
    rank = {}
    for category, ids in ids_by_category.items():
        start = int(digest([seed, category]), 16) / 2**256
        rank.update({identity: (k + start) / len(ids) for k, identity in enumerate(ids)})
    drawn = set(sorted(rank, key=lambda identity: rank[identity])[:n])
    return [b for b in behaviors if b.id in drawn]


def checksum(behaviors: Sequence[Behavior]) -> str:
    """The sha256 of all fields of the behaviors, in their order.

    Answers and facts count where there are any: the hashes of sets without them stay what they were
    before behaviors had such fields.
    """
    checkable = 6  # fields before `answer`
    return digest([astuple(b)[: None if b.answer or b.fact else checkable] for b in behaviors])


def _split(reference: str, names: Mapping[str, str]) -> tuple[str, str]:
    """`FILE:contextual` -> the name and the functional category, "" if it has none."""
    name, _, suffix = reference.rpartition(":")
    if reference in names or Path(reference).exists() or not name:
        return reference, ""
    if suffix not in FUNCTIONAL and Path(name).exists():
        raise InputError(f"{name} has no part ':{suffix}'{suggestion(suffix, FUNCTIONAL)}")
    return (name, suffix) if suffix in FUNCTIONAL else (reference, "")


def _find_set(name: str, names: Mapping[str, str]) -> list[Path]:
    is_word = not Path(name).suffix and "/" not in name and not Path(name).exists()
    if is_word and name not in names:
        known = (*names, geography.NAME)
        raise InputError(f"no file and no set called {name!r}{suggestion(name, known)}")
    return records.find_files(names[name] if is_word else name)


def _functional(rows: list[Row], category: str, name: str) -> tuple[list[Row], Counter[str]]:
    """The rows of one functional category ("" = standard), and how many the others have."""
    column = "FunctionalCategory"
    if not records.has(rows, column):
        if category:
            raise InputError(f"{name} has no column {column}, which ':{category}' needs")
        return rows, Counter()
    if category == "all":
        return rows, Counter()
    category = category or "standard"
    selected = [row for row in rows if records.text(row, column) == category]
    sizes = Counter(records.text(row, column) for row in rows)
    if not selected:
        raise InputError(
            f"{name} has no {category} behaviors, but {_counted(sizes)}: "
            f"select them at the end of the name, as in {name}:{next(iter(sizes))}"
        )
    return selected, sizes - Counter({category: len(selected)})


def _without_contrasts(rows: list[Row], harmful: bool) -> tuple[list[Row], Counter[str]]:
    """Of XSTest (Röttger et al., arXiv 2308.01263) the safe prompts, or their unsafe contrasts."""
    if not records.has(rows, "type", "focus"):
        return rows, Counter()
    selected = [row for row in rows if records.text(row, "type").startswith("contrast_") == harmful]
    return selected, Counter({"safe" if harmful else "unsafe": len(rows) - len(selected)})


def _distinct(rows: Sequence[Row], harmful: bool) -> list[Behavior]:
    """The behaviors of rows, no id twice."""
    behaviors = []
    place_of: dict[str, str] = {}
    for row in rows:
        place, record = row
        behavior = replace(
            behavior_of(row, harmful), answer=_answers(row), fact=records.text(row, "fact")
        )
        if behavior.id in place_of:
            repeated = "text" if records.value(record, *ID) is None else f"id {behavior.id!r}"
            raise InputError(f"{place} repeats the {repeated} of {place_of[behavior.id]}")
        place_of[behavior.id] = place
        behaviors.append(behavior)
    return behaviors


def _answers(row: Row) -> tuple[str, ...]:
    """The accepted answers of a row, none if it has no column for them."""
    place, record = row
    given = records.value(record, "answer")
    listed = given if isinstance(given, list) else [given]
    texts = (records.as_text(answer, f"{place}: answer") for answer in listed)
    if not isinstance(given, list):
        texts = (answer.strip() for text in texts for answer in text.split(geography.SEPARATOR))
    return tuple(filter(None, texts))


def _left_out(name: str, counts: Counter[str]) -> str:
    return f"{name}: left out {_counted(counts)}" if counts.total() else ""


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)


def _targets(
    set_files: Sequence[Path], ids: Iterable[str], targets: Path | str | None
) -> dict[str, str]:
    """The targets of `ids` in the file `targets`, else in `*targets*.json` files of the folder."""
    wanted = set(ids)
    if targets:
        mapping = readers.parsed(readers.content(Path(targets)), str(targets))
        if not isinstance(mapping, dict) or not wanted & mapping.keys():
            raise InputError(f"{targets} maps none of the behaviors' ids to a target")
        return _text_values(mapping, wanted)
    merged: dict[str, str] = {}
    for file in sorted(set_files[0].parent.iterdir()):  # the first by name wins
        is_named = "targets" in file.name and file.suffix.lower() == ".json"
        if is_named and file not in set_files:
            mapping = readers.parsed(readers.content(file), str(file))
            merged = (_text_values(mapping, wanted) if isinstance(mapping, dict) else {}) | merged
    return merged


def _text_values(mapping: Mapping[str, Any], keys: set[str]) -> dict[str, str]:
    return {
        key: value
        for key, value in mapping.items()
        if key in keys and isinstance(value, str) and not records.is_missing(value)
    }
