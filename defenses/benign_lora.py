"""Control: an adapter of a defense's size, trained on harmless answers alone.

What it changes, any fine-tuning changes; a defense has to do better.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from robench.model import ChatModel, at_depth
from robench.training import Recipe, collate, draw_texts, split_examples, tokenise, trained_adapter
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

        def objective(wearing: ChatModel) -> FineTuning:
            return FineTuning(self, wearing, ctx)

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        tokens = self.steps * self.batch * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, tokens, tokens)


class FineTuning:
    """The Objective: one batch of answers to harmless requests per step."""

    def __init__(self, settings: BenignLoRA, model: ChatModel, ctx: Context) -> None:
        self.settings, self.model = settings, model
        self.texts = tokenise(model.chat, split_examples(ctx.examples).harmless)
        self.rng = ctx.rng("benign_lora")

    def backward(self, step: int) -> dict[str, float]:
        batch = collate(draw_texts(self.texts, self.settings.batch, self.rng))
        before = batch.response.roll(-1, dims=1)  # the token in front of each reply token
        before[:, -1] = False
        _, logits = self.model.forward(batch.ids, batch.all_text, tokens=before, logits=True)
        answer = batch.ids[batch.response].to(logits.device)
        loss = cross_entropy(logits.float(), answer)
        loss.backward()
        return {"answer": loss.item()}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {}
