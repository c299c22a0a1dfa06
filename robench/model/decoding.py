"""Decoding: replies token by token, their K/V written in place, rows that have ended dropped.

Rows that have ended are carried along until enough of them are together: dropping them copies the
K/V of the others.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from robench.errors import Failure
from robench.model.hooks import prompt_roles
from robench.types import REPLY

# What is entered around the passes of some rows of the batch, with roles (rows, time) to begin with
Acting = Callable[[Sequence[int], Tensor], AbstractContextManager[Any]]

ROOM = 16  # tokens by which the memory of K/V grows
LOOK = {"cpu": 1}  # tokens between two looks at who has ended; elsewhere 8: a look waits
DROP = 1 / 8  # the share of ended rows at which they are dropped


def decode(
    network: Any,
    embeds: Tensor,
    mask: Tensor,
    most: int,
    ends: Sequence[int],
    acting: Acting,
    noise: Tensor | None = None,
    temperature: float = 1.0,
) -> list[list[int]]:
    """The tokens of each row's reply, its end token included; greedy without noise.

    Args:
        network: the transformers causal language model.
        embeds: (rows, time, d) left-padded prompts.
        mask: (rows, time) True at their tokens.
        most: tokens of a reply, at least 1.
        ends: tokens that end a reply.
        acting: entered around the passes, anew when rows were dropped.
        noise: (rows, most) uniform in [0, 1): replies are drawn, see `draw`.
        temperature: of drawn replies.

    Raises:
        Failure: the scores of a token are NaN or infinite; that is no reply.
    """
    device, (rows, time) = embeds.device, mask.shape
    look = LOOK.get(device.type, 8)
    stops = torch.tensor(ends, device=device)
    cache = _cache(network.config, time + most)
    seen = torch.cat([mask.long(), mask.new_ones(rows, most, dtype=torch.long)], dim=1)
    position = (seen.cumsum(1) - 1).clamp(min=0)
    said = torch.empty(rows, most, dtype=torch.long, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    broken = torch.zeros((), dtype=torch.bool, device=device)
    noise = None if noise is None else noise.to(device)
    live, roles = list(range(rows)), prompt_roles(mask)
    inputs, begin, step = {"inputs_embeds": embeds}, 0, 0
    replies: dict[int, list[int]] = {}
    while True:
        with acting(live, roles):
            while step < most:
                output = network(
                    **inputs,
                    attention_mask=seen[:, : time + step],
                    position_ids=position[:, begin : time + step],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                scores = output.logits[:, -1].to(device)
                highest, tokens = scores.max(1)
                highest = highest.float() / temperature  # NaN where any score is
                broken |= (~highest.isfinite() & ~ended).any()
                if noise is not None:
                    tokens = sample_tokens(scores, noise[:, step], temperature)
                said[:, step] = tokens
                ended |= (tokens[:, None] == stops).any(1)
                inputs, begin, step = {"input_ids": tokens[:, None]}, time + step, step + 1
                if step % look == 0 and int(ended.sum()) >= DROP * len(live):
                    break
        if broken:
            raise Failure("the model's scores of the next token are NaN or infinite")
        replies |= zip(live, said[:, :step].tolist(), strict=True)
        stay = [] if step == most else (~ended).nonzero().flatten().tolist()
        if not stay:
            return [_cut(replies[row], ends) for row in range(rows)]
        live, roles = [live[i] for i in stay], torch.full((len(stay), 1), REPLY)
        kept = torch.tensor(stay)
        cache.batch_select_indices(kept)
        kept = kept.to(device)
        seen, position, said, ended = seen[kept], position[kept], said[kept], ended[kept]
        noise = None if noise is None else noise[kept]
        inputs = {"input_ids": inputs["input_ids"][kept]}


def sample_tokens(scores: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Tokens (rows,) drawn from the model by inverse transform sampling.

    With F the cumulative distribution of softmax(scores / temperature) over the vocabulary and u
    uniform in [0, 1), the first token whose F exceeds u has exactly the model's probability. One
    number per token of the reply, drawn beforehand, is all the randomness there is: rows do not
    share a stream as they do in `torch.multinomial`.

    Args:
        scores: (rows, vocab) logits.
        noise: (rows,) each row's u.
        temperature: which divides the logits.
    """
    total = (scores.float() / temperature).softmax(-1).cumsum(-1)
    at = noise[:, None].to(total) * total[:, -1:]
    chosen = torch.searchsorted(total, at, right=True)
    return chosen[:, 0].clamp(max=scores.shape[1] - 1)  # beyond where scores are NaN


def _cut(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """A row's tokens without those behind its end."""
    end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[: end + 1]


class _InPlace(DynamicLayer):  # type: ignore[misc]
    """A block's K/V with room for tokens to come: transformers' layer copies it all per token."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self.memory = key_states, value_states
            return key_states, value_states
        begin, end = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if self.memory[0].shape[2] < end:
            self.memory = _with_room(self.keys, end), _with_room(self.values, end)
        for memory, states in zip(self.memory, (key_states, value_states), strict=True):
            memory[:, :, begin:end] = states
        self.keys, self.values = (memory[:, :, :end] for memory in self.memory)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.memory = self.keys, self.values  # frees the old before the next block is copied


def _with_room(states: Tensor, end: int) -> Tensor:
    rows, heads, time, width = states.shape
    memory = states.new_empty(rows, heads, end + ROOM, width)
    memory[:, :, :time] = states
    return memory


def _cache(config: Any, longest: int) -> DynamicCache:
    """transformers' cache of keys and values, written in place where it keeps all tokens.

    A window as long as the `longest` row is none.
    """
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        kind = type(layer)  # what derives from these two holds more than K/V
        whole = kind is DynamicSlidingWindowLayer and layer.sliding_window >= longest
        if kind is DynamicLayer or whole:
            cache.layers[i] = _InPlace()
    return cache
