"""K/V of what rows begin with: computed once, read by many passes, never handed out to grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robench.model.batching import pad_right
from robench.model.reader import Reader
from robench.types import PAD, PROMPT

Layers = Sequence[tuple[Tensor, Tensor]]  # K and V of each block


@dataclass(frozen=True)
class Prefix:
    """K/V of the tokens in front, right-aligned.

    lengths: tokens of each of the n rows
    layers:  K and V of each block, each (n, heads, longest, d_head), on the device of the block;
             none where all are empty
    """

    lengths: tuple[int, ...]
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, model: Reader, ids: Sequence[list[int]]) -> Prefix:
        """Read the rows of ids, under the model's own edits."""
        lengths = tuple(map(len, ids))
        if not max(lengths):
            return cls(lengths, ())
        padded, real = pad_right([row or [0] for row in ids])
        layers = _read(model, padded, torch.where(real, PROMPT, PAD), {})
        # Right-aligned, so that distances between prefix and gap are true (sliding windows)
        longest = padded.shape[1]
        shift = torch.arange(longest) - (longest - torch.tensor(lengths)[:, None])
        index = shift.clamp(min=0)[:, None, :, None]

        def align(tensor: Tensor) -> Tensor:
            return tensor.gather(2, index.to(tensor.device).expand_as(tensor))

        return cls(lengths, tuple((align(k), align(v)) for k, v in layers))

    def extended(self, model: Reader, ids: Tensor) -> Prefix:
        """With further prompt tokens ids (n, k) behind each row."""
        n, k = ids.shape
        if not k:
            return self
        options = self.options(range(n), k, model.device)
        layers = _read(model, ids, torch.full((n, k), PROMPT), options)
        return Prefix(tuple(length + k for length in self.lengths), layers)

    def without(self, last: int) -> Prefix:
        """Without the `last` tokens of each row, which all have as many."""
        if not last:
            return self
        lengths = tuple(length - last for length in self.lengths)
        if not max(lengths):
            return Prefix(lengths, ())
        return Prefix(lengths, tuple((k[:, :, :-last], v[:, :, :-last]) for k, v in self.layers))

    def select(self, indices: Sequence[int]) -> Prefix:
        where = torch.tensor(list(indices), dtype=torch.long)
        return Prefix(tuple(self.lengths[i] for i in indices), tuple(picked(self.layers, where)))

    def options(
        self, owner: Sequence[int], time: int, device: torch.device, behind: Layers = ()
    ) -> dict[str, Any]:
        """What a pass of `time` tokens for the rows `owner` (b,) needs to follow its prefix.

        Rows of one owner look at its K/V; those of several get copies.

        Args:
            behind: K and V of each block, (b, heads, m, d_head) each, of what every row has read
                since; none where that is nothing.
        """
        lengths = torch.tensor([self.lengths[i] for i in owner])
        since = tokens(behind)
        positions = lengths[:, None] + since + torch.arange(time)
        options: dict[str, Any] = {"position_ids": positions.to(device)}
        longest = int(lengths.max())
        if not longest:
            return {**options, "past_key_values": cache_of(behind)} if behind else options
        single = len(set(owner)) == 1
        where = torch.tensor([*owner][:1] if single else [*owner])

        def theirs(tensor: Tensor) -> Tensor:
            mine = tensor[:, :, tensor.shape[2] - longest :][where.to(tensor.device)]
            return mine.expand(len(owner), -1, -1, -1)

        layers: Layers = [(theirs(k), theirs(v)) for k, v in self.layers]
        if behind:
            layers = joined([layers, behind], dim=2)
        options["past_key_values"] = cache_of(layers)
        if bool((lengths < longest).any()):
            columns = torch.arange(longest + since + time)
            options["attention_mask"] = (columns >= longest - lengths[:, None]).long().to(device)
        return options


def tokens(layers: Layers) -> int:
    """How many tokens K and V are of."""
    return layers[0][0].shape[2] if layers else 0


def picked(layers: Layers, rows: Tensor) -> Layers:
    """K and V of each block, of some rows; their numbers go to each device once."""
    where = {device: rows.to(device) for device in {keys.device for keys, _ in layers}}
    return [(k[where[k.device]], v[where[v.device]]) for k, v in layers]


def joined(parts: Sequence[Layers], dim: int) -> Layers:
    """K and V of each block, of all parts along `dim`: 0 their rows, 2 their tokens."""
    if len(parts) == 1:
        return parts[0]
    return [
        (torch.cat([k for k, _ in block], dim), torch.cat([v for _, v in block], dim))
        for block in zip(*parts, strict=True)
    ]


def cache_of(layers: Layers) -> Any:
    """A cache that holds K and V (batch, heads, time, d_head) of each block, or nothing yet.

    Whole rows in every block, sliding windows too: what they do not see is masked.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache()
    for keys, values in layers:
        layer = DynamicLayer()
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values  # an update would copy them
        cache.layers.append(layer)
    return cache


def _read(
    model: Reader, ids: Tensor, roles: Tensor, options: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """K and V of each block after a pass over ids (n, time), those it followed included."""
    options = {"past_key_values": cache_of(()), **options}
    with torch.no_grad():
        model.run(model.embed(ids), roles, use_cache=True, logits_to_keep=1, **options)
    return tuple((layer.keys, layer.values) for layer in options["past_key_values"].layers)
