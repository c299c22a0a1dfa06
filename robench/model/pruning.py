"""Lossless pruning: candidates are dropped once they cannot be the best of their row.

A target's loss is the mean of its tokens' losses, none of which is negative, so some of them give a
lower bound. All candidates are read up to the loss of the target's first token; those whose bound
is above the lowest loss so far are dropped, the others are continued from their keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robench.model.batching import last_positions
from robench.model.candidates import Candidates, split_sorted
from robench.model.hooks import target_roles
from robench.model.prefix import KeysValues, concatenate, select_rows
from robench.model.scoring import token_losses
from robench.model.threads import map_in_threads
from robench.types import REPLY

SAMPLE = 16  # candidates of a row, evenly spaced, that decide whether the others are pruned
GROUP = 64  # survivors scored at a time, most promising first: each group lowers the bound
MIN_PRUNED = 0.5  # the share of the sample that must have been prunable, for pruning to pay


def best(candidates: Candidates) -> Tensor:
    """The losses (n, w) of all candidates that may be their row's best, inf of the others.

    Rows in which few candidates can be pruned have the remaining ones scored in full at once.
    """
    pruners = [RowPruner(candidates, row) for row in range(len(candidates.slots))]
    workers = candidates.model.workers
    unscored = torch.stack(map_in_threads(RowPruner.run, pruners, workers))
    losses = torch.stack([pruner.losses for pruner in pruners])
    return torch.where(unscored, candidates.losses(unscored), losses)


@dataclass(frozen=True)
class Survivors:
    """Candidates of a row that may still be the best.

    index:       (b,) among the row's candidates
    first_loss:  (b,) of the target's first token, on the CPU
    begin:       the position in the gap from which they have keys and values of their own
    keys_values: these, up to the target
    """

    index: Tensor
    first_loss: Tensor
    begin: int
    keys_values: KeysValues

    def select(self, mask: Tensor) -> Survivors:
        """Those where mask (b,) is True."""
        if mask.all():
            return self
        rows = mask.nonzero().squeeze(1)
        keys_values = select_rows(self.keys_values, rows)
        return Survivors(self.index[rows], self.first_loss[rows], self.begin, keys_values)


class RowPruner:
    """The candidates of one row; `losses` (w,) has those that were scored in full, else inf."""

    def __init__(self, candidates: Candidates, row: int) -> None:
        self.candidates, self.row = candidates, row
        self.model = candidates.model
        self.target = candidates.slots[row].target
        self.after = candidates.slots[row].seams.after_ids
        self.time = candidates.ids.shape[2] + len(self.after)  # tokens from the gap to the target
        self.losses = torch.full(candidates.start.shape[1:], math.inf)

    def run(self) -> Tensor:
        """Which candidates (w,) were left unscored because pruning does not pay."""
        chunks, start = self.model.chunks, self.candidates.start[self.row]
        order = start.argsort(stable=True)
        in_sample = torch.arange(len(order)) % max(1, len(order) // SAMPLE) == 0
        sample, others = order[in_sample], order[~in_sample]
        sample_losses = self._all_token_losses(sample)
        self.losses[sample] = sample_losses.mean(1)
        unscored = torch.zeros_like(start, dtype=torch.bool)
        if self._is_worse(sample_losses[:, 0]).float().mean() < MIN_PRUNED:
            unscored[others] = True
            return unscored
        waiting: list[Survivors] = []
        for part in split_sorted(start[others].tolist(), chunks.enough // self.time):
            waiting += self._promising(self._read_first_losses(others[part]))
            tokens = sum(len(s.index) for s in waiting) * (self.time + len(self.target))
            if tokens > chunks.enough:  # also limits the keys and values in memory
                self._score(waiting)
                waiting = []
        self._score(waiting)
        return unscored

    def _is_worse(self, first_loss: Tensor) -> Tensor:
        """Which candidates cannot be the best, by their first losses (b,); NaN is not worse."""
        slack = 16 * torch.finfo(self.model.dtype).eps  # a shorter pass rounds differently
        return (first_loss - slack) / len(self.target) > self.losses.min()

    def _promising(self, groups: Sequence[Survivors]) -> list[Survivors]:
        """Those of the candidates that may still be the best."""
        selected = [group.select(~self._is_worse(group.first_loss)) for group in groups]
        return [group for group in selected if len(group.index)]

    def _all_token_losses(self, index: Tensor) -> Tensor:
        """Token losses (b, target) of candidates sorted by their first change, in full passes."""
        begin = int(self.candidates.start[self.row, index[0]])
        tokens = self.time - begin + len(self.target) - 1

        def work(part: slice) -> Tensor:
            return self._read_gap(index[part], begin, self.target[:-1])[0].cpu()

        return torch.cat([losses for _, losses in self.model.chunks.map(work, len(index), tokens)])

    def _read_first_losses(self, index: Tensor) -> list[Survivors]:
        """Read candidates, sorted by their first change, up to the target's first token."""
        from robench.model.shared_prefix import new_keys_values

        begin = int(self.candidates.start[self.row, index[0]])

        def work(part: slice) -> Survivors:

            losses, cache = self._read_gap(index[part], begin, [])
            keys_values = new_keys_values(cache, self.time - begin)
            return Survivors(index[part], losses[:, 0].cpu(), begin, keys_values)

        parts = self.model.chunks.map(work, len(index), self.time - begin)
        return [survivors for _, survivors in parts]

    def _read_gap(self, index: Tensor, begin: int, target: list[int]) -> tuple[Tensor, Any]:
        """Token losses (b, 1 + target) after candidates and some tokens of their target.

        And the cache of the pass. No candidate changes before `begin`.
        """
        from robench.model.shared_prefix import attend_to_prefix

        candidates, before = self.candidates, self.time - begin
        gap = self.model.embed(candidates.ids[self.row, index, begin:])
        after = self.model.embed(torch.tensor([*self.after, *target], dtype=torch.long))
        embeds = torch.cat([gap, after.expand(len(index), -1, -1)], dim=1)
        prefix = candidates.prefix.without_last(candidates.gap_tokens - begin)
        time = embeds.shape[1]
        roles = target_roles(torch.tensor([before - 1]), torch.tensor([time]), time)
        owner = [self.row] * len(index)
        with attend_to_prefix(self.model, prefix, owner, time, keep=True) as options:
            losses = self._run(embeds, roles, options, self.target[: 1 + len(target)])
        return losses, options["past_key_values"]

    def _score(self, groups: Sequence[Survivors]) -> None:
        """Read the rest of the target after those that may still be the best, best first."""
        groups = self._promising(groups)
        if not groups:
            return
        index = torch.cat([group.index for group in groups])
        first_loss = torch.cat([group.first_loss for group in groups])
        rest = self.target[1:]
        if not rest:
            self.losses[index] = first_loss
            return
        keys_values = concatenate([self._from_gap(group) for group in groups], dim=0)
        for group in first_loss.argsort().split(GROUP):
            rows = group[~self._is_worse(first_loss[group])]
            work = partial(self._rest_of_loss, keys_values, rows)
            parts = self.model.chunks.map(work, len(rows), self.time + len(rest))
            for part, losses in parts:
                total = first_loss[rows[part]] + losses.cpu()
                self.losses[index[rows[part]]] = total / len(self.target)

    def _from_gap(self, group: Survivors) -> KeysValues:
        """Keys and values of candidates from the beginning of the gap up to the target."""
        if not group.begin:
            return group.keys_values
        candidates = self.candidates
        start, stop = -candidates.gap_tokens, group.begin - candidates.gap_tokens or None

        def of_row(tensor: Tensor) -> Tensor:
            return tensor[self.row, :, start:stop].expand(len(group.index), -1, -1, -1)

        shared = [(of_row(k), of_row(v)) for k, v in candidates.prefix.keys_values]
        return concatenate([shared, group.keys_values], dim=2)

    def _rest_of_loss(self, keys_values: KeysValues, rows: Tensor, part: slice) -> Tensor:
        """The sum (b,) of the token losses after the first, for a part of `rows`."""
        from robench.model.shared_prefix import attend_to_prefix

        b, target = part.stop - part.start, self.target[:-1]
        since = select_rows(keys_values, rows[part])
        embeds = self.model.embed(torch.tensor(target)).expand(b, -1, -1)
        prefix = self.candidates.prefix.without_last(self.candidates.gap_tokens)
        owner, time = [self.row] * b, len(target)
        with attend_to_prefix(self.model, prefix, owner, time, since) as options:
            roles = torch.full((1, time), REPLY)
            return self._run(embeds, roles, options, self.target[1:]).sum(1)

    def _run(
        self, embeds: Tensor, roles: Tensor, options: dict[str, Any], labels: list[int]
    ) -> Tensor:
        """Losses (b, labels) of the tokens that the last positions predict."""
        output = self.model.run(
            embeds,
            roles.expand(len(embeds), -1),
            logits_to_keep=last_positions(len(labels)),
            use_cache=True,
            **options,
        )
        expected = torch.tensor(labels, device=embeds.device).expand(len(embeds), -1)
        return token_losses(output.logits.to(embeds.device), expected)
