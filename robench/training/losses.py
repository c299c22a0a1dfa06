"""Distances, means, hinge and KL: pure functions that defenses share, computed in fp32.

States are (layers, batch, time, d) with a mask (batch, time); tokens that are already gathered are
(layers, tokens, d) with a mask (tokens,) or None, with which every token counts.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

KL_CHUNK = 512  # tokens whose distributions are in memory at once


def masked_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of values (layers, batch, time) over the tokens of mask (batch, time)."""
    if mask is None:
        return values.mean()
    chosen = mask.to(values.dtype).expand_as(values)
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def centroid(states: Tensor, mask: Tensor | None) -> Tensor:
    """The mean state (layers, d) over the tokens of mask; gradients flow through it."""
    states = states.float()
    if mask is None:
        return states.flatten(1, -2).mean(1)
    chosen = mask.to(states.dtype)[..., None].expand_as(states).flatten(1, -2)
    return (states.flatten(1, -2) * chosen).sum(1) / chosen.sum(1).clamp(min=1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|_2 over the last axis; its gradient at x = y is zero, not NaN."""
    return (x.float() - y.float()).norm(dim=-1)


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / (|x| |y|) over the last axis; a zero vector is similar to nothing."""
    return functional.cosine_similarity(x.float(), y.float(), dim=-1)


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """1 - cos(x, y), in [0, 2]."""
    return 1 - cosine_similarity(x, y)


def mixed(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|_2 + 10 (1 - max(cos(x, y), 0))."""
    return l2(x, y) + 10 * (1 - cosine_similarity(x, y).relu())


def squared_normalised(x: Tensor, y: Tensor) -> Tensor:
    """0.3 |x / |x| - y / |y||^2."""
    apart = functional.normalize(x.float(), dim=-1) - functional.normalize(y.float(), dim=-1)
    return 0.3 * apart.square().sum(-1)


def nothing(x: Tensor, y: Tensor) -> Tensor:
    """0, whatever the states: for a term that is left out."""
    return torch.zeros(torch.broadcast_shapes(x.shape, y.shape)[:-1], device=x.device)


# d(x, y) of states (..., d) -> (...,), by the names of CRL's released code (2506.11938)
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l2": l2,
    "cos": cosine,
    "mix": mixed,
    "sqn": squared_normalised,
    "none": nothing,
}


def triplet_hinge(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    mask: Tensor | None,
    margin: float,
    d_positive: str,
    d_negative: str,
) -> Tensor:
    """The mean over layers and tokens of [d(anchor, positive) - d(anchor, negative) + margin]_+.

    No argument is detached. CRL (2506.11938) uses it twice; rerouting is positive "none", negative
    "cos", margin 1; RepBend's forget term is positive "none", negative "l2" and a margin that keeps
    the hinge open.

    Args:
        anchor, positive, negative: (layers, batch, time, d), or broadcastable to it, such as a
            centroid (layers, 1, 1, d).
        mask: (batch, time), the tokens that count.
        d_positive, d_negative: keys of DISTANCES.
    """
    pull = DISTANCES[d_positive](anchor, positive)
    push = DISTANCES[d_negative](anchor, negative)
    return masked_mean((pull - push + margin).relu(), mask)


def kl_divergence(
    base_logits: Tensor,
    tuned_logits: Tensor,
    mask: Tensor | None,
    temperature: float = 1.0,
    direction: Literal["base||tuned", "tuned||base"] = "base||tuned",
    reduction: Literal["mean", "batchmean"] = "mean",
) -> Tensor:
    """temperature^2 KL between the next-token distributions, in nats.

    Distributions are computed for KL_CHUNK tokens at a time, and again in the backward pass.

    Args:
        base_logits, tuned_logits: (batch, time, vocab), or (tokens, vocab) without a mask.
        mask: (batch, time), the tokens that count.
        reduction: "mean" over the tokens that count, or "batchmean", their sum / batch.
    """
    if direction not in ("base||tuned", "tuned||base"):
        raise ValueError(f"no direction {direction!r}: base||tuned or tuned||base")
    if reduction not in ("mean", "batchmean"):
        raise ValueError(f"no reduction {reduction!r}: mean or batchmean")
    chosen = torch.ones(base_logits.shape[:-1]) if mask is None else mask
    chosen = chosen.bool().to(base_logits.device)
    pairs = zip(
        base_logits[chosen].split(KL_CHUNK), tuned_logits[chosen].split(KL_CHUNK), strict=True
    )

    def part(base: Tensor, tuned: Tensor) -> Tensor:
        first, second = (base, tuned) if direction == "base||tuned" else (tuned, base)
        p = functional.log_softmax(first.float() / temperature, dim=-1)
        q = functional.log_softmax(second.float() / temperature, dim=-1)
        return (p.exp() * (p - q)).sum()

    total = torch.stack(
        [checkpoint(part, base, tuned, use_reentrant=False) for base, tuned in pairs]
    ).sum()
    count = chosen.sum().clamp(min=1) if reduction == "mean" else len(base_logits)
    return temperature**2 * total / count
