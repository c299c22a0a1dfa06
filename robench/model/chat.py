"""Chat template -> token ids: where the prompt is cut at the gap, and where the reply begins.

Optimisation, generation and judging use the same function. The template is rendered once with the
gap's mark in place; the ids around the gap are taken from the tokenised whole string, so they are
those that the final prompt will have.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from jinja2 import TemplateError

from robench.errors import InputError
from robench.model.thoughts import Marks, closes, marks_of, opened_by, split
from robench.types import GAP, Message, user

# Templates that write the current date (Llama-3.1 and its like) write this one, Llama-3.1's own
# default: a prompt, its hash and a finished run must not depend on the day.
FIXED_DATE = datetime(2024, 7, 26)

_TAG_LIKE = re.compile(r"<[^<>\s]+>|\[/?\w+\]")  # a token that templates write, not people
_MARK = "\ue001\ue002\ue001"  # finds its place in a rendering, as GAP does
# What a rendering says of itself: no argument of a template
_OF_THE_ENGINE = (
    "messages", "conversation", "chat_template", "add_generation_prompt", "tokenize",
    "continue_final_message", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens",
)  # fmt: skip

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


class Answered(NamedTuple):
    """A reply's tokens as thought and answer.

    thought:  None where the reply has none
    answer:   the text after the thought; None where the thought never closed
    begin:    the token from which on the answer stands
    """

    thought: str | None
    answer: str | None
    begin: int


class Chat:
    """A tokenizer with its chat template, its arguments and the experiment's system prompt.

    Args:
        tokenizer: of transformers, with a chat template.
        system: the system prompt.
        template_args: what every rendering gives the template, as `enable_thinking`.

    Raises:
        InputError: there is no template, it does not know one of the arguments, or it leaves the
            system prompt out.
    """

    def __init__(
        self,
        tokenizer: Any,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has no chat template; "
                "give one: --chat-template FILE (Jinja)"
            )
        self.tokenizer = tokenizer
        self.system = system
        self.template_args = dict(template_args or {})
        template = _chosen_template(tokenizer)
        _check_arguments(self.template_args, template)
        self.marks = marks_of(f"{template} {' '.join(tokenizer.get_added_vocab())}")
        self._template = with_fixed_date(template)
        if system and not _holds(self.render(user("")), system):
            raise InputError(
                "the chat template leaves the system prompt out: it has no such role; leave out "
                "--system, or give a template that has one: --chat-template FILE"
            )

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
        """Ids of a target, the beginning of the answer, as the template joins it to the prompt.

        Llama-2, for one, writes a space between them: the ids are those of the whole string. Of a
        model that thinks they begin with an empty thought, or with the end of the one that the
        prompt opened, where the template has it so: a target stands where the answer does.
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

    def opened(self, messages: Sequence[Message], prompt: str) -> Marks | None:
        """The marks of the thought that a rendered prompt leaves open, if it does."""
        return opened_by(self._beginning(messages, prompt), self.marks)

    def opened_in(self, messages: Sequence[Message]) -> Marks | None:
        """The marks of the thought that the prompt of a conversation leaves open, if it does."""
        return self.opened(messages, self.render(messages)) if self.marks else None

    @cached_property
    def may_think(self) -> bool:
        """Whether replies may begin with a thought: by the template, or by the vocabulary."""
        asked = user("x")
        return bool(self.marks) and not closes(
            self._beginning(asked, self.render(asked)), self.marks
        )

    @cached_property
    def turn_end(self) -> int | None:
        """The token that closes the assistant's turn in the template; None: it is no single one."""
        for after in self._after_turn:
            for token in self.tokenizer(after, add_special_tokens=False)["input_ids"][:1]:
                known = token in self.tokenizer.added_tokens_decoder
                if known or _TAG_LIKE.fullmatch(self.decode([[token]])[0]):
                    return int(token)
        return None

    @cached_property
    def turn_end_text(self) -> str | None:
        """The text that does, where the tokenizer writes it in several tokens."""
        tags = [found.group() for after in self._after_turn if (found := _TAG_LIKE.match(after))]
        return tags[0] if tags and self.turn_end is None else None

    @cached_property
    def _after_turn(self) -> list[str]:
        """What the template writes after an assistant's turn, the last one first, and before the
        next; nothing that also stands in thoughts."""
        inside = "".join(f"{m.open}{m.close}{m.between}" for m in self.marks)
        turns: list[Message] = [*user("x"), {"role": "assistant", "content": _MARK}]
        found = []
        for conversation in (turns, [*turns, *user("y")]):
            try:
                whole = self._apply(conversation, prefilled=False, generation=False)
            except InputError:  # a template for other roles
                continue
            after = whole.rpartition(_MARK)[2].lstrip()
            tag = _TAG_LIKE.match(after)
            if not (tag and tag.group() in inside):
                found.append(after)
        return found

    def closed_at(self, tokens: Sequence[int]) -> int | None:
        """How many of a reply's tokens there are up to `turn_end_text`, it included; None without
        it."""
        end = self.turn_end_text
        if end is None or end not in self.decode([tokens])[0]:
            return None
        return bisect_left(
            range(len(tokens)), True, key=lambda k: end in self.decode([tokens[:k]])[0]
        )

    def answered(self, tokens: Sequence[int], opened: Marks | None = None) -> Answered:
        """A reply's tokens, without its end token, as thought and answer.

        Args:
            tokens: of the reply.
            opened: the marks of the thought that its prompt leaves open.
        """
        (text,) = self.decode([tokens])
        found = split(text, opened, self.marks)
        if found is None:
            return Answered(None, self._plain(tokens), 0)
        if not found.finished:
            return Answered(found.thought, None, len(tokens))
        begin = bisect_left(
            range(len(tokens)), found.begin, key=lambda k: len(self.decode([tokens[:k]])[0])
        )
        rest = self.decode([tokens[:begin]])[0][found.begin :]  # of a token that ends the thought
        return Answered(found.thought, f"{rest}{self._plain(tokens[begin:])}".lstrip(), begin)

    def _plain(self, tokens: Sequence[int]) -> str:
        """Tokens as text, without special ones and what closes a turn."""
        text = str(self.tokenizer.decode(tokens, skip_special_tokens=True))
        return text.partition(self.turn_end_text)[0] if self.turn_end_text else text

    def _beginning(self, messages: Sequence[Message], prompt: str) -> str:
        """What a rendered prompt has of the assistant's turn, and before it of the user's end."""
        *others, last = messages
        if last["role"] == "assistant":
            return last["content"]
        marked = self._apply([*others, {**last, "content": _MARK}], prefilled=False)
        after = marked.rpartition(_MARK)[2]
        return after if prompt.endswith(after) else ""

    def _reply_text(self, messages: Sequence[Message], prompt: str, target: str) -> str:
        """The target with what the template writes between it and the rendered prompt."""
        opened = self.opened(messages, prompt)
        if messages[-1]["role"] != "assistant":
            answered = [*messages, {"role": "assistant", "content": target}]
            try:
                whole = self._apply(answered, prefilled=True)
            except InputError:  # a template that cuts the target, one with a thought for example
                whole = ""
            joined = whole[len(prompt) :]
            closed = opened is None or opened.close in joined
            if whole.startswith(prompt) and whole.endswith(target) and closed:
                return joined
        return target if opened is None else f"{self._closing(messages, prompt, opened)}{target}"

    def _closing(self, messages: Sequence[Message], prompt: str, opened: Marks) -> str:
        """What ends a thought that the prompt opened, as the template writes an empty one."""
        for switch in ("enable_thinking", "thinking"):
            empty = self._apply(messages, prefilled=False, **{switch: False})
            rest = empty[len(prompt) :]
            if empty.startswith(prompt) and opened.close in rest:
                return rest
        end = f"{opened.between}{opened.close}"
        return f"\n{end}\n\n" if prompt.endswith("\n") else end

    def _apply(
        self,
        messages: Sequence[Message],
        prefilled: bool,
        generation: bool = True,
        **arguments: Any,
    ) -> str:
        system = [{"role": "system", "content": self.system}] if self.system is not None else []
        return self._rendered(
            [*system, *messages],
            self._wants_parts,
            add_generation_prompt=generation and not prefilled,
            continue_final_message=prefilled,
            **{**self.template_args, **arguments},
        )

    def _rendered(self, messages: Sequence[Message], parts: bool, **options: Any) -> str:
        """Messages through the template, their contents as text or as lists of one part."""
        contents = [
            {**m, "content": [{"type": "text", "text": m["content"]}]} if parts else m
            for m in messages
        ]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    contents, chat_template=self._template, tokenize=False, **options
                )
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InputError(f"the chat template rejects the conversation: {error}") from error

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template drops a content that is text and keeps one that is a list of parts,
        as those of models that also read images do (LLaVA, SmolVLM)."""

        def keeps(parts: bool) -> bool:
            try:
                return _MARK in self._rendered(user(_MARK), parts, **self.template_args)
            except InputError:
                return False

        return not keeps(parts=False) and keeps(parts=True)

    @cached_property
    def _bos(self) -> list[int]:
        tokenizer = self.tokenizer
        if tokenizer.bos_token_id is None:
            return []
        written = tokenizer.bos_token in self._apply([{"role": "user", "content": "x"}], False)
        adds = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
        return [tokenizer.bos_token_id] if adds and not written else []


def _chosen_template(tokenizer: Any) -> str:
    """The tokenizer's template; of several by name the one that is called `default`.

    Raises:
        InputError: there are several, and none has that name.
    """
    named = tokenizer.chat_template
    if isinstance(named, dict) and "default" not in named:
        if len(named) != 1:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path} has chat templates called "
                f"{', '.join(sorted(named))} and no default: choose one: --chat-template NAME"
            )
        return str(*named.values())
    return str(tokenizer.get_chat_template())


def _holds(text: str, part: str) -> bool:
    """Whether a part stands in a text, whatever became of its blanks."""
    return " ".join(part.split()) in " ".join(text.split())


def _check_arguments(arguments: Mapping[str, Any], template: str) -> None:
    """That a template reads its arguments, and the engine does not set them."""
    for name in arguments:
        if name in _OF_THE_ENGINE:
            raise InputError(f"--template-arg {name}: robench sets it itself; leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise InputError(f"--template-arg {name}: the chat template knows no such variable")


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
