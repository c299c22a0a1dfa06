"""The linear maps of decoder blocks that an adapter sits on, those of experts included.

In a mixture of experts (Mixtral, Qwen-MoE, DeepSeek, gpt-oss) the maps of all experts of a block
are one parameter (experts, d, d') each, and not layers: peft reaches them by `target_parameters`.
Routers, which choose the experts, stay as they are: families read more of them than their output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from robench.errors import Failure
from robench.model.hooks import blocks

_OWN_FORWARD = ("transformers.models.", "transformers_modules.")  # routers that are nn.Linear
_PLAIN = ("FalconLinear",)  # of these, what computes as nn.Linear does


@dataclass(frozen=True)
class LinearMaps:
    """Where an adapter on decoder blocks 1..layers sits.

    modules:    the last parts of the names of linear layers (q_proj, down_proj, ...)
    parameters: the full names of the weights of experts
    sides:      their inputs and outputs, added up: the weights of an adapter of rank 1
    reached:    how many weights they have
    others:     the names of matrices in the blocks that it does not reach, and their sizes
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    sides: int
    reached: int
    others: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, network: nn.Module, layers: int) -> LinearMaps:
        """Those of a network's first blocks.

        Raises:
            Failure: there are none.
        """
        modules, parameters, others, reached, sides = set(), [], [], 0, 0
        name_of = {module: name for name, module in network.named_modules()}
        for block in list(blocks(network))[:layers]:
            for module, name, weight in _matrices(block):
                path = name_of[module]
                if _is_linear(module):
                    modules.add(path.rpartition(".")[2])
                elif weight.ndim == 3 and not isinstance(module, nn.Conv1d):
                    parameters.append(f"{path}.{name}")
                else:
                    others.append((f"{path}.{name}", weight.numel()))
                    continue
                reached += weight.numel()
                *experts, rows, columns = weight.shape
                sides += math.prod(experts) * (rows + columns)
        if not reached:
            raise Failure(f"{type(network).__name__} has no linear layers for an adapter to sit on")
        return cls(tuple(sorted(modules)), tuple(parameters), sides, reached, tuple(others))

    @property
    def share(self) -> float:
        """The share of the weights of all matrices in the blocks that the adapter reaches."""
        return self.reached / (self.reached + sum(size for _, size in self.others))

    def record(self, dropout: float) -> dict[str, Any]:
        """What a training's record says of it.

        Args:
            dropout: that was asked for.
        """
        record: dict[str, Any] = {"share_reached": round(self.share, 6)}
        if self.others:
            kinds = sorted({".".join(name.split(".")[-3:-1]) for name, _ in self.others})
            record["note"] = (
                f"the adapter does not reach {100 * (1 - self.share):.2g} % of the weights of the "
                f"linear maps in these blocks ({', '.join(kinds)})"
            )
        if self.parameters and dropout:
            record["dropout"] = "without dropout, as peft has none for the weights of experts"
        return record


def _matrices(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """The weights of more than one dimension in a block: their module, their name there."""
    for module in block.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim > 1 and not name.endswith("bias"):
                yield module, name, weight


def _is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer that peft can replace, and not a router made of one."""
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    kind = type(module)
    is_own = kind.__module__.startswith(_OWN_FORWARD) and kind.__name__ not in _PLAIN
    return isinstance(module, (nn.Linear, Conv1D)) and not is_own
