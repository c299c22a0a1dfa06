"""The loss of targets behind what stands in a gap: what candidates, pruning and slots share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from robench.model.batching import pad_right
from robench.model.chat import Seams
from robench.model.hooks import target_roles
from robench.model.prefix import Prefix
from robench.model.reader import Reader
from robench.model.shared_prefix import attend_to_prefix
from robench.types import Edit, Message


@dataclass(frozen=True)
class Slot:
    """One conversation with its gap, and the target's ids."""

    messages: tuple[Message, ...]
    seams: Seams
    target: list[int]


def longest(slots: Sequence[Slot], k: int) -> int:
    """Tokens of the longest row after its prefix, with k in its gap."""
    return k + max(len(slot.seams.after_ids) + len(slot.target) for slot in slots) - 1


def gap_losses(
    model: Reader,
    slots: Sequence[Slot],
    prefix: Prefix,
    owner: Sequence[int],
    gap: Tensor,
    lengths: Sequence[int] | None = None,
) -> Tensor:
    """Losses (b,) of gap vectors (b, k, d) in the slots `owner` (b,), after their prefix.

    Args:
        lengths: (b,) how many of the k vectors of each row are its gap; by default all.
    """
    rows, k = [slots[i] for i in owner], gap.shape[1]
    used = list(lengths) if lengths is not None else [k] * len(rows)
    tails, _ = pad_right(
        [
            [0] * length + row.seams.after_ids + row.target[:-1]
            for length, row in zip(used, rows, strict=True)
        ]
    )
    tails = tails.to(gap.device)
    width = min(k, tails.shape[1])
    in_gap = torch.arange(width) < torch.tensor(used)[:, None]
    embeds = model.embed(tails)
    head = torch.where(
        in_gap[..., None].to(gap.device), gap[:, :width].to(embeds), embeds[:, :width]
    )
    embeds = torch.cat([head, embeds[:, width:]], dim=1)
    first = [u + len(row.seams.after_ids) - 1 for u, row in zip(used, rows, strict=True)]
    targets = [row.target for row in rows]
    return target_loss(model, embeds, first, targets, prefix, owner)


def target_loss(
    model: Reader,
    embeds: Tensor,
    first: Sequence[int],
    targets: Sequence[list[int]],
    prefix: Prefix,
    owner: Sequence[int],
    own: Sequence[tuple[Edit, ...]] = (),
) -> Tensor:
    """Mean cross-entropy (b,) of targets, from the needed rows of logits only, in fp32.

    Args:
        model: which reads them.
        embeds: (b, time, d), all tokens behind the prefix but the target's last, right-padded.
        first: where in `embeds` the target's first token is predicted.
        targets: the ids of each row's target.
        prefix: what stands before `embeds`.
        owner: (b,) the prefix of each row.
        own: each row's edits besides the model's; they do not act on the prefix.
    """
    labels, real = pad_right(targets)
    labels, real = labels.to(embeds.device), real.to(embeds.device)
    starts = torch.tensor(first)
    at = starts[:, None] + torch.arange(labels.shape[1])
    at = at.clamp(max=embeds.shape[1] - 1)  # beyond a shorter target; masked below
    needed = at.unique()  # logits of these positions only
    ends = starts + torch.tensor([len(target) for target in targets])
    with attend_to_prefix(model, prefix, owner, embeds.shape[1]) as options:
        output = model.run(
            embeds,
            target_roles(starts, ends, embeds.shape[1]),
            own,
            logits_to_keep=needed.tolist(),  # a list fits whatever device the last block is on
            use_cache=True,
            **options,
        )
    logits = output.logits.to(embeds.device)
    if len(set(first)) > 1:
        kept = torch.searchsorted(needed, at).to(embeds.device)
        logits = logits.gather(1, kept[..., None].expand(-1, -1, logits.shape[-1]))
    losses = token_losses(logits, labels)
    return (losses * real).sum(1) / real.sum(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (batch, time) of labels (batch, time), logits (batch, time, vocab), in fp32."""
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    )
    return flat.view(labels.shape)
