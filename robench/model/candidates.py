"""Candidates for the gaps of some rows, read together by the position of their first change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from robench.model.prefix import Prefix
from robench.model.reader import Reader
from robench.model.scoring import Slot, gap_losses, longest
from robench.model.threads import map_in_threads


@dataclass(frozen=True)
class Candidates:
    """Candidates of n gaps.

    ids:        (n, w, k)
    start:      (n, w) the first position at which a candidate differs from the gap in `prefix`
    prefix:     of each row, including the beginning of its current gap
    gap_tokens: how many tokens of the gap are in the prefix
    """

    model: Reader
    slots: Sequence[Slot]
    ids: Tensor
    start: Tensor
    prefix: Prefix
    gap_tokens: int

    def losses(self, wanted: Tensor) -> Tensor:
        """The losses (n, w) of candidates where `wanted` (n, w) is True, inf of the others."""
        model, k = self.model, self.ids.shape[2]
        owner, index = wanted.nonzero(as_tuple=True)
        enough = model.chunks.enough // longest(self.slots, k)
        passes: list[tuple[Tensor, int]] = []  # the candidates of a pass, where it begins
        for rows in split_sorted(owner.tolist(), enough):  # one owner's share keys and values
            order = self.start[owner[rows], index[rows]].argsort(stable=True) + rows.start
            starts = self.start[owner[order], index[order]].tolist()
            passes += [(order[p], starts[p.start]) for p in split_sorted(starts, enough)]

        def read(candidates: tuple[Tensor, int]) -> list[Tensor]:
            which, begin = candidates
            losses = partial(self._losses_of_part, owner[which], index[which], begin)
            parts = model.chunks.map(losses, len(which), longest(self.slots, k - begin))
            return [part_losses for _, part_losses in parts]

        results = [part for parts in map_in_threads(read, passes, model.workers) for part in parts]
        losses = torch.full(wanted.shape, math.inf)
        if results:  # copied to the CPU at the end, so that no pass waits for the one before
            done = torch.cat([which for which, _ in passes])
            losses[owner[done], index[done]] = torch.cat(results).cpu()
        return losses

    def _losses_of_part(self, owner: Tensor, index: Tensor, begin: int, part: slice) -> Tensor:
        """The losses of a part of some candidates, none of which changes before `begin`."""
        owner, index = owner[part], index[part]
        gap = self.model.embed(self.ids[owner, index, begin:])
        prefix = self.prefix.without_last(self.gap_tokens - begin)
        return gap_losses(self.model, self.slots, prefix, owner.tolist(), gap)


def split_sorted(keys: Sequence[int], least: int) -> list[slice]:
    """Split sorted keys where they change, into slices of at least `least` entries."""
    cuts = [0] if keys else []
    for i in range(1, len(keys)):
        if keys[i] != keys[i - 1] and i - cuts[-1] >= least:
            cuts.append(i)
    if len(cuts) > 1 and len(keys) - cuts[-1] < least:
        cuts.pop()
    return [slice(a, b) for a, b in pairwise([*cuts, len(keys)])]
