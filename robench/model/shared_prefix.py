"""Attention that reads a prefix in place, once for all rows of a pass that continue it.

A cache of transformers concatenates prefix and new tokens, so every row of a pass gets a copy of
the prefix in every block. Here the queries of all rows are one sequence to the prefix, new tokens
are attended to row by row, and the two softmaxes are merged by the log-sum-exps of their scores,
which is exact (Hydragen, arXiv:2402.05099, section 3). The kernels keep no scores: nothing of the
size rows x heads x time x prefix is in memory. On a CPU they are slow if a row has few keys: then
one softmax of all scores is taken.

They have no gradient through a log-sum-exp: passes with gradients copy the prefix for each row.
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

from robench.model.prefix import KeysValues, Prefix, cached_tokens, to_cache
from robench.model.reader import Reader

NAME = "robench_shared_prefix"
# Their attention is softmax(q k) v of what the cache returns: no sinks, no biases, no chunks.
FAMILIES = ("gemma", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3")

FEW_KEYS = 64  # keys of a row up to which a CPU takes one softmax of them all

_LOCK = Lock()
_SWITCHED: dict[int, tuple[int, str]] = {}  # config -> passes inside, and its usual attention


@contextmanager
def attend_to_prefix(
    model: Reader,
    prefix: Prefix,
    owner: Sequence[int],
    time: int,
    since: KeysValues = (),
    keep: bool = False,
) -> Iterator[dict[str, Any]]:
    """Options of a forward pass of `time` tokens after the prefixes of the rows `owner` (b,).

    The pass must run inside: the network's attention may be replaced there.

    Args:
        model: whose pass it is.
        prefix: keys and values of the owners.
        owner: the row of the prefix that each row of the pass begins with.
        time: tokens of the pass.
        since: as for `Prefix.pass_options`, which is used if nothing can be shared.
        keep: whether `new_keys_values` will be called for the pass.
    """
    if not (
        supports(model, prefix, owner, time, since) and is_faster(model, prefix, owner, time, since)
    ):
        options = prefix.pass_options(owner, time, model.device, since)
        yield {"past_key_values": to_cache(()), **options} if keep else options
        return
    length, cache = prefix.lengths[owner[0]], DynamicCache()
    for i, pair in enumerate(prefix.keys_values):
        keys, values = (tensor[owner[0], None, :, -length:] for tensor in pair)
        cache.layers.append(_SharedPrefixLayer(keys, values, since[i] if since else None, keep))
    begin = length + cached_tokens(since)
    positions = torch.arange(begin, begin + time, device=model.device)[None]  # of every row
    with _attention_replaced(model.network.config):
        yield {"position_ids": positions, "past_key_values": cache}


def new_keys_values(cache: Any, time: int) -> KeysValues:
    """Keys and values of the `time` tokens that a pass with `keep` has read.

    They are copies if the pass had copies of the prefix: a view would hold those in memory.
    """
    return [
        layer.new
        if isinstance(layer, _SharedPrefixLayer)
        else (layer.keys[:, :, -time:].clone(), layer.values[:, :, -time:].clone())
        for layer in cache.layers
    ]


def supports(
    model: Reader, prefix: Prefix, owner: Sequence[int], time: int, since: KeysValues = ()
) -> bool:
    """Whether the rows have one prefix, and this attention computes what the model's does."""
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
        and (window is None or length + cached_tokens(since) + time <= window)
        and all(_has_kernel(keys) for keys, _ in prefix.keys_values)
    )


def is_faster(
    model: Reader, prefix: Prefix, owner: Sequence[int], time: int, since: KeysValues = ()
) -> bool:
    """Whether two parts take less time than copies: measured on the CPU, benchmarks/NOTES.md."""
    length = prefix.lengths[owner[0]]
    few = model.dtype == torch.float32 and length + cached_tokens(since) + time <= FEW_KEYS
    return len(owner) > 1 and (model.device.type == "cuda" or length >= time or few)


def _has_kernel(keys: Tensor) -> bool:
    if keys.device.type == "cuda":
        params = SDPAParams(keys, keys, keys, None, 0.0, False, False)
        return can_use_efficient_attention(params)
    return keys.device.type == "cpu"


