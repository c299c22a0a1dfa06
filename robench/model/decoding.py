"""Decoding: replies token by token, keys and values written in place, rows that have ended dropped.

Rows that have ended stay in the batch until there are enough of them: dropping rows copies the keys
and values of the others.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from robench.errors import Failure
from robench.model.batching import last_positions
from robench.model.hooks import prompt_roles
from robench.types import REPLY

# A context for the passes of some rows of the batch, whose first pass has roles (rows, time)
RowContext = Callable[[Sequence[int], Tensor], AbstractContextManager[Any]]
# The most tokens that a row's reply may have, by the row and its tokens so far
Limit = Callable[[int, Sequence[int]], int]

GROWTH = 16  # tokens by which the memory of keys and values grows
CHECK_EVERY = {"cpu": 1}  # tokens between checks for ended rows; other devices 8: a check waits
LIMIT_EVERY = 32  # tokens between questions for limits, which decode them to text
DROP_SHARE = 1 / 8  # the share of ended rows at which they are dropped


def decode(
    network: Any,
    embeds: Tensor,
    mask: Tensor,
    max_new_tokens: int,
    end_tokens: Sequence[int],
    context: RowContext,
    noise: Tensor | None = None,
    temperature: float = 1.0,
    limit: Limit | None = None,
) -> list[list[int]]:
    """The tokens of each row's reply, its end token included; greedy without noise.

    Args:
        network: the transformers causal language model.
        embeds: (rows, time, d) left-padded prompts.
        mask: (rows, time) True at their tokens.
        max_new_tokens: of a reply, at least 1.
        end_tokens: tokens that end a reply.
        context: entered around the passes, again after rows were dropped.
        noise: (rows, max_new_tokens) uniform in [0, 1): replies are sampled, see `sample_tokens`.
        temperature: of sampled replies.
        limit: of a row that may be shorter than `max_new_tokens` by what it says.

    Raises:
        Failure: the logits of a token are NaN or infinite; that is not a reply.
    """
    batch = _Batch(network, embeds, mask, max_new_tokens, end_tokens, limit)
    if noise is not None:
        batch.sample_with(noise.to(embeds.device), temperature)
    replies: dict[int, list[int]] = {}
    while batch.rows:
        with context(batch.rows, batch.roles):
            batch.decode_tokens()
        batch.check_logits()
        replies |= batch.replies()
        batch.drop_ended()
    rows = [_up_to_end(replies[row], end_tokens) for row in range(len(embeds))]
    if limit is None:
        return rows
    return [tokens[: limit(row, tokens)] for row, tokens in enumerate(rows)]


class _Batch:
    """The rows that are decoded together, while they have not ended.

    rows:  their numbers in the original batch
    roles: (rows, time) of the next pass
    """

    def __init__(
        self,
        network: Any,
        embeds: Tensor,
        mask: Tensor,
        max_new_tokens: int,
        end_tokens: Sequence[int],
        limit: Limit | None,
    ) -> None:
        device, (rows, self.prompt_time) = embeds.device, mask.shape
        self.network, self.max_new_tokens, self.limit = network, max_new_tokens, limit
        self.end_tokens = torch.tensor(end_tokens, device=device)
        self.check_every = CHECK_EVERY.get(device.type, 8)
        self.cache = _cache(network.config, self.prompt_time + max_new_tokens)
        new = mask.new_ones(rows, max_new_tokens, dtype=torch.long)
        self.attention_mask = torch.cat([mask.long(), new], dim=1)
        self.positions = (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        self.tokens = torch.empty(rows, max_new_tokens, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.invalid = torch.zeros((), dtype=torch.bool, device=device)
        self.noise: Tensor | None = None
        self.temperature = 1.0
        self.rows, self.roles = list(range(rows)), prompt_roles(mask)
        self.inputs, self.cached, self.step = {"inputs_embeds": embeds}, 0, 0

    def sample_with(self, noise: Tensor, temperature: float) -> None:
        """Sample the tokens instead of taking the most likely ones."""
        self.noise, self.temperature = noise, temperature

    def decode_tokens(self) -> None:
        """Decode a token of all rows, and another, until enough rows have ended or all tokens."""
        while self.step < self.max_new_tokens:
            self._decode_token()
            if self.limit is not None and self.step % LIMIT_EVERY == 0:
                self._end_at(self.limit)
            check = self.step % self.check_every == 0
            if check and int(self.ended.sum()) >= DROP_SHARE * len(self.rows):
                return

    def _decode_token(self) -> None:
        time = self.prompt_time + self.step
        output = self.network(
            **self.inputs,
            attention_mask=self.attention_mask[:, :time],
            position_ids=self.positions[:, self.cached : time],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1 if self.cached else last_positions(1),
        )
        logits = output.logits[:, -1].to(self.ended.device)
        highest, tokens = logits.max(1)
        highest = highest.float() / self.temperature  # NaN if any logit is
        self.invalid |= (~highest.isfinite() & ~self.ended).any()
        if self.noise is not None:
            tokens = sample_tokens(logits, self.noise[:, self.step], self.temperature)
        self.tokens[:, self.step] = tokens
        self.ended |= (tokens[:, None] == self.end_tokens).any(1)
        self.inputs, self.cached, self.step = {"input_ids": tokens[:, None]}, time, self.step + 1

    def _end_at(self, limit: Limit) -> None:
        """End the rows that have reached their limits."""
        ends = [self.step >= limit(row, tokens) for row, tokens in self.replies().items()]
        self.ended |= torch.tensor(ends, device=self.ended.device)

    def check_logits(self) -> None:
        if self.invalid:
            raise Failure("the model's logits of the next token are NaN or infinite")

    def replies(self) -> dict[int, list[int]]:
        """The tokens so far of each row, by its number in the original batch."""
        return dict(zip(self.rows, self.tokens[:, : self.step].tolist(), strict=True))

    def drop_ended(self) -> None:
        """Keep the rows that have not ended; none when all tokens are decoded."""
        is_last = self.step == self.max_new_tokens
        rows = [] if is_last else (~self.ended).nonzero().flatten().tolist()
        self.rows = [self.rows[i] for i in rows]
        if not rows:
            return
        self.roles = torch.full((len(rows), 1), REPLY)
        index = torch.tensor(rows)
        self.cache.batch_select_indices(index)
        index = index.to(self.ended.device)
        self.attention_mask, self.positions = self.attention_mask[index], self.positions[index]
        self.tokens, self.ended = self.tokens[index], self.ended[index]
        self.noise = None if self.noise is None else self.noise[index]
        self.inputs = {"input_ids": self.inputs["input_ids"][index]}


def sample_tokens(logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Tokens (rows,) sampled from the model's distribution by inverse transform sampling.

    With F the cumulative distribution of softmax(logits / temperature) over the vocabulary and u
    uniform in [0, 1), the first token whose F exceeds u has exactly the model's probability. One
    number per token of the reply, drawn beforehand, is all the randomness: rows do not share a
    stream as they do in `torch.multinomial`.

    Args:
        logits: (rows, vocab).
        noise: (rows,) each row's u.
        temperature: the logits are divided by it.
    """
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)
    u = noise[:, None].to(cumulative) * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, u, right=True)
    return tokens[:, 0].clamp(max=logits.shape[1] - 1)  # out of range if logits are NaN


def _up_to_end(tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    """A row's tokens up to its end token."""
    end = next((i for i, token in enumerate(tokens) if token in end_tokens), len(tokens))
    return tokens[: end + 1]


class _InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a block in memory with spare room: transformers' layer copies all of them
    for every token."""

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
    memory = states.new_empty(rows, heads, end + GROWTH, width)
    memory[:, :, :time] = states
    return memory


def _cache(config: Any, longest: int) -> DynamicCache:
    """transformers' cache of keys and values, written in place in blocks that keep all tokens.

    A sliding window at least as long as the `longest` row keeps all of them.
    """
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        kind = type(layer)  # subclasses of these two hold more than keys and values
        wide = kind is DynamicSlidingWindowLayer and layer.sliding_window >= longest
        if kind is DynamicLayer or wide:
            cache.layers[i] = _InPlaceLayer()
    return cache
