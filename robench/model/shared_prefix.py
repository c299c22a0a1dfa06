"""Attention that reads a prefix where it is, once for all rows of a pass that follow it.

A cache of transformers joins prefix and new tokens, so every row of a pass gets a copy of the
prefix in every block. Here the queries of all rows are one sequence to the prefix, new tokens are
attended to row by row, and the two softmaxes are joined by the log-sum-exps of their scores, which
is exact (Hydragen, arXiv:2402.05099, section 3). The kernels keep no scores: nothing of the size
rows x heads x time x prefix is in memory. On a CPU they are slow where a row has few keys: there
one softmax of all scores is taken.

They let no gradient through a log-sum-exp: passes with gradients copy, and have a prefix per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends.cuda import SDPAParams, can_use_efficient_attention
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

from robench.model.prefix import Layers, Prefix, cache_of, tokens
from robench.model.reader import Reader

NAME = "robench_shared_prefix"
# Whose attention is softmax(q k) v of what the cache returns: no sinks, no biases, no chunks.
FAMILIES = ("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")

FEW = 64  # keys of a row up to which a CPU takes one softmax of them all

_LOCK = Lock()
_SWITCHED: dict[int, tuple[int, str]] = {}  # by config: passes inside, and the attention before


@contextmanager
def attend_to_prefix(
    model: Reader,
    prefix: Prefix,
    owner: Sequence[int],
    time: int,
    behind: Layers = (),
    keep: bool = False,
) -> Iterator[dict[str, Any]]:
    """What a pass of `time` tokens for the rows `owner` (b,) needs to follow its prefix.

    The pass runs inside: the network may have another attention meanwhile.

    Args:
        behind: as for `Prefix.options`, which takes over where there is nothing to be shared.
        keep: whether `newest` will be asked what the pass has read.
    """
    if not (
        supports(model, prefix, owner, time, behind)
        and is_faster(model, prefix, owner, time, behind)
    ):
        options = prefix.options(owner, time, model.device, behind)
        yield {"past_key_values": cache_of(()), **options} if keep else options
        return
    length, cache = prefix.lengths[owner[0]], DynamicCache()
    for i, pair in enumerate(prefix.layers):
        keys, values = (tensor[owner[0], None, :, -length:] for tensor in pair)
        cache.layers.append(_SharedPrefixLayer(keys, values, behind[i] if behind else None, keep))
    begin = length + tokens(behind)
    positions = torch.arange(begin, begin + time, device=model.device)[None]  # of every row
    with _switched(model.network.config):
        yield {"position_ids": positions, "past_key_values": cache}


def new_keys_values(cache: Any, time: int) -> Layers:
    """K and V of each block, of the `time` tokens that a pass with `keep` has read.

    Copies, where a pass got its own of the prefix: a view would hold that in memory.
    """
    return [
        layer.new
        if isinstance(layer, _SharedPrefixLayer)
        else (layer.keys[:, :, -time:].clone(), layer.values[:, :, -time:].clone())
        for layer in cache.layers
    ]


def supports(
    model: Reader, prefix: Prefix, owner: Sequence[int], time: int, behind: Layers = ()
) -> bool:
    """Whether the rows have one prefix, and the attention here is the model's."""
    config, length = model.network.config, prefix.lengths[owner[0]]
    window = getattr(config, "sliding_window", None)
    return (
        not torch.is_grad_enabled()
        and length > 0
        and len(set(owner)) == 1
        and type(model.network).__module__.startswith("transformers.models.")
        and config.model_type in FAMILIES
        and config._attn_implementation in ("sdpa", NAME)
        and getattr(config, "attn_logit_softcapping", None) is None
        and not getattr(config, "use_bidirectional_attention", None)
        and (window is None or length + tokens(behind) + time <= window)
        and all(_has_kernel(keys) for keys, _ in prefix.layers)
    )


def is_faster(
    model: Reader, prefix: Prefix, owner: Sequence[int], time: int, behind: Layers = ()
) -> bool:
    """Whether two parts cost less than the copies: measured on the CPU, benchmarks/NOTES.md."""
    length = prefix.lengths[owner[0]]
    short = model.dtype == torch.float32 and length + tokens(behind) + time <= FEW
    return len(owner) > 1 and (model.device.type == "cuda" or length >= time or short)


def _has_kernel(keys: Tensor) -> bool:
    if keys.device.type == "cuda":
        params = SDPAParams(keys, keys, keys, None, 0.0, False, False)
        return can_use_efficient_attention(params)
    return keys.device.type == "cpu"


