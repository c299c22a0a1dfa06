"""The loss of targets after a gap: what candidates, pruning and slots share."""

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
from robench.types import Edit, Message


@dataclass(frozen=True)
class Slot:
    """One conversation with its gap, and the target's ids."""

    messages: tuple[Message, ...]
    seams: Seams
    target: list[int]


def longest(slots: Sequence[Slot], k: int) -> int:
    """Tokens that a pass reads of the longest row after its prefix, with k tokens in the gap."""
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
        model: reads the rows.
        slots: of the prefix's rows.
        prefix: keys and values before the gap.
        owner: the slot of each row.
        gap: the embeddings in the gaps.
        lengths: (b,) how many of the k vectors each row has in its gap; by default all.
    """
    rows, k = [slots[i] for i in owner], gap.shape[1]
    gap_lengths = list(lengths) if lengths is not None else [k] * len(rows)
    ids, _ = pad_right(
        [
            [0] * length + row.seams.after_ids + row.target[:-1]
            for length, row in zip(gap_lengths, rows, strict=True)
        ]
    )
    ids = ids.to(gap.device)
    width = min(k, ids.shape[1])
    in_gap = torch.arange(width) < torch.tensor(gap_lengths)[:, None]
    embeds = model.embed(ids)
    start = torch.where(
        in_gap[..., None].to(gap.device), gap[:, :width].to(embeds), embeds[:, :width]
    )
    embeds = torch.cat([start, embeds[:, width:]], dim=1)
    first = [
        length + len(row.seams.after_ids) - 1 for length, row in zip(gap_lengths, rows, strict=True)
    ]
    targets = [row.target for row in rows]
    return target_loss(model, embeds, first, targets, prefix, owner)


def target_loss(
    model: Reader,
    embeds: Tensor,
    first: Sequence[int],
    targets: Sequence[list[int]],
    prefix: Prefix,
    owner: Sequence[int],
    row_edits: Sequence[tuple[Edit, ...]] = (),
) -> Tensor:
    """Mean cross-entropy (b,) of targets, in fp32, from the needed positions' logits only.

    Args:
        model: reads the rows.
        embeds: (b, time, d), all tokens after the prefix but the target's last, right-padded.
        first: (b,) the position in `embeds` that predicts the target's first token.
        targets: the ids of each row's target.
        prefix: keys and values before `embeds`.
        owner: (b,) the row of the prefix that each row begins with.
        row_edits: each row's edits besides the model's; they do not act on the prefix.
    """
    from robench.model.shared_prefix import attend_to_prefix

    labels, real = pad_right(targets)
    labels, real = labels.to(embeds.device), real.to(embeds.device)
    starts = torch.tensor(first)
    positions = starts[:, None] + torch.arange(labels.shape[1])
    positions = positions.clamp(max=embeds.shape[1] - 1)  # past a shorter target; masked below
    needed = positions.unique()
    ends = starts + torch.tensor([len(target) for target in targets])
    with attend_to_prefix(model, prefix, owner, embeds.shape[1]) as options:
        output = model.run(
            embeds,
            target_roles(starts, ends, embeds.shape[1]),
            row_edits,
            logits_to_keep=needed.tolist(),  # a list works whatever device the last block is on
            use_cache=True,
            **options,
        )
    logits = output.logits.to(embeds.device)
    if len(set(first)) > 1:
        index = torch.searchsorted(needed, positions).to(embeds.device)
        logits = logits.gather(1, index[..., None].expand(-1, -1, logits.shape[-1]))
    losses = token_losses(logits, labels)
    return (losses * real).sum(1) / real.sum(1)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (batch, time) of labels (batch, time), logits (batch, time, vocab), in fp32."""
    losses = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), reduction="none"
    )
    return losses.view(labels.shape)
