"""Lossless pruning: candidates are dropped once they cannot be their row's best any more.

A target's loss is a mean of terms that are not negative, so a part of the terms is a lower bound.
All candidates are read up to the target's first term; those whose bound is above the least loss so
far are dropped, the others go on from their K/V.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from robench.batching import side_by_side
from robench.candidates import Candidates, runs
from robench.hooks import target_roles
from robench.prefix import cache_of
from robench.types import REPLY

EARLY = 16  # candidates of the first pass that go on, to have a loss that others are held against
WORTH = 0.25  # the share of its candidates that a row must be spared for pruning to go on


def best(candidates: Candidates) -> Tensor:
    """The losses (n, w) of all candidates that may be a row's best, inf of the others.

    Rows in which little is spared have what is left scored to the end at once.
    """
    races = [Race(candidates, row) for row in range(len(candidates.slots))]
    workers = candidates.slots.model.workers
    left = torch.stack(side_by_side(Race.run, races, workers))
    losses = torch.stack([race.losses for race in races])
    return torch.where(left, candidates.losses(left), losses)


@dataclass(frozen=True)
class Alive:
    """Candidates of a row that are still in the race.

    place:  (b,) among the row's candidates
    first:  (b,) the target's first term of each, on the CPU
    layers: K and V of each block, of all that stands in front of the target
    """

    place: Tensor
    first: Tensor
    layers: Sequence[tuple[Tensor, Tensor]]

    def select(self, chosen: Tensor) -> Alive:
        """Those that are `chosen` (b,)."""
        if chosen.all():
            return self
        where = chosen.nonzero().squeeze(1)
        layers = [(k[where.to(k.device)], v[where.to(v.device)]) for k, v in self.layers]
        return Alive(self.place[where], self.first[where], layers)


def together(parts: Sequence[Alive]) -> Alive:
    """All of them; what stands in front of the target is as long in each."""
    if len(parts) == 1:
        return parts[0]
    blocks = zip(*(part.layers for part in parts), strict=True)
    return Alive(
        torch.cat([part.place for part in parts]),
        torch.cat([part.first for part in parts]),
        [(torch.cat([k for k, _ in block]), torch.cat([v for _, v in block])) for block in blocks],
    )


def count(parts: Sequence[Alive]) -> int:
    return sum(len(part.place) for part in parts)


def promising(parts: Sequence[Alive]) -> list[Alive]:
    """Those of the least first terms."""
    first = torch.cat([part.first for part in parts])
    limit = first.nan_to_num(nan=-math.inf).sort().values[:EARLY][-1]
    return [part.select(~(part.first > limit)) for part in parts]


class Race:
    """The candidates of one row; `losses` (w,) are of those that were read to the end."""

    def __init__(self, candidates: Candidates, row: int) -> None:
        self.candidates, self.row = candidates, row
        self.model = candidates.slots.model
        self.target = candidates.slots.rows[row].target
        self.after = candidates.slots.rows[row].seams.after_ids
        self.time = candidates.ids.shape[2] + len(self.after)  # tokens from the gap to the target
        self.losses = torch.full(candidates.start.shape[1:], math.inf)

    def run(self) -> Tensor:
        """Which candidates (w,) were left out as pruning does not pay."""
        chunks, start = self.model.chunks, self.candidates.start[self.row]
        left = torch.zeros_like(start, dtype=torch.bool)
        order = start.argsort(stable=True, descending=True)  # the cheapest set the first bound
        starts = start[order].tolist()
        waiting: list[Alive] = []
        spared = [1.0]
        for same in runs(starts, chunks.enough // self.time):
            if sum(spared[-2:]) < 2 * WORTH:
                left[order[same.start :]] = True
                break
            places, floor = order[same], starts[same.stop - 1]
            work = partial(self._begin, places, floor)
            begun = [part for _, part in chunks.map(work, len(places), self.time - floor)]
            if self.losses.isinf().all():
                self._finish(promising(begun))
            begun = self._open(begun)
            waiting += begun
            spared.append(1 - count(begun) / len(places))
            if count(waiting) * len(self.target) > chunks.enough:
                self._finish(waiting)
                waiting = []
        self._finish(waiting)
        return left

    def _open(self, parts: Sequence[Alive]) -> list[Alive]:
        """Those that may be the best, by their first terms, and are not read to the end.

        One whose term is NaN may.
        """
        least = self.losses.min()
        slack = 16 * torch.finfo(self.model.dtype).eps  # a shorter pass rounds differently
        worse = [(part.first - slack) / len(self.target) > least for part in parts]
        done = [self.losses[part.place].isfinite() for part in parts]
        chosen = [part.select(~(a | b)) for part, a, b in zip(parts, worse, done, strict=True)]
        return [part for part in chosen if len(part.place)]

    def _begin(self, places: Tensor, floor: int, part: slice) -> Alive:
        """Read a part of some candidates, none of which changes in front of `floor`."""
        places, every = places[part], self.candidates
        gap = self.model.embed(every.ids[self.row, places, floor:])
        after = self.model.embed(torch.tensor(self.after, dtype=torch.long))
        embeds = torch.cat([gap, after.expand(len(places), -1, -1)], dim=1)
        prefix, time = every.prefix.without(every.read - floor), self.time - floor
        options = prefix.options([self.row] * len(places), time, gap.device)
        last = target_roles(torch.tensor([time - 1]), torch.tensor([time]), time)
        logits, cache = self._read(embeds, last, logits_to_keep=1, **options)
        first = _terms(logits, self.target[:1])[:, 0].cpu()
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return Alive(places, first, layers)

    def _finish(self, waiting: Sequence[Alive]) -> None:
        """Read the target's other terms of those that still may be the best."""
        still = self._open(waiting)
        if not still:
            return
        alive, rest = together(still), self.target[1:]
        total = alive.first
        if rest:
            work = partial(self._rest, alive)
            parts = self.model.chunks.map(work, len(total), self.time + len(rest))
            total = total + torch.cat([terms for _, terms in parts]).cpu()
        self.losses[alive.place] = total / len(self.target)

    def _rest(self, alive: Alive, part: slice) -> Tensor:
        """The sum (b,) of a part's terms behind the first."""
        b, read = len(alive.place[part]), self.target[:-1]
        embeds = self.model.embed(torch.tensor(read)).expand(b, -1, -1)
        every = self.candidates
        begin = every.prefix.lengths[self.row] - every.read + self.time
        cache = cache_of((k[part], v[part]) for k, v in alive.layers)
        positions = (begin + torch.arange(len(read))).expand(b, -1).to(embeds.device)
        roles = torch.full((b, len(read)), REPLY)
        logits, _ = self._read(embeds, roles, position_ids=positions, past_key_values=cache)
        return _terms(logits, self.target[1:]).sum(1)

    def _read(self, embeds: Tensor, roles: Tensor, **options: Any) -> tuple[Tensor, Any]:
        options = {"past_key_values": cache_of([]), **options}
        output = self.model.run(embeds, roles.expand(len(embeds), -1), use_cache=True, **options)
        return output.logits.to(embeds.device), options["past_key_values"]


def _terms(logits: Tensor, target: Sequence[int]) -> Tensor:
    """Cross-entropy (b, time) of the target's tokens, in fp32."""
    labels = torch.tensor(target, device=logits.device).expand(len(logits), -1)
    return nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    ).view(labels.shape)
