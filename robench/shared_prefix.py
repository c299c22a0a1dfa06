"""Attention that reads a prefix where it is, once for all rows of a pass that follow it.

A cache of transformers joins prefix and new tokens, so every row of a pass gets a copy of the
prefix in every block. Here the queries of all rows are one sequence to the prefix, new tokens are
attended to row by row, and the two softmaxes are joined by the log-sum-exps of their scores, which
is exact (Hydragen, arXiv:2402.05099, section 3). The kernels keep no scores: nothing of the size
rows x heads x time x prefix is in memory.

They let no gradient through a log-sum-exp: passes with gradients copy, and have a prefix per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from robench.prefix import Prefix

if TYPE_CHECKING:
    from robench.model import ChatModel

NAME = "robench_shared_prefix"
# Whose attention is softmax(q k) v of what the cache returns: no sinks, no biases, no chunks.
FAMILIES = ("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")


@contextmanager
def following(
    model: ChatModel, prefix: Prefix, owner: Sequence[int], time: int
) -> Iterator[dict[str, Any]]:
    """What a pass of `time` tokens for the rows `owner` (b,) needs to follow its prefix.

    The pass runs inside: the network may have another attention meanwhile.
    """
    if not (admits(model, prefix, owner, time) and pays(model, prefix, owner, time)):
        yield prefix.options(owner, time, model.device)
        return
    config, length, cache = model.network.config, prefix.lengths[owner[0]], DynamicCache()
    for pair in prefix.layers:
        keys, values = (tensor[owner[0], None, :, -length:] for tensor in pair)
        cache.layers.append(_Standing(keys, values))
    positions = torch.arange(length, length + time, device=model.device).expand(len(owner), -1)
    before = config._attn_implementation
    config._attn_implementation = NAME  # `set_attn_implementation` walks through all modules
    try:
        yield {"position_ids": positions, "past_key_values": cache}
    finally:
        config._attn_implementation = before


def admits(model: ChatModel, prefix: Prefix, owner: Sequence[int], time: int) -> bool:
    """Whether the rows have one prefix, and the attention here is the model's."""
    config, length = model.network.config, prefix.lengths[owner[0]]
    window = getattr(config, "sliding_window", None)
    return (
        not torch.is_grad_enabled()
        and length > 0
        and len(set(owner)) == 1
        and type(model.network).__module__.startswith("transformers.models.")
        and config.model_type in FAMILIES
        and config._attn_implementation == "sdpa"
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "use_bidirectional_attention", None)
        and (window is None or length + time <= window)
        and all(_has_kernel(keys) for keys, _ in prefix.layers)
    )


def pays(model: ChatModel, prefix: Prefix, owner: Sequence[int], time: int) -> bool:
    """Whether a second kernel is worth the copies: measured on the CPU, see benchmarks/NOTES.md."""
    return len(owner) > 1 and (model.device.type == "cuda" or prefix.lengths[owner[0]] >= time)


def _has_kernel(keys: Tensor) -> bool:
    if keys.device.type == "cuda":
        params = SDPAParams(keys, keys, keys, None, 0.0, False, False)
        return can_use_efficient_attention(params)
    return keys.device.type == "cpu"


class _Standing(DynamicLayer):  # type: ignore[misc]
    """K/V (1, kv_heads, prefix, d_head) in front of what a pass reads. It does not grow."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """K and V, each of the prefix and of the new tokens, for no other attention than this."""
        return (self.keys, key_states), (self.values, value_states)


def attention(
    module: nn.Module,
    query: Tensor,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    attention_mask: None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention (b, time, heads, d) of queries (b, heads, time, d), and no weights.

    There is no mask: all see the whole prefix, and of the new tokens those up to themselves.

    Args:
        key: of the prefix (1, kv_heads, prefix, d) and of the new tokens (b, kv_heads, time, d).
        value: likewise.
    """
    b, heads, time, d = query.shape
    groups = heads // key[0].shape[1]
    (old_key, new_key), (old_value, new_value) = (
        (old.repeat_interleave(groups, dim=1), new.repeat_interleave(groups, dim=1))
        for old, new in (key, value)
    )
    queries = query.transpose(0, 1).reshape(1, heads, b * time, d)
    far, far_sum = _attend(queries, old_key, old_value, scaling, causal=False)
    near, near_sum = _attend(query, new_key, new_value, scaling, causal=True)
    far, far_sum = (t[0].unflatten(1, (b, time)).transpose(0, 1) for t in (far, far_sum))
    share = (far_sum - near_sum).sigmoid()
    far, near, share = (t.transpose(1, 2).to(share.dtype) for t in (far, near, share))
    return near.lerp(far, share).to(query.dtype).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, time, d) and the log-sum-exp (b, heads, time, 1) of its scores.

    By the kernels below `scaled_dot_product_attention`, which does not return the latter.
    """
    if query.device.type == "cuda":
        out, total, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
    else:
        out, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
    return out, total[..., : query.shape[2], None]  # the first kernel pads it


AttentionInterface.register(NAME, attention)
