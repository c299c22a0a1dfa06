"""Attention that reads a prefix where it is, once for all rows of a pass that it belongs to.

A cache of transformers joins prefix and new tokens, so every row of a pass gets a copy of the
prefix in every block. Here the queries of all rows are one sequence to the prefix, the new tokens
are attended to row by row, and the two softmaxes are joined by their log-sum-exps, which is exact
(arXiv:2402.05099 section 3.1). The fused kernels keep no scores: none of rows x heads x time x
prefix is ever in memory.

Those kernels give no gradient through a log-sum-exp, so passes with gradients copy as before; they
have a prefix per row anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from robench.prefix import Prefix

if TYPE_CHECKING:
    from robench.model import ChatModel

NAME = "robench_shared_prefix"
DEVICES = ("cuda",)
# Families whose attention is softmax(q k / scale) v and nothing else, and which hand what a pass
# is given on to it; no soft caps, no sinks, no biases.
FAMILIES = ("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")


@contextmanager
def following(
    model: ChatModel, prefix: Prefix, owner: Sequence[int], time: int
) -> Iterator[dict[str, Any]]:
    """What a pass of `time` tokens for the rows `owner` (b,) needs to follow its prefix.

    The pass runs inside: the network's attention may be another one meanwhile.
    """
    if not shares(model, prefix, owner, time):
        yield prefix.options(owner, time, model.device)
        return
    network, cache, length = model.network, DynamicCache(), prefix.lengths[owner[0]]
    for pair in prefix.layers:
        keys, values = (tensor[owner[0], None, :, -length:] for tensor in pair)
        cache.layers.append(_Standing(keys, values))
    positions = torch.arange(length, length + time, device=model.device).expand(len(owner), -1)
    before = network.config._attn_implementation
    network.set_attn_implementation(NAME)
    try:
        yield {"position_ids": positions, "past_key_values": cache, "shared_prefix": cache}
    finally:
        network.set_attn_implementation(before)


def shares(model: ChatModel, prefix: Prefix, owner: Sequence[int], time: int) -> bool:
    """Whether such a pass reads one prefix, by an attention that says the same as the model's."""
    config, length = model.network.config, prefix.lengths[owner[0]]
    window = getattr(config, "sliding_window", None)
    return (
        model.device.type in DEVICES
        and not torch.is_grad_enabled()
        and length > 0
        and len(owner) > 1
        and len(set(owner)) == 1
        and type(model.network).__module__.startswith("transformers.models.")
        and config.model_type in FAMILIES
        and config._attn_implementation == "sdpa"
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "use_bidirectional_attention", None)
        and (window is None or length + time <= window)
        and prefix.layers[0][0].shape[-1] % 8 == 0  # as the kernels want their rows aligned
    )


class _Standing(DynamicLayer):  # type: ignore[misc]
    """K/V (1, heads, prefix, d_head) in front of what a pass reads; it does not grow."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The new part alone, as it came."""
        return key_states, value_states


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    shared_prefix: DynamicCache,
    **_: Any,
) -> tuple[Tensor, None]:
    """Queries (b, heads, time, d) on the block's prefix and on new K/V (b, kv_heads, time, d).

    Returns (b, time, heads, d) and no weights. There is no mask: all see the whole prefix, and of
    the new tokens those up to themselves.
    """
    layer = shared_prefix.layers[module.layer_idx]
    b, heads, time, d = query.shape
    kv = key.shape[1]
    groups = heads // kv
    # All queries of all rows to a head of K/V, one behind the other
    folded = query.unflatten(1, (kv, groups)).transpose(0, 1).reshape(1, kv, b * groups * time, d)
    far, far_sum = _attend(folded, layer.keys, layer.values, scaling, causal=False)
    new = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    near, near_sum = _attend(query, *new, scaling, causal=True)
    share = far_sum.view(kv, b, groups, time, 1).transpose(0, 1).flatten(1, 2) - near_sum
    share = share.sigmoid()
    far = far.reshape(kv, b, groups, time, d).transpose(0, 1).flatten(1, 2)
    joined = share * far + (1 - share) * near
    return joined.to(query.dtype).transpose(1, 2).contiguous(), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, time, d) and the log-sum-exp (b, heads, time, 1) of its scores.

    From the kernels that torch's own attention runs on, as that does not give the latter.
    """
    kernels = torch.ops.aten
    if query.device.type == "cuda":
        out, total, *_ = kernels._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
    else:
        out, total = kernels._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
    return out, total[..., : query.shape[2], None]  # the former pads it


AttentionInterface.register(NAME, attention)