@contextmanager
def _switched(config: Any) -> Iterator[None]:
    """This attention, until the last of the passes inside has ended: several may run at a time."""
    with _LOCK:
        inside, before = _SWITCHED.get(id(config), (0, config._attn_implementation))
        _SWITCHED[id(config)] = inside + 1, before
        config._attn_implementation = NAME  # `set_attn_implementation` walks through all modules
    try:
        yield
    finally:
        with _LOCK:
            inside, before = _SWITCHED.pop(id(config))
            if inside > 1:
                _SWITCHED[id(config)] = inside - 1, before
            else:
                config._attn_implementation = before


class _SharedPrefixLayer(DynamicLayer):  # type: ignore[misc]
    """K/V (1, kv_heads, prefix, d_head) in front of what a pass reads, and of each row's own."""

    def __init__(
        self, keys: Tensor, values: Tensor, own: tuple[Tensor, Tensor] | None, keep: bool
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys = (keys,) if own is None else (keys, own[0])
        self.values = (values,) if own is None else (values, own[1])
        self.keep = keep
        self.new: tuple[Tensor, Tensor] = keys, values

    def get_seq_length(self) -> int:
        return sum(part.shape[2] for part in self.keys)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """K and V, part by part, the new tokens' last: for no other attention than this."""
        if self.keep:
            self.new = key_states, value_states
        return (*self.keys, key_states), (*self.values, value_states)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | tuple[Tensor, ...],
    value: Tensor | tuple[Tensor, ...],
    attention_mask: Tensor | None,
    *,
    scaling: float,
    **how: Any,
) -> tuple[Tensor, None]:
    """Attention (b, time, heads, d) of queries (b, heads, time, d), and no weights.

    K and V in parts need no mask: all see the parts in front, and of the new tokens those up to
    themselves. Where they are whole, the pass is another's that runs meanwhile.

    Args:
        key: (rows, kv_heads, tokens, d) of each part, the new tokens last; a part of one row is
            every row's.
        value: likewise.
    """
    if not isinstance(key, tuple) or not isinstance(value, tuple):
        usual = AttentionInterface()["sdpa"]
        return usual(module, query, key, value, attention_mask, scaling=scaling, **how)
    b, heads, time, _ = query.shape
    few = query.device.type == "cpu" and sum(k.shape[2] for k in key) <= FEW
    if few and all(tensor.dtype == torch.float32 for tensor in (query, *value)):
        return _at_once(query, key, value, scaling), None
    groups = heads // key[0].shape[1]
    *parts, (new_key, new_value) = (
        (k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1))
        for k, v in zip(key, value, strict=True)
    )
    near, near_sum = _attend(query, new_key, new_value, scaling, causal=True)
    for old_key, old_value in parts:
        if len(old_key) < b:
            queries = query.transpose(0, 1).flatten(1, 2)[None]
            found = _attend(queries, old_key, old_value, scaling, causal=False)
            far, far_sum = (t[0].unflatten(1, (b, time)).transpose(0, 1) for t in found)
        else:
            far, far_sum = _attend(query, old_key, old_value, scaling, causal=False)
        share = (far_sum - near_sum).sigmoid()
        near = near.to(share.dtype).lerp(far.to(share.dtype), share)
        near_sum = torch.logaddexp(near_sum, far_sum)
    return near.to(query.dtype).transpose(1, 2).contiguous(), None


def _at_once(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float
) -> Tensor:
    """Attention (b, time, heads, d) by one softmax of the scores of all parts.

    Heads come first, so that all rows' queries are one matrix to a part that is every row's.
    """
    time, d, kv_heads = *query.shape[2:], keys[0].shape[1]

    def by_head(tensor: Tensor, rows: int) -> Tensor:  # (kv_heads * rows, tokens, d)
        return tensor.transpose(0, 1).reshape(kv_heads * rows, -1, d)

    grouped = query.unflatten(1, (kv_heads, -1))  # (b, kv_heads, groups, time, d)
    scores = [
        torch.bmm(by_head(grouped, len(part)), by_head(part, len(part)).mT)
        .view(kv_heads, len(query), -1, time, part.shape[2])
        for part in keys
    ]  # fmt: skip
    scores[-1] += query.new_full((time, time), -torch.inf).triu(1)
    shares = torch.cat(scores, dim=-1).mul_(scale).softmax(-1)
    out = torch.zeros_like(grouped.transpose(0, 1), memory_format=torch.contiguous_format)
    for share, part in zip(shares.split([k.shape[2] for k in keys], -1), values, strict=True):
        weights = share.reshape(kv_heads * len(part), -1, part.shape[2])
        out += torch.bmm(weights, by_head(part, len(part))).view_as(out)
    return out.permute(1, 3, 0, 2, 4).flatten(2, 3).contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, time, d) and the log-sum-exp (b, heads, time, 1) of its scores.

    By the kernels below `scaled_dot_product_attention`, which does not return the latter; nor does
    autocast, under which queries and values may differ in type, reach these.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)
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
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
