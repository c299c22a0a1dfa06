"""Keys and values of what rows begin with: computed once, read by many passes, never modified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.model.batching import last_positions, pad_right
from robench.model.reader import Reader
from robench.types import PAD, PROMPT

KeysValues = Sequence[tuple[Tensor, Tensor]]  # of each block, (rows, heads, time, d_head) each


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens that n rows begin with, aligned on the right.

    lengths:     tokens of each row
    keys_values: of each block, each (n, heads, longest, d_head), on the device of the block; empty
                 if all rows are
    """

    lengths: tuple[int, ...]
    keys_values: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: Reader, ids: Sequence[list[int]]) -> Prefix:
        """Read rows of ids, under the model's own edits."""
        lengths = tuple(map(len, ids))
        if not max(lengths):
            return cls(lengths, ())
        padded, real = pad_right([row or [0] for row in ids])
        keys_values = _read(model, padded, torch.where(real, PROMPT, PAD), {})
        # Aligned on the right, so that distances between prefix and gap are true (sliding windows)
        longest = padded.shape[1]
        shift = torch.arange(longest) - (longest - torch.tensor(lengths)[:, None])
        index = shift.clamp(min=0)[:, None, :, None]

        def align(tensor: Tensor) -> Tensor:
            return tensor.gather(2, index.to(tensor.device).expand_as(tensor))

        return cls(lengths, tuple((align(k), align(v)) for k, v in keys_values))

    def extended(self, model: Reader, ids: Tensor) -> Prefix:
        """With further prompt tokens ids (n, k) after each row."""
        n, k = ids.shape
        if not k:
            return self
        options = self.pass_options(range(n), k, model.device)
        keys_values = _read(model, ids, torch.full((n, k), PROMPT), options)
        return Prefix(tuple(length + k for length in self.lengths), keys_values)

    def without_last(self, count: int) -> Prefix:
        """Without the last `count` tokens of each row; every row has as many."""
        if not count:
            return self
        lengths = tuple(length - count for length in self.lengths)
        if not max(lengths):
            return Prefix(lengths, ())
        cut = tuple((k[:, :, :-count], v[:, :, :-count]) for k, v in self.keys_values)
        return Prefix(lengths, cut)

    def select(self, indices: Sequence[int]) -> Prefix:
        """The prefixes of some rows."""
        rows = torch.tensor(list(indices), dtype=torch.long)
        lengths = tuple(self.lengths[i] for i in indices)
        return Prefix(lengths, tuple(select_rows(self.keys_values, rows)))

    def pass_options(
        self, owner: Sequence[int], time: int, device: torch.device, since: KeysValues = ()
    ) -> dict[str, Any]:
        """Options of a forward pass of `time` tokens after the prefixes of the rows `owner` (b,).

        If all have the same owner, they share views of its keys and values; else they get copies.

        Args:
            since: keys and values of m tokens that each of the b rows has read after its prefix.
        """
        lengths = torch.tensor([self.lengths[i] for i in owner])
        m = cached_tokens(since)
        positions = lengths[:, None] + m + torch.arange(time)
        options: dict[str, Any] = {"position_ids": positions.to(device)}
        longest = int(lengths.max())
        if not longest:
            return {**options, "past_key_values": to_cache(since)} if since else options
        single = len(set(owner)) == 1
        rows = torch.tensor([*owner][:1] if single else [*owner])

        def of_owners(tensor: Tensor) -> Tensor:
            selected = tensor[:, :, tensor.shape[2] - longest :][rows.to(tensor.device)]
            return selected.expand(len(owner), -1, -1, -1)

        keys_values: KeysValues = [(of_owners(k), of_owners(v)) for k, v in self.keys_values]
        if since:
            keys_values = concatenate([keys_values, since], dim=2)
        options["past_key_values"] = to_cache(keys_values)
        if bool((lengths < longest).any()):
            columns = torch.arange(longest + m + time)
            options["attention_mask"] = (columns >= longest - lengths[:, None]).long().to(device)
        return options


def cached_tokens(keys_values: KeysValues) -> int:
    """How many tokens the keys and values are of."""
    return keys_values[0][0].shape[2] if keys_values else 0


def select_rows(keys_values: KeysValues, rows: Tensor) -> KeysValues:
    """Keys and values of some rows; the index is copied to each device once."""
    index = {device: rows.to(device) for device in {keys.device for keys, _ in keys_values}}
    return [(k[index[k.device]], v[index[v.device]]) for k, v in keys_values]


def concatenate(parts: Sequence[KeysValues], dim: int) -> KeysValues:
    """Keys and values of all parts, joined along rows (dim 0) or tokens (dim 2)."""
    if len(parts) == 1:
        return parts[0]
    return [
        (torch.cat([k for k, _ in block], dim), torch.cat([v for _, v in block], dim))
        for block in zip(*parts, strict=True)
    ]


def to_cache(keys_values: KeysValues) -> Any:
    """A cache of transformers that holds keys and values, or is empty.

    It keeps all tokens in every block, also in those with a sliding window, which are masked.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in keys_values:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # an update would copy them
        cache.layers.append(layer)
    return cache


def _read(
    model: Reader, ids: Tensor, roles: Tensor, options: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """Keys and values after a pass over ids (n, time), including those in the pass's cache."""
    options = {"past_key_values": to_cache(()), **options}
    with torch.no_grad():
        keep = last_positions(1)
        model.run(model.embed(ids), roles, use_cache=True, logits_to_keep=keep, **options)
    return tuple((layer.keys, layer.values) for layer in options["past_key_values"].layers)
