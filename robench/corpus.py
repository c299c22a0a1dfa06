"""Examples -> padded token batches with the masks that defenses train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from robench.batching import pad_right
from robench.chat import Chat
from robench.types import Example, user


class Text(NamedTuple):
    """One tokenised example: `prompt` up to the end of the generation prompt, then `reply`."""

    prompt: list[int]
    reply: list[int]


@dataclass(frozen=True)
class Batch:
    """Right-padded ids (batch, time) with masks (batch, time) of the same shape.

    all_text:          every real token
    response:          the reply's tokens
    last_prompt_token: the one token before the reply
    """

    ids: Tensor
    all_text: Tensor
    response: Tensor
    last_prompt_token: Tensor


def tokenise(chat: Chat, examples: Sequence[Example], blank: bool = False) -> list[Text]:
    """The examples through the chat template; `blank` empties the user's turn."""
    texts = []
    for example in examples:
        messages = user("" if blank else example.behavior.request)
        (prompt,) = chat.encode([chat.render(messages)])
        texts.append(Text(prompt, chat.target_ids(messages, example.reply)))
    return texts


def collate(texts: Sequence[Text]) -> Batch:
    """Texts -> one batch."""
    ids, real = pad_right([[*text.prompt, *text.reply] for text in texts])
    lengths = torch.tensor([len(text.prompt) for text in texts])[:, None]
    time = torch.arange(ids.shape[1])
    return Batch(ids, real, real & (time >= lengths), time == lengths - 1)
