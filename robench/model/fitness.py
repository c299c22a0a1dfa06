"""Whether a network can be worked with: its weights are those of its files, it answers as asked.

transformers leaves weights that are missing random, and those that it has no place for unused, with
a warning. Neither is the model that the user named.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robench.errors import InputError

_ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# Parts that have no say in the next token of a text: heads for rewards, guesses of later tokens,
# whatever reads images and sound; and angles that are computed anew.
NOT_OF_THE_TEXT = re.compile(
    r"(^|\.)(v_head|value_head|reward_head|score|mtp\w*|nextn\w*|vision\w*|visual|image\w*|audio\w*"
    r"|multi_modal_projector|mm_projector|inv_freq)(\.|$)"
)
_PACKED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale\w*|absmax|quant_map|SCB|quant_state\S*)$"
)
_NEEDED = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "logits_to_keep")


def refuse_adapters(name: str, folder: Path) -> None:
    """Refuse a peft adapter in a model's folder: transformers would put it on unasked.

    Raises:
        InputError: there is one, beside a model or in its place.
    """
    found = [file for file in _ADAPTERS if (folder / file).exists()]
    if not found:
        return
    if any(folder.glob("model*.safetensors")):
        raise InputError(
            f"{name} has a model and an adapter ({found[0]}) in one folder, and which of the two "
            "is meant is unclear: move the adapter's files to a folder of their own; to measure "
            "it, give --defenses adapter:FOLDER"
        )
    raise InputError(
        f"{name} is an adapter, not a model: give its base model, and --defenses adapter:{name}"
    )


def refuse_unknown_quantization(config: Any) -> None:
    """Refuse weights packed in a way that transformers would skip, which leaves noise.

    Raises:
        InputError: the config names no method that this version of transformers knows.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        packed = packed if isinstance(packed, dict) else packed.to_dict()
        if not AutoHfQuantizer.supports_quant_method(dict(packed)):
            raise InputError(
                f"its weights are quantised by {packed.get('quant_method')!r}, which this version "
                "of transformers does not know: upgrade transformers, or give unquantised weights"
            )


def quantization_of(config: Mapping[str, Any]) -> str:
    """How the weights of a config.json are quantised, "" if they are not."""
    packed = config.get("quantization_config")
    return str(packed.get("quant_method", "unknown")) if isinstance(packed, dict) else ""


def check_weights(network: Any, info: Mapping[str, Any]) -> str:
    """Compare the network with the weights in its files.

    Args:
        info: the loading info of transformers.

    Returns:
        A line on weights that are not used and change no reply, "" if there are none.

    Raises:
        InputError: some are missing, of other shapes than the config says, or have no place in it.
    """
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, expected = mismatched[0]
        raise InputError(
            f"config.json does not fit the weights: {name} is {tuple(stored)} in the files and "
            f"{tuple(expected)} by the config{_more(mismatched)}; take config and weights from one "
            "source"
        )
    unused = sorted(info["unexpected_keys"])
    if packed := [name for name in unused if _PACKED.search(name)]:
        raise InputError(
            f"its weights are quantised ({packed[0]}), and config.json does not say how "
            "(quantization_config): add that, or give unquantised weights"
        )
    if missing := sorted(info["missing_keys"]):  # transformers would leave them random
        others = f", and have {unused[0]}{_more(unused)}" if unused else ""
        raise InputError(
            f"the weights lack {missing[0]}{_more(missing)}{others}; take config and weights from "
            "one source, or download or save them again"
        )
    if foreign := [name for name in unused if not NOT_OF_THE_TEXT.search(name)]:
        raise InputError(
            f"the files have weights that {type(network).__name__} with this config.json has no "
            f"place for: {foreign[0]}{_more(foreign)}; take config and weights from one source, or "
            "give --trust-remote-code if the model comes with code of its own"
        )
    return f"not used of the files: {unused[0]}{_more(unused)}" if unused else ""


def check_ties(network: Any) -> None:
    """Check that embeddings which the config calls one are not two different ones in the files.

    Raises:
        InputError: they are: engines differ in which of them they use.
    """
    config = network.config.get_text_config(decoder=True)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if getattr(config, "tie_word_embeddings", False) and head.weight is not embedding.weight:
        raise InputError(
            "config.json says that input and output embeddings are one (tie_word_embeddings), and "
            "the files hold two that differ: set it to false to use both, or remove one"
        )


def check_forward(network: Any) -> None:
    """Check that the network takes what is passed to it; a model's own code may not.

    Raises:
        InputError: names what it does not take.
    """
    taken = inspect.signature(network.forward).parameters
    lacking = [name for name in _NEEDED if name not in taken]
    if not lacking:
        return
    words = f"{type(network).__name__}.forward does not take {', '.join(lacking)}, which robench"
    if type(network).__module__.startswith("transformers.models."):  # BLOOM, MPT
        raise InputError(f"{words} needs: this family is not supported")
    raise InputError(
        f"{words} needs: use a version of the model whose code is part of transformers"
    )


def check_tokens(tokenizer: Any, network: Any) -> None:
    """Check that every token has an embedding.

    Raises:
        InputError: the tokenizer has tokens beyond the embedding.
    """
    rows = len(network.get_input_embeddings().weight)
    highest, token = max((i, token) for token, i in tokenizer.get_vocab().items())
    if highest >= rows:
        raise InputError(
            f"the tokenizer has tokens up to number {highest} ({token!r}), and the model embeds "
            f"only {rows}: take tokenizer and weights from one source, or save the model after "
            f"resize_token_embeddings({highest + 1})"
        )


def _more(names: list[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