@contextmanager
def _attention_replaced(config: Any) -> Iterator[None]:
    """Use this attention until the last of the passes inside has ended; several may run at once."""
    with _LOCK:
        passes, usual = _SWITCHED.get(id(config), (0, config._attn_implementation))
        _SWITCHED[id(config)] = passes + 1, usual
        config._attn_implementation = NAME  # `set_attn_implementation` visits all modules
    try:
        yield
    finally:
        with _LOCK:
            passes, usual = _SWITCHED.pop(id(config))
            if passes > 1:
                _SWITCHED[id(config)] = passes - 1, usual
            else:
                config._attn_implementation = usual


class _SharedPrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values (1, kv_heads, prefix, d_head) that all rows share, and those of each row."""

    def __init__(
        self, keys: Tensor, values: Tensor, since: tuple[Tensor, Tensor] | None, keep: bool
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys = (keys,) if since is None else (keys, since[0])
        self.values = (values,) if since is None else (values, since[1])
        self.keep = keep
        self.new: tuple[Tensor, Tensor] = keys, values

    def get_seq_length(self) -> int:
        return sum(part.shape[2] for part in self.keys)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Keys and values in parts, the new tokens' last: only this attention understands them."""
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
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention (b, time, heads, d) of queries (b, heads, time, d); no weights are returned.

    Keys and values in parts need no mask: every token sees the parts before, and of the new tokens
    those up to itself. Keys in one tensor come from another pass that runs at the same time.

    Args:
        key: (rows, kv_heads, tokens, d) of each part, the new tokens last; a part of one row is
            shared by all rows.
        value: likewise.
    """
    if not isinstance(key, tuple) or not isinstance(value, tuple):
        usual = AttentionInterface()["sdpa"]
        return usual(module, query, key, value, attention_mask, scaling=scaling, **options)
    few = query.device.type == "cpu" and sum(k.shape[2] for k in key) <= FEW_KEYS
    if few and all(tensor.dtype == torch.float32 for tensor in (query, *value)):
        return _one_softmax(query, key, value, scaling), None
    return _merged_softmaxes(query, key, value, scaling), None


def _merged_softmaxes(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float
) -> Tensor:
    """Attention (b, time, heads, d) to each part by a kernel, merged by log-sum-exps."""
    b, heads, time, _ = query.shape
    groups = heads // keys[0].shape[1]
    *parts, (new_keys, new_values) = (
        (k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1))
        for k, v in zip(keys, values, strict=True)
    )
    out, log_sum = _attend(query, new_keys, new_values, scale, causal=True)
    for part_keys, part_values in parts:
        if len(part_keys) < b:
            queries = query.transpose(0, 1).flatten(1, 2)[None]
            attended = _attend(queries, part_keys, part_values, scale, causal=False)
            part_out, part_log_sum = (
                t[0].unflatten(1, (b, time)).transpose(0, 1) for t in attended
            )
        else:
            part_out, part_log_sum = _attend(query, part_keys, part_values, scale, causal=False)
        share = (part_log_sum - log_sum).sigmoid()
        out = out.to(share.dtype).lerp(part_out.to(share.dtype), share)
        log_sum = torch.logaddexp(log_sum, part_log_sum)
    return out.to(query.dtype).transpose(1, 2).contiguous()


def _one_softmax(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float
) -> Tensor:
    """Attention (b, time, heads, d) by one softmax of the scores of all parts.

    Heads come first, so that all rows' queries are one matrix to a part that all rows share.
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
    weights = torch.cat(scores, dim=-1).mul_(scale).softmax(-1)
    out = torch.zeros_like(grouped.transpose(0, 1), memory_format=torch.contiguous_format)
    parts = zip(weights.split([k.shape[2] for k in keys], -1), values, strict=True)
    for part_weights, part in parts:
        rows = part_weights.reshape(kv_heads * len(part), -1, part.shape[2])
        out += torch.bmm(rows, by_head(part, len(part))).view_as(out)
    return out.permute(1, 3, 0, 2, 4).flatten(2, 3).contiguous()


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (b, heads, time, d) and the log-sum-exps (b, heads, time, 1) of its scores.

    By the kernels of `scaled_dot_product_attention`, which itself does not return the latter.
    Autocast does not reach them, so values are cast here: under it they may differ in type.
    """
    key, value = key.to(query.dtype), value.to(query.dtype)
    if query.device.type == "cuda":
        out, log_sum, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, None, True, 0.0, causal, scale=scale
        )
    else:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale
        )
    return out, log_sum[..., : query.shape[2], None]  # the first kernel pads it


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])
