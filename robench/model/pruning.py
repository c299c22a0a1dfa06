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
from torch import Tensor

from robench.model.batching import side_by_side
from robench.model.candidates import Candidates, runs
from robench.model.hooks import target_roles
from robench.model.prefix import Layers, joined, picked
from robench.model.scoring import token_losses
from robench.model.shared_prefix import attend_to_prefix, new_keys_values
from robench.types import REPLY

SAMPLE = 16  # candidates of a row, from all places, that tell whether others can be spared
LEAD = 64  # candidates read to the end at a time, most promising first: others may be spared
WORTH = 0.5  # the share of them that would have been spared, from which pruning pays


def best(candidates: Candidates) -> Tensor:
    """The losses (n, w) of all candidates that may be a row's best, inf of the others.

    Rows in which little is spared have what is left scored to the end at once.
    """
    races = [RowPruner(candidates, row) for row in range(len(candidates.slots))]
    workers = candidates.model.workers
    left = torch.stack(side_by_side(RowPruner.run, races, workers))
    losses = torch.stack([race.losses for race in races])
    return torch.where(left, candidates.losses(left), losses)


@dataclass(frozen=True)
class Survivors:
    """Candidates of a row that are still in the race.

    place:  (b,) among the row's candidates
    first:  (b,) the target's first term of each, on the CPU
    floor:  where in the gap their own K/V begin
    layers: these K and V of each block, up to the target
    """

    place: Tensor
    first: Tensor
    floor: int
    layers: Layers

    def select(self, chosen: Tensor) -> Survivors:
        """Those that are `chosen` (b,)."""
        if chosen.all():
            return self
        where = chosen.nonzero().squeeze(1)
        return Survivors(
            self.place[where], self.first[where], self.floor, picked(self.layers, where)
        )


