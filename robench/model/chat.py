"""Chat template -> token ids: where the prompt is cut at the gap, and where the reply begins.

Optimisation, generation and judging use the same function. The template is rendered once with the
gap's mark in place; the ids around the gap are taken from the tokenised whole string, so they are
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

# Templates that write the current date (Llama-3.1 and its like) write this one, Llama-3.1's own
# default: a prompt, its hash and a finished run must not depend on the day.
FIXED_DATE = datetime(2024, 7, 26)

# Short gap texts with different first and last characters: ids that the prompts made with them have
# in common do not belong to the gap.
_PROBES = (" x", " 7", " Q")


@dataclass(frozen=True)
class Seams:
    """A conversation cut at its gap.

    before, after:             the rendered texts around the gap
    before_ids, after_ids:     their ids inside the whole prompt
    strips_left, strips_right: whether the template removes spaces at that end of the gap's text
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
        self._template = with_fixed_date(tokenizer.get_chat_template())

    def render(self, messages: Sequence[Message]) -> str:
        """The text of the conversation up to the beginning of the reply.

        A final assistant message is not closed: the reply continues it (prefilling).
        """
        prefilled = messages[-1]["role"] == "assistant"
        return self._apply(messages, prefilled)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Rendered texts -> ids, with as many BOS tokens as the template writes.

        If it writes none and the tokenizer would add one by itself, one is prepended; an EOS is
        never appended.
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
        spaced = self.render(fill_gap(messages, f" {GAP} "))
        strips_left = not spaced.startswith(f"{before} ")
        strips_right = not spaced.endswith(f" {after}")
        head, *rows = self.encode([before, *(f"{before}{probe}{after}" for probe in _PROBES)])
        if any(row[: len(head)] != head for row in rows):  # the tokens there depend on the gap
            head = common_prefix(rows)
        tail = common_prefix([row[len(head) :][::-1] for row in rows])[::-1]
        return Seams(before, after, head, tail, strips_left, strips_right)

    @cached_property
    def joiner(self) -> str:
        """What belongs between the text before the gap and the decoded gap: "" or " ".

        SentencePiece tokenizers drop the first space when they decode; byte-level ones keep it.
        """
        seams = self.seams([{"role": "user", "content": f"Hello{GAP}"}])
        text = " x y z"
        (row,) = self.encode([f"{seams.before}{text}{seams.after}"])
        gap = row[len(seams.before_ids) : len(row) - len(seams.after_ids)]
        return "" if self.decode([gap])[0].startswith(" ") else " "

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids -> texts, with special tokens, without cleaning up spaces."""
        return list(
            self.tokenizer.batch_decode(
                rows, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def target_ids(self, messages: Sequence[Message], target: str) -> list[int]:
        """Ids of a target, the beginning of the reply, as the template joins it to the prompt.

        Llama-2, for one, writes a space between them: the ids are those of the whole string.
        """
        return self.prompt_and_target_ids([messages], [target])[0][1]

    def prompt_and_target_ids(
        self, conversations: Sequence[Sequence[Message]], targets: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """The ids of each conversation's prompt, and of its target as `target_ids` gives them."""
        prompts = [self.render(messages) for messages in conversations]
        replies = [
            self._reply_text(messages, prompt, target)
            for messages, prompt, target in zip(conversations, prompts, targets, strict=True)
        ]
        wholes = self.encode(
            [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        )
        rows = []
        for ids, whole_ids, reply in zip(self.encode(prompts), wholes, replies, strict=True):
            if whole_ids[: len(ids)] == ids:
                rows.append((ids, whole_ids[len(ids) :]))
            else:
                alone = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
                rows.append((ids, list(alone)))
        return rows

    def _reply_text(self, messages: Sequence[Message], prompt: str, target: str) -> str:
        """The target with what the template writes between it and the rendered prompt."""
        if messages[-1]["role"] != "assistant":
            answered = [*messages, {"role": "assistant", "content": target}]
            whole = self._apply(answered, prefilled=True)
            if whole.startswith(prompt) and whole.endswith(target):
                return whole[len(prompt) :]
        return target

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
            raise InputError(f"the chat template rejects the conversation: {error}") from error

    @cached_property
    def _bos(self) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer.bos_token_id is None:
            return []
        written = tokenizer.bos_token in self._apply([{"role": "user", "content": "x"}], False)
        adds = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        return [tokenizer.bos_token_id] if adds and not written else []


def with_fixed_date(template: str) -> str:
    """The template with FIXED_DATE as the current date.

    transformers provides templates with a function `strftime_now` that cannot be replaced, so a
    macro of that name is prepended: it substitutes the fixed date into the format.
    """
    if "strftime_now" not in template:
        return template
    parts = {f"%{letter}": FIXED_DATE.strftime(f"%{letter}") for letter in "aAbBdHIjmMpSUwWyYcxX"}
    parts |= {f"%-{name[1]}": text.lstrip("0") or "0" for name, text in parts.items()}
    chain = " ".join(f"| replace({name!r}, {text!r})" for name, text in parts.items())
    # `+` keeps a newline at the beginning of the template
    return f"{{% macro strftime_now(format) %}}{{{{ format {chain} }}}}{{% endmacro +%}}{template}"


def fill_gap(messages: Sequence[Message], text: str) -> tuple[Message, ...]:
    """The messages with `text` in place of the last GAP mark."""
    filled = [dict(message) for message in messages]
    for message in reversed(filled):
        before, mark, after = message["content"].rpartition(GAP)
        if mark:
            message["content"] = f"{before}{text}{after}"
            return tuple(filled)
    raise InputError("the conversation has no gap")


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """The longest common prefix of rows of ids."""
    columns = takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False))
    return [column[0] for column in columns]
