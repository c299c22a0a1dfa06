"""The text half of models that also read images or sound: what attacks and defenses work on."""

from __future__ import annotations

from typing import Any


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model with this config: of text alone, or of more."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    known = type(config) in AutoModelForMultimodalLM._model_mapping
    return AutoModelForMultimodalLM if known else AutoModelForCausalLM


def text_half(network: Any) -> Any:
    """The causal language model inside a model that also reads images, else the model itself.

    Where transformers has no class of its own for the text model (Qwen-VL), the model stays as it
    is, without the parts that read images.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = network.config.get_text_config(decoder=True)
    if config is network.config:
        return network
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return _without_towers(network)
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(config)
    setattr(text, text.base_model_prefix, network.get_decoder())
    text.set_output_embeddings(network.get_output_embeddings())
    text.generation_config = network.generation_config
    return text


def _without_towers(network: Any) -> Any:
    """The network with every part beside its decoder replaced by one without weights."""
    from torch import nn

    decoder = network.get_decoder()
    body = network.base_model
    for name, part in list(body.named_children()):
        if not any(module is decoder for module in part.modules()):
            setattr(body, name, nn.Identity())
    return network
