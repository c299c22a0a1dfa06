"""Candidates for the gaps of some rows: taken together by where they change what stands there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from robench.model.batching import side_by_side
from robench.model.prefix import Prefix
from robench.model.reader import Reader
from robench.model.scoring import Slot, gap_losses, longest


@dataclass(frozen=True)
class Candidates:
    """Candidates ids (n, w, k) of n gaps; in front of start (n, w) they are what `prefix` has read.

    read: how many tokens of each gap the prefix has
    """

    model: Reader
    slots: Sequence[Slot]
    ids: Tensor
    start: Tensor
    prefix: Prefix
    read: int

    def losses(self, wanted: Tensor) -> Tensor:
        """The losses (n, w) of the candidates that are `wanted` (n, w), inf of the others."""
        model, k = self.model, self.ids.shape[2]
        owner, place = wanted.nonzero(as_tuple=True)
        enough = model.chunks.enough // longest(self.slots, k)
        groups = []
        for some in runs(owner.tolist(), enough):  # a pass of one owner copies no K/V
            order = self.start[owner[some], place[some]].argsort(stable=True) + some.start
            starts = self.start[owner[order], place[order]].tolist()
            groups += [(order[same], starts[same.start]) for same in runs(starts, enough)]

        def work(group: tuple[Tensor, int]) -> list[Tensor]:
            rows, floor = group
            passes = partial(self._pass, owner[rows], place[rows], floor)
            parts = model.chunks.map(passes, len(rows), longest(self.slots, k - floor))
            return [result for _, result in parts]

        results = [part for parts in side_by_side(work, groups, model.workers) for part in parts]
        losses = torch.full(wanted.shape, math.inf)
        if results:  # brought to the CPU at the end: a pass does not wait for the one before
            done = torch.cat([rows for rows, _ in groups])
            losses[owner[done], place[done]] = torch.cat(results).cpu()
        return losses

    def _pass(self, owner: Tensor, place: Tensor, floor: int, part: slice) -> Tensor:
        """The losses of a part of some candidates, none of which changes in front of `floor`."""
        owner, place = owner[part], place[part]
        gap = self.model.embed(self.ids[owner, place, floor:])
        prefix = self.prefix.without(self.read - floor)
        return gap_losses(self.model, self.slots, prefix, owner.tolist(), gap)


def runs(keys: Sequence[int], least: int) -> list[slice]:
    """Cut sorted keys where they change, into pieces of at least `least` places."""
    cuts = [0] if keys else []
    for i in range(1, len(keys)):
        if keys[i] != keys[i - 1] and i - cuts[-1] >= least:
            cuts.append(i)
    if len(cuts) > 1 and len(keys) - cuts[-1] < least:
        cuts.pop()
    return [slice(a, b) for a, b in pairwise([*cuts, len(keys)])]
