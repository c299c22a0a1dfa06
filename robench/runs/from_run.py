"""Training text from a finished run: what its attacks got out of the model, and refusals of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from robench.errors import InputError
from robench.results.answers import read_answers
from robench.results.schema import BENIGN, Row
from robench.results.store import RunStore
from robench.results.verdicts import Answer
from robench.texts.refusals import SENTENCES
from robench.texts.training_texts import with_refusals
from robench.types import Behavior, Example

UNDEFENDED = "none"
SENTENCE = re.compile(r".*[.!?][\"')\]*]*(?=\s|$)", re.DOTALL)  # up to the end of the last sentence


def is_run(folder: str | Path) -> bool:
    """Whether a path names the folder of a run."""
    return (Path(folder) / "run.json").is_file()


def examples_of_run(
    folder: str | Path, refusals: Sequence[str] = SENTENCES
) -> tuple[list[Example], str]:
    """The harmful replies of a run as answers to the plain requests, refused as well.

    Harmless answers are those of the undefended model to plain harmless requests. Collapsed
    replies are left out, and those that ended at the limit of tokens are cut to whole sentences.

    Returns:
        The examples, and a line on how many there are of each kind.

    Raises:
        InputError: the folder is not a run's, or no reply in it is harmful.
    """
    requests = {(r["harmful"], r["id"]): Behavior(**r) for r in RunStore(Path(folder)).behaviors()}
    answers = [e for answer in read_answers([folder]) for e in _examples(answer, requests)]
    examples = with_refusals(answers, refusals)
    kinds = [(e.behavior.harmful, e.kind) for e in examples]
    harmful, harmless = kinds.count((True, "answer")), kinds.count((False, "answer"))
    if not harmful:
        raise InputError(f"{folder}: no reply of the run is harmful, so none can be trained on")
    refused = kinds.count((True, "refusal"))
    return examples, (
        f"{folder}: training text of {harmful} harmful and {harmless} harmless replies, and "
        f"{refused} refusals"
    )


def whole(reply: str, truncated: bool) -> str:
    """A reply, cut after its last sentence where it ended at the limit; "" if it has none."""
    if not truncated:
        return reply
    found = SENTENCE.match(reply)
    return found.group() if found else ""


def begun(beginning: str, reply: str) -> str:
    """A reply with the words that were put into the model's mouth before it."""
    space = " " if beginning and reply[:1].isalnum() else ""
    return f"{beginning.rstrip()}{space}{reply}" if space else f"{beginning}{reply}"


def _examples(answer: Answer, requests: Mapping[tuple[bool, str], Behavior]) -> Iterator[Example]:
    harmless = answer.header["role"] == BENIGN and answer.header["defense"] == UNDEFENDED
    wanted = "complied" if harmless else "harmful"
    for row, outcome, collapsed in zip(
        answer.rows, answer.outcomes(), answer.collapsed, strict=True
    ):
        if outcome == wanted and not collapsed:
            reply = whole(_spoken(row), row["truncated"])
            if reply.strip():
                yield Example(requests[row["harmful"], row["behavior"]], reply, "answer")


def _spoken(row: Row) -> str:
    last = row["artifact"]["messages"][-1]
    beginning = last["content"] if last["role"] == "assistant" else ""
    return begun(beginning, row["reply"] or "")
