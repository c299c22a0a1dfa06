"""Adapters off for a while; and a LoRA adapter added to the fp32 weights that it sits on.

Folded, it costs no further products while it is on:
h W' + s (h A') B' = h (W + s B A)', but for rounding; in 16 bits the sum would lose of the adapter.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BUDGET = 2**30  # bytes that the second values of folded weights may take


@dataclass(frozen=True)
class Folded:
    """Weights that an adapter was added to.

    weights: each parameter with its undefended and its defended values
    """

    weights: tuple[tuple[nn.Parameter, Tensor, Tensor], ...]

    def put(self, on: bool) -> None:
        for parameter, undefended, defended in self.weights:
            parameter.data = defended if on else undefended


def fold(adapter: Any) -> Folded | None:
    """The adapter of a peft model, taken off it and added to the weights.

    None, with nothing changed, where it is more than the low-rank products of linear maps in fp32,
    or the weights are beyond BUDGET: large models gain little, and would need twice their room.
    """
    from peft.tuners.lora.layer import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    embedding = adapter.get_input_embeddings().weight
    found: list[tuple[Any, Any, str]] = []
    for module in adapter.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        if not isinstance(module, BaseTunerLayer):
            continue
        if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
            return None
        weight, names = module.base_layer.weight, module.active_adapters
        special = module.lora_variant or any(module.lora_bias.values()) or module.merged
        if special or len(names) != 1 or weight.dtype != torch.float32 or weight is embedding:
            return None
        found.append((module, weight, names[0]))
    if sum(weight.nbytes for _, weight, _ in found) > BUDGET:
        return None
    with torch.no_grad():
        weights = tuple((w, w.data, w + module.get_delta_weight(name)) for module, w, name in found)
    adapter.unload()
    folded = Folded(weights)
    folded.put(on=True)
    return folded


@contextmanager
def off(adapter: Any) -> Iterator[None]:
    """An adapter off, folded or peft's; parameters stay as they were: peft lets gradients in.

    peft's own `disable_adapter` also takes stock of the whole model, 4 ms each time.
    """
    if isinstance(adapter, Folded):
        adapter.put(on=False)
        try:
            yield
        finally:
            adapter.put(on=True)
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [m for m in adapter.modules() if isinstance(m, kinds) and not m.disable_adapters]
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    trained = [parameter.requires_grad for parameter in parameters]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, wanted in zip(parameters, trained, strict=True):
            parameter.requires_grad_(wanted)
