"""Training text for defenses, in the formats in which it is published.

A format is recognised by its columns, ignoring case, spaces and underscores; the first that fits:

    prompt, output, llama3_output        the circuit breakers' set (Zou et al., arXiv 2406.04313):
                                         a harmful request answered, and refused
    messages                             lists of role and content, as in UltraChat-200k:
                                         harmless requests answered
    prompt, response, prompt_harm_label, WildGuardMix (Han et al., arXiv 2406.18495): harmful
      response_refusal_label,            requests answered with harm or refused, harmless ones
      response_harm_label                answered
    vanilla, adversarial, completion,    WildJailbreak (Jiang et al., arXiv 2406.18510): harmless
      data_type                          requests answered, harmful ones refused
    prompt, harmless_answer,             RepBend's set (Yousefpour et al., arXiv 2504.01550):
      harmful_answer                     harmful requests answered, and refused
    prompt, completion, final_label      XSTest's judged completions (Röttger et al., arXiv
                                         2308.01263): those in full compliance, as answers to
                                         requests that only look harmful
    any other                            a text and a reply (reply, answer, output or response);
                                         kind (answer or refusal, by default answer) and harmful
                                         (true or false, by default true)

The name `forbidden_geography` is that of the set that ships (geography.py).

Harmless requests that only look harmful have the category `near-harmful`, in any format with a
column category: circuit_breaker retains answers to them as a kind of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from robench.config import digest
from robench.errors import InputError
from robench.texts import behaviors, geography, records
from robench.texts.leakage import by_text
from robench.texts.records import Row
from robench.texts.refusals import refused
from robench.types import Example

NEAR_HARMFUL = "near-harmful"  # category of harmless requests that only look harmful
REPLY = ("reply", "answer", "output", "response")
OPENING = 80  # characters of a reply in which a refusal is looked for
MOSTLY = 0.5  # share of refusals among harmful answers above which a file is rejected


def load_examples(reference: Path | str) -> tuple[list[Example], str]:
    """The examples of a file, or of a dataset on the hub, in its order.

    Returns:
        The examples, and a line that says how many rows were left out, "" if none were.

    Raises:
        InputError: it cannot be read, has no known format, holds nothing to train on, or most of
            its answers to harmful requests are refusals.
    """
    if split := geography.split_of(str(reference), "train"):
        return geography.examples(split), ""
    files = records.find_files(reference)
    rows = records.read(files)
    matching = (reader for columns, reader in _FORMATS.items() if records.has(rows, *columns))
    to_examples = next(matching, None)
    if to_examples is None:
        rows = records.read(files, text=behaviors.TEXT, reply=REPLY)
        to_examples = _plain
    examples_of_rows = [list(to_examples(row)) for row in rows]
    examples = [example for of_row in examples_of_rows for example in of_row]
    empty = examples_of_rows.count([])
    if not examples:
        raise InputError(f"{reference} has no row to train on: texts or labels are missing")
    _check_answers_comply(examples, str(reference))
    note = f"{reference}: left out {empty} of {len(rows)} rows, without a text or label to train on"
    return examples, note if empty else ""


def with_refusals(answers: Sequence[Example], refusals: Sequence[str]) -> list[Example]:
    """The answers, without those given twice, and a refusal of each harmful request among them.

    Which refusal a request gets depends on its text alone.
    """
    distinct: dict[tuple[object, str], Example] = {}
    for example in answers:
        said = " ".join(example.reply.split()).casefold()
        distinct.setdefault((by_text(example.behavior), said), example)
    examples = list(distinct.values())
    harmful = {by_text(e.behavior): e.behavior for e in examples if e.behavior.harmful}
    for behavior in harmful.values():
        chosen = refusals[int(digest(by_text(behavior)), 16) % len(refusals)]
        examples.append(Example(behavior, chosen, "refusal"))
    return examples


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of the examples, in their order."""
    return digest([[e.behavior.request, e.behavior.harmful, e.reply, e.kind] for e in examples])


def _check_answers_comply(examples: Sequence[Example], name: str) -> None:
    """Check that harmful answers are not mostly refusals: a defense would unlearn to refuse."""
    answers = [e.reply for e in examples if e.behavior.harmful and e.kind == "answer"]
    refusals = sum(refused(reply[:OPENING]) for reply in answers)
    if refusals > MOSTLY * len(answers):
        raise InputError(
            f"{name}: {refusals} of the {len(answers)} answers to harmful requests are refusals, "
            "and a defense trained on them would learn not to refuse; give answers that comply, "
            "or label the refusals in a column kind (completions of harmful requests in "
            "WildJailbreak are refusals, too)"
        )


def _circuit_breakers(row: Row) -> Iterator[Example]:
    yield from _example(row, "prompt", "output", harmful=True, kind="answer")
    yield from _example(row, "prompt", "llama3_output", harmful=True, kind="refusal")