class RowPruner:
    """The candidates of one row; `losses` (w,) are of those that were read to the end."""

    def __init__(self, candidates: Candidates, row: int) -> None:
        self.candidates, self.row = candidates, row
        self.model = candidates.model
        self.target = candidates.slots[row].target
        self.after = candidates.slots[row].seams.after_ids
        self.time = candidates.ids.shape[2] + len(self.after)  # tokens from the gap to the target
        self.losses = torch.full(candidates.start.shape[1:], math.inf)

    def run(self) -> Tensor:
        """Which candidates (w,) were left out as pruning does not pay."""
        chunks, start = self.model.chunks, self.candidates.start[self.row]
        order = start.argsort(stable=True)
        drawn = torch.arange(len(order)) % max(1, len(order) // SAMPLE) == 0
        sample, others = order[drawn], order[~drawn]
        terms = self._through(sample)
        self.losses[sample] = terms.mean(1)
        left = torch.zeros_like(start, dtype=torch.bool)
        if self._worse(terms[:, 0]).float().mean() < WORTH:
            left[others] = True
            return left
        waiting: list[Survivors] = []
        for same in runs(start[others].tolist(), chunks.enough // self.time):
            waiting += self._open(self._begun(others[same]))
            held = sum(len(part.place) for part in waiting) * (self.time + len(self.target))
            if held > chunks.enough:  # also a bound on the K/V in memory
                self._finish(waiting)
                waiting = []
        self._finish(waiting)
        return left

    def _worse(self, first: Tensor) -> Tensor:
        """Which candidates cannot be the best, by their first terms (b,); one that is NaN may."""
        slack = 16 * torch.finfo(self.model.dtype).eps  # a shorter pass rounds differently
        return (first - slack) / len(self.target) > self.losses.min()

    def _open(self, parts: Sequence[Survivors]) -> list[Survivors]:
        """Those of the parts that may be the best."""
        chosen = [part.select(~self._worse(part.first)) for part in parts]
        return [part for part in chosen if len(part.place)]

    def _through(self, places: Tensor) -> Tensor:
        """The terms (b, target) of candidates, in order of where they change, all read at once."""
        floor = int(self.candidates.start[self.row, places[0]])
        tokens = self.time - floor + len(self.target) - 1

        def work(part: slice) -> Tensor:
            return self._terms(places[part], floor, self.target[:-1])[0].cpu()

        return torch.cat([terms for _, terms in self.model.chunks.map(work, len(places), tokens)])

    def _begun(self, places: Tensor) -> list[Survivors]:
        """Read candidates, in order of where they change, up to the target's first term."""
        floor = int(self.candidates.start[self.row, places[0]])
        work = partial(self._begin, places, floor)
        return [part for _, part in self.model.chunks.map(work, len(places), self.time - floor)]

    def _begin(self, places: Tensor, floor: int, part: slice) -> Survivors:
        """Read a part of some candidates, none of which changes in front of `floor`."""
        terms, cache = self._terms(places[part], floor, [])
        return Survivors(
            places[part], terms[:, 0].cpu(), floor, new_keys_values(cache, self.time - floor)
        )

    def _terms(self, places: Tensor, floor: int, read: list[int]) -> tuple[Tensor, Any]:
        """Terms (b, 1 + read) of the target whose tokens `read` are read behind candidates.

        And the cache of the pass. No candidate changes in front of `floor`.
        """
        every, before = self.candidates, self.time - floor
        gap = self.model.embed(every.ids[self.row, places, floor:])
        behind = self.model.embed(torch.tensor([*self.after, *read], dtype=torch.long))
        embeds = torch.cat([gap, behind.expand(len(places), -1, -1)], dim=1)
        prefix, time = every.prefix.without(every.read - floor), before + len(read)
        roles = target_roles(torch.tensor([before - 1]), torch.tensor([time]), time)
        with attend_to_prefix(
            self.model, prefix, [self.row] * len(places), time, keep=True
        ) as options:
            terms = self._read(embeds, roles, options, self.target[: 1 + len(read)])
        return terms, options["past_key_values"]

    def _finish(self, waiting: Sequence[Survivors]) -> None:
        """Read the target's other terms of those that still may be the best, by their first."""
        still = self._open(waiting)
        if not still:
            return
        place, first = (torch.cat([getattr(part, name) for part in still])
                        for name in ("place", "first"))  # fmt: skip
        rest = self.target[1:]
        if not rest:
            self.losses[place] = first
            return
        layers = joined([self._whole(part) for part in still], dim=0)
        for some in first.argsort().split(LEAD):
            alive = some[~self._worse(first[some])]
            work = partial(self._rest, layers, alive)
            parts = self.model.chunks.map(work, len(alive), self.time + len(rest))
            for part, terms in parts:
                total = first[alive[part]] + terms.cpu()
                self.losses[place[alive[part]]] = total / len(self.target)

    def _whole(self, part: Survivors) -> Layers:
        """K and V of the whole gap and what is behind it, the row's own tokens in front."""
        if not part.floor:
            return part.layers
        every = self.candidates
        begin, end = -every.read, part.floor - every.read or None

        def theirs(tensor: Tensor) -> Tensor:
            return tensor[self.row, :, begin:end].expand(len(part.place), -1, -1, -1)

        shared = [(theirs(k), theirs(v)) for k, v in every.prefix.layers]
        return joined([shared, part.layers], dim=2)

    def _rest(self, layers: Layers, chosen: Tensor, part: slice) -> Tensor:
        """The sum (b,) of the terms behind the first, of a part of those `chosen`."""
        b, read, behind = part.stop - part.start, self.target[:-1], picked(layers, chosen[part])
        embeds = self.model.embed(torch.tensor(read)).expand(b, -1, -1)
        prefix, owner = self.candidates.prefix.without(self.candidates.read), [self.row] * b
        with attend_to_prefix(self.model, prefix, owner, len(read), behind) as options:
            roles = torch.full((1, len(read)), REPLY)
            return self._read(embeds, roles, options, self.target[1:]).sum(1)

    def _read(
        self, embeds: Tensor, roles: Tensor, options: dict[str, Any], target: list[int]
    ) -> Tensor:
        """The losses (b, target) of `target`, which the last tokens predict."""
        output = self.model.run(
            embeds,
            roles.expand(len(embeds), -1),
            logits_to_keep=len(target),
            use_cache=True,
            **options,
        )
        labels = torch.tensor(target, device=embeds.device).expand(len(embeds), -1)
        return token_losses(output.logits.to(embeds.device), labels)
