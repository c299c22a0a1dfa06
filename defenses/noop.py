"""Control: an adapter that nobody trained. Its B is zero, so every reply is the undefended one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from robench.model import ChatModel
from robench.training import Recipe, trained_adapter
from robench.types import Context, Forecast, Lengths


@dataclass(frozen=True)
class NoOp:
    """A LoRA adapter as the defenses wear it, without a single step."""

    rank: int = 16

    role: ClassVar[str] = "control"
    presets: ClassVar[dict[str, dict[str, object]]] = {"paper": {}, "demo": {}}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError("rank must be at least 1")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        recipe = Recipe(layers=model.depth, rate=0.0, rank=self.rank)
        with trained_adapter(self, recipe, model, ctx, cache, lambda _: Nothing()) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        return Forecast(0, 0)


class Nothing:
    """The Objective that is done before it begins."""

    def backward(self, step: int) -> dict[str, float]:
        raise AssertionError("nothing is trained")

    def done(self, step: int) -> bool:
        return True

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        pass

    def notes(self) -> dict[str, object]:
        return {}
