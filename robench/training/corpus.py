"""Examples -> padded token batches with the masks that defenses train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robench.config import digest
from robench.errors import Failure
from robench.model.chat import Chat
from robench.types import Example, user


class Text(NamedTuple):
    """One tokenised example: `prompt` up to the end of the generation prompt, then `reply`."""

    prompt: list[int]
    reply: list[int]


class SplitExamples(NamedTuple):
    """Training examples by what they are for."""

    harmful: list[Example]  # answers to harmful requests
    refused: list[Example]  # refusals of harmful requests; may be empty
    harmless: list[Example]  # answers to harmless requests


@dataclass(frozen=True)
class Batch:
    """Padded ids (batch, time) with masks (batch, time) of the same shape.

    texts:             what its rows were made of
    all_text:          every real token
    response:          the reply's tokens
    last_prompt_token: the one token before the reply
    """

    texts: tuple[Text, ...]
    ids: Tensor
    all_text: Tensor
    response: Tensor
    last_prompt_token: Tensor


def split_examples(examples: Sequence[Example]) -> SplitExamples:
    """The examples, sorted.

    Raises:
        Failure: there are no answers to harmful requests, or none to harmless ones.
    """
    answers = [e for e in examples if e.kind == "answer"]
    found = SplitExamples(
        [e for e in answers if e.behavior.harmful],
        [e for e in examples if e.kind == "refusal" and e.behavior.harmful],
        [e for e in answers if not e.behavior.harmful],
    )
    for name, side in (("harmful", found.harmful), ("harmless", found.harmless)):
        if not side:
            raise Failure(f"the training data has no answers to {name} requests")
    return found


def tokenise(
    chat: Chat, examples: Sequence[Example], blank: bool = False, limit: int = 512
) -> list[Text]:
    """The examples through the chat template; `blank` empties the user's turn.

    Replies are cut to `limit` tokens. An example whose prompt is longer is left out: the published
    code cuts it, and with its end the assistant's tag is lost.

    Raises:
        Failure: that leaves none.
    """
    texts = []
    for example in examples:
        messages = user("" if blank else example.behavior.request)
        (prompt,) = chat.encode([chat.render(messages)])
        if len(prompt) <= limit:
            texts.append(Text(prompt, chat.target_ids(messages, example.reply)[:limit]))
    if examples and not texts:
        raise Failure(f"no prompt of the training data has at most {limit} tokens")
    return texts


def collate(texts: Sequence[Text], side: Literal["left", "right"] = "right") -> Batch:
    """Texts -> one batch, padded on a side; positions are counted from the masks."""
    rows = [[*text.prompt, *text.reply] for text in texts]
    time = max(map(len, rows))
    starts = torch.tensor([time - len(row) if side == "left" else 0 for row in rows])[:, None]
    ends = starts + torch.tensor([len(row) for row in rows])[:, None]
    replies = starts + torch.tensor([len(text.prompt) for text in texts])[:, None]
    at = torch.arange(time).expand(len(rows), -1)
    real = (starts <= at) & (at < ends)
    ids = torch.zeros(len(rows), time, dtype=torch.long)
    ids[real] = torch.tensor([token for row in rows for token in row])
    return Batch(tuple(texts), ids, real, real & (at >= replies), at == replies - 1)


def draw_texts(texts: Sequence[Text], size: int, rng: torch.Generator) -> list[Text]:
    """`size` texts with replacement.

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


def fingerprint(examples: Sequence[Example]) -> str:
    """The hash of what the examples say, in their order."""
    return digest([[e.behavior.request, e.behavior.harmful, e.reply, e.kind] for e in examples])
