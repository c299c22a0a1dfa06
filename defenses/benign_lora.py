"""Control: an adapter of a defense's size, trained on harmless answers alone.

What it changes, any fine-tuning changes; a defense has to do better.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from robench.model import ChatModel, at_depth
from robench.training import FineTuning, Recipe, split_examples, tokenise, trained_adapter
from robench.types import Context, Forecast, Lengths


@dataclass(frozen=True)
class BenignLoRA:
    """Supervised fine-tuning on answers to harmless requests, in circuit_breaker's LoRA and steps.

    The loss is the cross-entropy of the answer's tokens.
    """

    steps: int = 150
    batch: int = 16
    depth: float = 20 / 32  # the adapter's highest layer, as circuit_breaker's
    rate: float = 1e-4
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    clip: float = 1.0  # norm of the gradient, as circuit_breaker's
    checkpointing: bool = False

    role: ClassVar[str] = "control"
    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {"rate": 1e-3, "dropout": 0.0},
    }

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not 0 <= self.dropout <= 1:
            raise ValueError("dropout must be in [0, 1]")
        if not 0 < self.depth <= 1:
            raise ValueError("depth must be in (0, 1]")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        recipe = Recipe.of(self, at_depth(self.depth, model.depth))

        def objective(tuned: ChatModel) -> FineTuning:
            texts = tokenise(model.chat, split_examples(ctx.examples).harmless)
            return FineTuning(tuned, texts, self.batch, self.steps, ctx.rng("benign_lora"))

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        tokens = self.steps * self.batch * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, tokens, tokens)
