"""Thoughts of a model that reasons before it answers: how they are marked, and what follows them.

The generation prompt may open a thought (DeepSeek-R1), the reply may (Qwen3), or the template may
write an empty one (`enable_thinking=false`). What is judged is what follows; a thought that never
closes has no answer after it. Nothing here needs a tokenizer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

THINKING = 4  # tokens that a thought may have, as a multiple of those of an answer, by default


@dataclass(frozen=True)
class Marks:
    """The texts around a thought.

    between: what a template writes after the thought and before `close`
    """

    open: str
    close: str
    between: str = ""


# Families whose marks are no pair of tags
_SPECIAL = (
    Marks(  # gpt-oss (harmony): whatever precedes the final channel is not the answer
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        "<|end|><|start|>assistant",
    ),
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),  # OpenThinker, Sky-T1
    Marks("◁think▷", "◁/think▷"),  # Kimi
    Marks("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
# Tags: <think> (Qwen3, DeepSeek-R1, GLM-4.5 and most), <thought> (EXAONE Deep), <seed:think>,
# [THINK] (Magistral) and their like
_WORD = r"(?:\w+[:_])?(?i:think|thinking|thoughts?|reason|reasoning)"
_TAG = re.compile(rf"<(/?)({_WORD})>|\[(/?)(THINK)\]")


class Split(NamedTuple):
    """A reply as thought and answer.

    begin:    where the answer begins in the text; where there is none, the text's length
    finished: whether the thought was closed
    """

    thought: str
    begin: int
    finished: bool


def marks_of(template: str) -> tuple[Marks, ...]:
    """The marks that a chat template writes or looks for, the most telling first."""
    found = [marks for marks in _SPECIAL if marks.close in template]
    found += [_marks(match) for match in _TAG.finditer(template)]
    return tuple(dict.fromkeys(found))


def opened_by(text: str, marks: Sequence[Marks]) -> Marks | None:
    """The marks of the thought that `text`, the beginning of an assistant's turn, leaves open."""
    return next((m for m in marks if text.rfind(m.open) > text.rfind(m.close)), None)


def closes(text: str, marks: Sequence[Marks]) -> bool:
    """Whether the beginning of an assistant's turn has a thought that is over, or none to come."""
    return any(m.close in text for m in marks) and opened_by(text, marks) is None


def split(text: str, opened: Marks | None, marks: Sequence[Marks]) -> Split | None:
    """A reply as thought and answer; None where it has no thought.

    A thought stands at the beginning. Where nobody opened one, but the reply closes one of the
    template's, it began with the reply.

    Args:
        text: the reply, special tokens included.
        opened: the marks of the thought that the prompt leaves open.
        marks: of the template.
    """
    thoughts: list[str] = []
    at, current = 0, opened
    repeated = _opening(text, 0, marks) if opened else None
    if repeated and repeated[0] == opened:
        at = repeated[1]
    while True:
        if current is None:
            opening = _opening(text, at, marks)
            if opening is None:
                break
            current, at = opening
        end = text.find(current.close, at)
        if end < 0:
            thoughts.append(text[at:].strip())
            return Split("\n".join(thoughts), len(text), finished=False)
        thoughts.append(text[at:end].strip().removesuffix(current.between).strip())
        at, current = end + len(current.close), None
    if not thoughts:
        return _unopened(text, marks)
    return Split("\n".join(filter(None, thoughts)), at, finished=True)


def _opening(text: str, at: int, marks: Sequence[Marks]) -> tuple[Marks, int] | None:
    """The thought that opens at a place of the text, blanks aside: its marks, where it begins."""
    at += len(text[at:]) - len(text[at:].lstrip())
    for known in (*marks, *_SPECIAL):
        if text.startswith(known.open, at):
            return known, at + len(known.open)
    tag = _TAG.match(text, at)
    if tag is None or not _is_opening(tag):
        return None
    return _marks(tag), tag.end()


def _unopened(text: str, marks: Sequence[Marks]) -> Split | None:
    """A reply that closes a thought which nobody opened.

    One that the reply itself opens later on is no beginning: what stands before it is answer, and
    the whole is judged. Of harmony's channels (`between`) only the final one is.
    """
    ends = [(text.find(m.close), m) for m in marks if m.close in text]
    ends = [(end, m) for end, m in ends if m.between or m.open not in text[:end]]
    if not ends:
        return None
    end, closed = min(ends, key=lambda pair: pair[0])
    thought = text[:end].strip().removesuffix(closed.between).strip()
    return Split(thought, end + len(closed.close), finished=True)


def _is_opening(tag: re.Match[str]) -> bool:
    return not (tag.group(1) or tag.group(3))


def _marks(tag: re.Match[str]) -> Marks:
    if tag.group(2):
        return Marks(f"<{tag.group(2)}>", f"</{tag.group(2)}>")
    return Marks(f"[{tag.group(4)}]", f"[/{tag.group(4)}]")
