"""Training examples -> padded token batches with the masks that defenses train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robench.errors import Failure
from robench.model.chat import Chat
from robench.texts.training_texts import NEAR_HARMFUL
from robench.types import Example, user


class Text(NamedTuple):
    """One tokenised example: `prompt` up to the end of the generation prompt, then `reply`."""

    prompt: list[int]
    reply: list[int]


class SplitExamples(NamedTuple):
    """Training examples by kind.

    harmful:  answers to harmful requests
    refused:  refusals of harmful requests; may be empty
    harmless: answers to harmless requests
    """

    harmful: list[Example]
    refused: list[Example]
    harmless: list[Example]


class SplitTexts(NamedTuple):
    """`SplitExamples`, tokenised."""

    harmful: list[Text]
    refused: list[Text]
    harmless: list[Text]


@dataclass(frozen=True)
class Batch:
    """Padded ids (batch, time) with masks (batch, time) of the same shape.

    texts:             the texts of its rows
    all_text:          all tokens but padding
    response:          the reply's tokens
    last_prompt_token: the last token before the reply
    """

    texts: tuple[Text, ...]
    ids: Tensor
    all_text: Tensor
    response: Tensor
    last_prompt_token: Tensor


def split_examples(examples: Sequence[Example]) -> SplitExamples:
    """The examples by kind; refusals of harmless requests are left out.

    Raises:
        Failure: there are no answers to harmful requests, or none to harmless ones.
    """
    answers = [e for e in examples if e.kind == "answer"]
    split = SplitExamples(
        [e for e in answers if e.behavior.harmful],
        [e for e in examples if e.kind == "refusal" and e.behavior.harmful],
        [e for e in answers if not e.behavior.harmful],
    )
    for kind, part in (("harmful", split.harmful), ("harmless", split.harmless)):
        if not part:
            raise Failure(f"the training data has no answers to {kind} requests")
    return split


def is_near_harmful(example: Example) -> bool:
    """Whether an example answers a harmless request that only looks harmful."""
    return not example.behavior.harmful and example.behavior.category == NEAR_HARMFUL


def tokenise(
    chat: Chat,
    examples: Sequence[Example],
    blank: bool = False,
    limit: int = 512,
    ended: bool = False,
) -> list[Text]:
    """The examples through the chat template, with an empty user turn if `blank`.

    Replies are cut to `limit` tokens. An example whose prompt is longer is left out: the published
    code cuts the prompt, and so loses the assistant's tag at its end. If `ended`, what ends a
    reply follows those that are not cut: a model that learns to say it has to learn to stop.

    Raises:
        Failure: no example is left.
    """
    texts = []
    end = end_of_reply(chat) if ended else []
    for example in examples:
        messages = user("" if blank else example.behavior.request)
        (prompt,) = chat.encode([chat.render(messages)])
        if len(prompt) <= limit:
            reply = chat.target_ids(messages, example.reply)
            texts.append(Text(prompt, reply[:limit] if len(reply) > limit else [*reply, *end]))
    if examples and not texts:
        raise Failure(f"no prompt of the training data has at most {limit} tokens")
    return texts


def end_of_reply(chat: Chat) -> list[int]:
    """The ids that the template writes between a reply and the next turn, up to the end token.

    That is the first special token, or the tokenizer's own where the template writes none.
    """
    tokenizer = chat.tokenizer
    answered = (*user("x"), {"role": "assistant", "content": "y"})
    open_end, whole = chat.render(answered), chat.render((*answered, *user("z")))
    written = whole[len(open_end) :] if whole.startswith(open_end) else ""
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    first = next((place for place, token in enumerate(ids) if token in special), None)
    return [tokenizer.eos_token_id] if first is None else list(ids[: first + 1])


def tokenise_split(chat: Chat, examples: Sequence[Example]) -> SplitTexts:
    """The examples by kind, through the chat template.

    Raises:
        Failure: as `split_examples` and `tokenise`.
    """
    return SplitTexts(*(tokenise(chat, part) for part in split_examples(examples)))


def collate(texts: Sequence[Text], side: Literal["left", "right"] = "right") -> Batch:
    """Texts -> one batch, padded on a side."""
    rows = [[*text.prompt, *text.reply] for text in texts]
    time = max(map(len, rows))
    starts = torch.tensor([time - len(row) if side == "left" else 0 for row in rows])[:, None]
    ends = starts + torch.tensor([len(row) for row in rows])[:, None]
    replies = starts + torch.tensor([len(text.prompt) for text in texts])[:, None]
    position = torch.arange(time).expand(len(rows), -1)
    real = (starts <= position) & (position < ends)
    ids = torch.zeros(len(rows), time, dtype=torch.long)
    ids[real] = torch.tensor([token for row in rows for token in row])
    return Batch(tuple(texts), ids, real, real & (position >= replies), position == replies - 1)


def draw_texts(texts: Sequence[Text], size: int, rng: torch.Generator) -> list[Text]:
    """`size` texts, drawn with replacement.

    Raises:
        Failure: there are none to draw from.
    """
    if not size:
        return []
    if not texts:
        raise Failure(
            "the training data has no refusals of harmful requests; give some, or set the "
            "defense's field `refusals` to 0"
        )
    return [texts[row] for row in torch.randint(len(texts), (size,), generator=rng).tolist()]


def draw_safe_texts(texts: SplitTexts, size: int, share: float, rng: torch.Generator) -> list[Text]:
    """`size` safe texts: a share of refusals of harmful requests, then answers to harmless ones.

    Raises:
        Failure: the share is not zero and there are no refusals.
    """
    refusals = draw_texts(texts.refused, round(share * size), rng)
    return refusals + draw_texts(texts.harmless, size - len(refusals), rng)
