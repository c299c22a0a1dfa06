"""Names in adapters of models that also read images, as those of the text half."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from robench.model.fitness import NOT_OF_THE_TEXT

_BASE = "base_model.model."
# What stands before `layers` and `lm_head` in wrappers of all versions of transformers
_AROUND = re.compile(
    r"^(?:(?:model|language_model|text_model|thinker|llm|transformer)(?:\.|\\\.))+"
)
_OWN = re.compile(r"\.(lora_\w+|base_layer)(\.|$).*")  # what LoRA adds to the name of a layer


def fitted_to(network: Any, config: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's weights under the names of the text half; the config is fitted in place.

    What sits on the parts that read images is left out: they see none here.

    Args:
        network: the causal language model.
        config: the peft configuration; of LoRA it then names the layers one by one.
        weights: by the names in the adapter's file.
    """
    named = dict(network.named_modules())
    renamed = {key: _renamed(network, named, key) for key in weights}
    text = {new: weights[old] for old, new in renamed.items() if new}
    if list(text) == list(weights):
        return weights
    layers = {_OWN.sub("", key.removeprefix(_BASE)) for key in text if _OWN.search(key)}
    if layers and config.peft_type == "LORA":
        config.target_modules = sorted(layers)
        config.layers_to_transform = config.layers_pattern = config.exclude_modules = None
        for patterns in (config.rank_pattern, config.alpha_pattern):
            for key in list(patterns):
                patterns[_AROUND.sub("", key)] = patterns.pop(key)
    return text


def _renamed(network: Any, named: dict[str, nn.Module], key: str) -> str:
    """A weight's name in the text half, "" for one of a part that is not here."""
    path = key.removeprefix(_BASE)
    if _module(named, path):
        return key
    decoder = next(name for name, module in named.items() if module is network.get_decoder())
    inner = _AROUND.sub("", path)
    for place in (f"{decoder}.{inner}", inner):
        if inner != path and _module(named, place):
            return _BASE + place
    return "" if NOT_OF_THE_TEXT.search(path) else key


def _module(named: dict[str, nn.Module], path: str) -> bool:
    """Whether the layer of a weight is one of these."""
    return _OWN.sub("", path).removesuffix(".weight") in named
