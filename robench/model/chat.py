"""Chat template -> ids: where the gap, the reply and the seams are.

One slicer serves optimisation, generation and judging. The template is rendered once with the
gap's mark in place; the ids around the gap are read off the tokenised whole string, so they are
those that the final prompt will have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from robench.errors import InputError
from robench.types import GAP, Message

# Templates that write the date (Llama-3.1 and its like) write this one, Llama-3.1's own default: a
# prompt, its hash and a finished run must not depend on the day.
TODAY = datetime(2024, 7, 26)

# Three short texts with different ends: what the prompts made with them share there is not gap.
_PROBES = (" x", " 7", " Q")


@dataclass(frozen=True)
class Seams:
    """A conversation cut at its gap.

    `before` and `after` are the rendered texts around the gap, `before_ids` and `after_ids` their
    ids inside the whole prompt. `strips_left` and `strips_right` say that the template removes
    blanks at that end of the gap's text.
    """

    before: str
    after: str
    before_ids: list[int]
    after_ids: list[int]
    strips_left: bool
    strips_right: bool


class Chat:
    """A tokenizer with its chat template and the experiment's system prompt."""

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
                "give one: --chat-template FILE (Jinja)"
            )
        self.tokenizer = tokenizer
        self.system = system
        self._template = dated(tokenizer.get_chat_template())

    def render(self, messages: Sequence[Message]) -> str:
        """The text of the conversation up to where the reply begins.

        A final assistant message is left open, to be continued by the reply.
        """
        prefilled = messages[-1]["role"] == "assistant"
        return self._apply(messages, prefilled)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Rendered texts -> ids, with as many BOS as the template writes.

        Only where the template writes none and the tokenizer would add one by itself is it put in
        front; an EOS is never appended.
        """
        if not texts:
            return []
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [[*self._bos, *row] for row in ids]

    def seams(self, messages: Sequence[Message]) -> Seams:
        """Cut the conversation at its gap.

        Raises:
            InputError: the messages have no gap, or the template drops or repeats it.
        """
        marks = sum(message["content"].count(GAP) for message in messages)
        rendered = self.render(messages)
        if marks == 0 or rendered.count(GAP) != marks:
            raise InputError("the chat template does not keep the gap: it drops or repeats text")
        before, _, after = rendered.rpartition(GAP)
        spaced = self.render(fill(messages, f" {GAP} "))
        strips_left = not spaced.startswith(f"{before} ")
        strips_right = not spaced.endswith(f" {after}")
        head, *rows = self.encode([before, *(f"{before}{probe}{after}" for probe in _PROBES)])
        if any(row[: len(head)] != head for row in rows):  # the seam's tokens depend on the gap
            head = common(rows)
        tail = common([row[len(head) :][::-1] for row in rows])[::-1]
        return Seams(before, after, head, tail, strips_left, strips_right)

    @cached_property
    def joiner(self) -> str:
        """What stands between the text before the gap and the decoded gap: "" or " ".

        SentencePiece tokenizers drop the first blank when they decode; byte-level ones keep it.
        """
        seams = self.seams([{"role": "user", "content": f"Hello{GAP}"}])
        text = " x y z"
        (row,) = self.encode([f"{seams.before}{text}{seams.after}"])
        gap = row[len(seams.before_ids) : len(row) - len(seams.after_ids)]
        return "" if self.decode([gap])[0].startswith(" ") else " "

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids -> texts, special tokens included, nothing cleaned up."""
        return list(
            self.tokenizer.batch_decode(
                rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def target_ids(self, messages: Sequence[Message], target: str) -> list[int]:
        """Ids of the reply's beginning, as the template joins it to the generation prompt.

        Llama-2, for one, writes a blank between them: the ids are those of the whole string.
        """
        return self.continued([messages], [target])[0][1]

    def continued(
        self, conversations: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """The ids of each conversation's prompt, and of its target as `target_ids` has them."""
        prompts, tails = [], []
        for messages, target in zip(conversations, targets, strict=True):
            prompt = self.render(messages)
            tail = target
            if messages[-1]["role"] != "assistant":
                answered = [*messages, {"role": "assistant", "content": target}]
                whole = self._apply(answered, prefilled=True)
                if whole.startswith(prompt) and whole.endswith(target):
                    tail = whole[len(prompt) :]
            prompts.append(prompt)
            tails.append(tail)
        wholes = self.encode([prompt + tail for prompt, tail in zip(prompts, tails, strict=True)])
        rows = []
        for ids, whole_ids, tail in zip(self.encode(prompts), wholes, tails, strict=True):
            if whole_ids[: len(ids)] == ids:
                rows.append((ids, whole_ids[len(ids) :]))
            else:
                alone = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
                rows.append((ids, list(alone)))
        return rows

    def _apply(self, messages: Sequence[Message], prefilled: bool) -> str:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [*system, *messages],
                    chat_template=self._template,
                    tokenize=False,
                    add_generation_prompt=not prefilled,
                    continue_final_message=prefilled,
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from error

    @cached_property
    def _bos(self) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer.bos_token_id is None:
            return []
        written = tokenizer.bos_token in self._apply([{"role": "user", "content": "x"}], False)
        adds = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        return [tokenizer.bos_token_id] if adds and not written else []


def dated(template: str) -> str:
    """The template with its clock stopped at TODAY.

    transformers lends templates a function `strftime_now` and takes none of ours instead, so a
    macro of that name goes in front: it puts the parts of the fixed date in the format's places.
    """
    if "strftime_now" not in template:
        return template
    parts = {f"%{letter}": TODAY.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSUwWyYcxX"}
    parts |= {f"%-{name[1]}": text.lstrip("0") or "0" for name, text in parts.items()}
    chain = " ".join(f"| replace({name!r}, {text!r})" for name, text in parts.items())
    # `+` keeps a newline that the template may begin with
    return f"{{% macro strftime_now(format) %}}{{{{ format {chain} }}}}{{% endmacro +%}}{template}"


def fill(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with `text` in the gap, which is the last mark."""
    filled = [dict(message) for message in messages]
    for message in reversed(filled):
        before, mark, after = message["content"].rpartition(GAP)
        if mark:
            message["content"] = f"{before}{text}{after}"
            return tuple(filled)
    raise InputError("the conversation has no gap")


def common(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest common beginning."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]