def _conversation(row: Row) -> Iterator[Example]:
    """The first user turn and the reply to it.

    Differs: the papers train on all turns of a conversation; an example here has one reply, and
    later turns cannot be understood without those before.
    """
    place, record = row
    messages = records.value(record, "messages") or []
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise InputError(f"{place}: messages must be a list of records with role and content")
    turns = [turn for turn in messages if turn.get("role") != "system"]
    if [turn.get("role") for turn in turns[:2]] != ["user", "assistant"]:
        return
    request, reply = (records.as_text(t.get("content"), f"{place}: content") for t in turns[:2])
    harmful = _choice(row, "harmful", {"false": False, "true": True})
    yield from _example((place, {"prompt": request, "reply": reply}), "prompt", "reply", harmful)


def _wildguard(row: Row) -> Iterator[Example]:
    """Rows without all three labels, over-refusals and harmless replies to harmful prompts: none.

    Differs: Simko et al. (arXiv 2506.11938) take every compliance with a harmful prompt for
    harmful, whatever the label of the response.
    """
    labels = ("prompt_harm_label", "response_refusal_label", "response_harm_label")
    meanings: dict[tuple[str, ...], tuple[bool, str]] = {
        ("harmful", "compliance", "harmful"): (True, "answer"),
        ("harmful", "refusal", "unharmful"): (True, "refusal"),
        ("unharmful", "compliance", "unharmful"): (False, "answer"),
    }
    meaning = meanings.get(tuple(records.text(row, label).lower() for label in labels))
    if meaning:
        yield from _example(row, "prompt", "response", *meaning)


def _wildjailbreak(row: Row) -> Iterator[Example]:
    """The completions of harmful prompts are refusals."""
    column, _, nature = records.text(row, "data_type").partition("_")
    if column in ("vanilla", "adversarial") and nature in ("harmful", "benign"):
        harmful = nature == "harmful"
        yield from _example(row, column, "completion", harmful, "refusal" if harmful else "answer")


def _repbend(row: Row) -> Iterator[Example]:
    """A harmless answer to a harmful prompt is a refusal."""
    harmful = _choice(row, "prompt_type", {"harmful": True, "harmless": False, "benign": False})
    if harmful:
        yield from _example(row, "prompt", "harmful_answer", harmful=True, kind="answer")
    kind = "refusal" if harmful else "answer"
    yield from _example(row, "prompt", "harmless_answer", harmful, kind)


def _xstest(row: Row) -> Iterator[Example]:
    """Answers in full compliance; refusals, whole or partial, are left out."""
    if records.text(row, "final_label").lower() != "1_full_compliance":
        return
    for example in _example(row, "prompt", "completion", harmful=False):
        yield replace(example, behavior=replace(example.behavior, category=NEAR_HARMFUL))


def _plain(row: Row) -> Iterator[Example]:
    reply = records.text(row, *REPLY)
    if not reply:
        raise InputError(f"{row[0]} has no reply")
    kind = _choice(row, "kind", {"answer": "answer", "refusal": "refusal"})
    harmful = _choice(row, "harmful", {"true": True, "false": False})
    yield Example(behaviors.behavior_of(row, harmful), reply, kind)


# The columns of a format -> the examples of one of its rows.
_FORMATS: Mapping[tuple[str, ...], Callable[[Row], Iterator[Example]]] = {
    ("prompt", "output", "llama3_output"): _circuit_breakers,
    ("messages",): _conversation,
    (
        "prompt",
        "response",
        "prompt_harm_label",
        "response_refusal_label",
        "response_harm_label",
    ): _wildguard,
    ("vanilla", "adversarial", "completion", "data_type"): _wildjailbreak,
    ("prompt", "harmless_answer", "harmful_answer"): _repbend,
    ("prompt", "completion", "final_label"): _xstest,
}


def _example(
    row: Row, request_column: str, reply_column: str, harmful: bool, kind: Any = "answer"
) -> Iterator[Example]:
    """The example of two columns, none if one of them is empty."""
    request, reply = records.text(row, request_column), records.text(row, reply_column)
    if request and reply:
        behavior = behaviors.behavior_of((row[0], {"prompt": request}), harmful)
        category = records.text(row, "category", "subcategory")
        yield Example(replace(behavior, category=category), reply, kind)


def _choice(row: Row, column: str, meanings: Mapping[str, Any]) -> Any:
    """The meaning of the value in a column; the first meaning if it is empty."""
    value = records.text(row, column).lower() or next(iter(meanings))
    if value not in meanings:
        raise InputError(f"{row[0]}: {column} must be {' or '.join(meanings)}, got {value!r}")
    return meanings[value]
