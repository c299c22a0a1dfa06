"""Distances and masked means: pure tensor functions that several defenses share, fp32 inside."""

from torch import Tensor
from torch.nn import functional


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values (layers, batch, time) over the tokens of mask (batch, time)."""
    chosen = mask.to(values.dtype).expand_as(values)
    return (values * chosen).sum() / chosen.sum().clamp(min=1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|_2 over the last axis; its gradient at x = y is zero, not NaN."""
    return (x.float() - y.float()).norm(dim=-1)


def cosine_similarity(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / (|x| |y|) over the last axis, in fp32."""
    return functional.cosine_similarity(x.float(), y.float(), dim=-1)
