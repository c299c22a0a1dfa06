"""What the engine cannot do with a model, and how many tokens one can read: known before weights.

The engine reads embeddings, not ids, as attacks optimise them, and batches rows of any lengths.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from robench.errors import InputError


class Context(NamedTuple):
    """The tokens of a prompt and its reply, together, at most.

    reason: "" where it is the model's context, else why fewer are read
    """

    tokens: int
    reason: str = ""


def unsupported(network: Any) -> str:
    """Why a causal language model is not supported, as the end of a sentence about it; "" if it is.

    Args:
        network: of transformers; its weights may be on the meta device.
    """
    config = network.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ()
    recurrent = [k for k in kinds if "linear" in k or not re.search("attention|sliding|full", k)]
    if network._is_stateful or recurrent:  # a prefix cannot be kept as keys and values
        return (
            "has blocks with a recurrent state; only models with attention in every block are "
            "supported"
        )
    if getattr(config, "cross_attention_layers", None):
        return (
            "has blocks that run only where there is an image; only models whose every block "
            "reads text are supported"
        )
    if getattr(config, "hidden_size_per_layer_input", 0):  # Gemma-3n, small Gemma-4
        return (
            "looks up embeddings for every layer by token ids, which embeddings that attacks "
            "optimise do not have; only models with one input embedding are supported"
        )
    return ""


def refuse_unsupported(network: Any) -> None:
    """Refuse a network that the engine cannot read as it should be read.

    Raises:
        InputError: names its class, and why.
    """
    if reason := unsupported(network):
        raise InputError(f"{type(network).__name__} {reason}")


def context_of(config: Any) -> Context | None:
    """How many tokens a prompt and its reply may have, by a model's config; None: no limit.

    Rotary angles by longrope (Phi-3) change for all tokens of a pass beyond the length of their
    original training, and dynamic ones beyond the context: what a row gets would depend on the
    rows beside it, and keys that were kept would be wrong. Shorter texts are read as they should.
    """
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None:
        return None
    limit = Context(int(longest))
    for rope in _rotary(config):
        kind, original = rope.get("rope_type"), rope.get("original_max_position_embeddings")
        if kind == "longrope" and original and original < limit.tokens:
            limit = Context(int(original), "beyond it longrope changes the angles of all tokens")
        if kind == "yarn" and original:
            limit = Context(max(limit.tokens, int(original * rope.get("factor", 1.0))))
    return limit


def _rotary(config: Any) -> Iterator[Mapping[str, Any]]:
    """The parameters of rotary angles: one set, or one per kind of layer."""
    declared = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in declared:
        yield declared
    else:
        yield from (part for part in declared.values() if isinstance(part, Mapping))
