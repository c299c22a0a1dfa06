"""Switching adapters off for a while; LoRA adapters that are added to their fp32 weights.

An adapter that is folded into the weights costs no extra matrix products:
h W' + s (h A') B' = h (W + s B A)' up to rounding. In 16 bits the sum would lose parts of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BUDGET = 2**30  # bytes of the weights of which a second copy may be held


@dataclass(frozen=True)
class FoldedAdapter:
    """An adapter as a second set of weights.

    weights: each parameter, its value without the adapter and its value with it
    rest:    a peft model with the part that is not among the weights
    """

    weights: tuple[tuple[nn.Parameter, Tensor, Tensor], ...]
    rest: Any = None

    def enable(self) -> None:
        for parameter, _, defended in self.weights:
            parameter.data = defended

    def disable(self) -> None:
        for parameter, undefended, _ in self.weights:
            parameter.data = undefended


def fold_adapter(adapter: Any) -> FoldedAdapter | None:
    """Remove the adapter from a peft model and add it to the weights, in place.

    Returns:
        The folded adapter, enabled; or None, with nothing changed, if the adapter is more than
        low-rank products of linear layers in fp32, or the weights are beyond BUDGET: large models
        gain little, and would need twice the memory.
    """
    layers = _plain_lora_layers(adapter)
    if layers is None or sum(_weight(layer).nbytes for layer in layers) > BUDGET:
        return None
    with torch.no_grad():
        weights = tuple(
            (weight, weight.data, weight + layer.get_delta_weight(layer.active_adapters[0]))
            for layer in layers
            for weight in [_weight(layer)]
        )
    adapter.unload()
    folded = FoldedAdapter(weights)
    folded.enable()
    return folded


def _plain_lora_layers(adapter: Any) -> list[Any] | None:
    """The LoRA layers of a peft model; None if there is anything that cannot be folded."""
    from peft.tuners.lora.layer import Linear, ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    embedding = adapter.get_input_embeddings().weight
    layers: list[Any] = []
    for module in adapter.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        if not isinstance(module, BaseTunerLayer):
            continue
        plain = type(module) is Linear and type(module.base_layer) is nn.Linear
        if not plain and type(module) is not ParamWrapper:
            return None
        weight = _weight(module)
        special = module.lora_variant or any(module.lora_bias.values()) or module.merged
        one_adapter = len(module.active_adapters) == 1
        if special or not one_adapter or weight.dtype != torch.float32 or weight is embedding:
            return None
        layers.append(module)
    return layers


def _weight(layer: Any) -> nn.Parameter:
    """What a LoRA layer adds to: a linear layer's weight, or a parameter of experts."""
    from peft.tuners.lora.layer import ParamWrapper

    is_parameter = isinstance(layer, ParamWrapper)
    return layer.get_param() if is_parameter else layer.base_layer.weight


def changes_weights_in_passes(adapter: FoldedAdapter | Any) -> bool:
    """Whether an adapter swaps weights of the model while a pass runs: one pass at a time, then."""
    from peft.tuners.lora.layer import ParamWrapper

    if isinstance(adapter, FoldedAdapter):
        return adapter.rest is not None and changes_weights_in_passes(adapter.rest)
    return any(isinstance(module, ParamWrapper) for module in adapter.modules())


@contextmanager
def adapter_disabled(adapter: FoldedAdapter | Any) -> Iterator[None]:
    """Switch an adapter off inside: a `FoldedAdapter`, or that of a peft model.

    Unlike peft's own `disable_adapter` it does not inspect the whole model, which takes 4 ms each
    time, and leaves every `requires_grad` as it was.
    """
    if isinstance(adapter, FoldedAdapter):
        adapter.disable()
        try:
            with adapter_disabled(adapter.rest) if adapter.rest else nullcontext():
                yield
        finally:
            adapter.enable()
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [m for m in adapter.modules() if isinstance(m, kinds) and not m.disable_adapters]
    requires_grad = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, trained in requires_grad:
            parameter.requires_grad_(trained)
