"""Circuit breakers by representation rerouting (Zou, Phan, Wang, et al., 2406.04313).

With h the undefended and h' the tuned states, on harmful answers c and on retain text r:

    L_RR  = mean over layers S and tokens of c of ReLU(cos(h'(c), h(c)))
    L_ret = mean over layers 0..max S and tokens of r of |h'(r) - h(r)|_2
    L     = c_s(t) L_RR + c_r(t) L_ret,   c_s = alpha (1 - t / 2T),   c_r = alpha t / 2T
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from robench.config import at_least, not_empty, within
from robench.model import ChatModel, at_depth
from robench.training import (
    BaseStates,
    Batch,
    Recipe,
    collate,
    draw_safe_texts,
    draw_texts,
    l2,
    masked_mean,
    split_examples,
    tokenise,
    tokenise_split,
    trained_adapter,
    triplet_hinge,
)
from robench.types import Context, Forecast, Lengths


@dataclass(frozen=True)
class CircuitBreaker:
    """Make the states of harmful answers orthogonal to what they were, keep all others in place.

    The retain text is harmless answers and refusals of harmful requests.

    Differs: the adapter is on the blocks up to the last layer of S; the published one is on one
    block more, which only L_ret trains.
    """

    alpha: float = 10.0  # Llama-3; 5 for Mistral
    depths: tuple[float, ...] = (10 / 32, 20 / 32)  # S, as fractions of the depth
    steps: int = 150
    batch: int = 16  # harmful answers, and as many retain texts
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    blank: float = 0.5  # share of harmful answers with an empty user turn
    refusals: float = 0.25  # share of refusals in the retain text; not stated in the paper
    spread: float = 1e-4  # see Recipe; in the paper bf16 rounding breaks the symmetry
    padded: int = 1024  # row length over which L_ret is averaged, padding as zeros; 0: real tokens
    checkpointing: bool = True  # recompute blocks in the backward pass, as released

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {
            "rate": 1e-3,
            "dropout": 0.0,
            "spread": 1e-2,
            "padded": 0,
            "checkpointing": False,
        },
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "rank")
        within(self, "[0, 1]", "dropout", "blank", "refusals")
        not_empty(self, "depths")
        within(self, "(0, 1]", "depths")

    def applied(
        self, model: ChatModel, ctx: Context, cache: Path
    ) -> AbstractContextManager[ChatModel]:
        layers = sorted({at_depth(depth, model.depth) for depth in self.depths})
        recipe = Recipe.of(self, layers[-1])

        def objective(tuned: ChatModel) -> Rerouting:
            return Rerouting(self, tuned, layers, ctx)

        return trained_adapter(self, recipe, model, ctx, cache, objective)

    def forecast(self, lengths: Lengths) -> Forecast:
        tokens = self.steps * 2 * self.batch * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, 2 * tokens, tokens, passes=2)


class Rerouting:
    """The Objective: one batch of harmful answers and one of retain text per step."""

    def __init__(
        self, settings: CircuitBreaker, model: ChatModel, layers: Sequence[int], ctx: Context
    ) -> None:
        self.settings, self.model, self.layers = settings, model, list(layers)
        self.lower_layers = range(layers[-1] + 1)
        self.texts = tokenise_split(model.chat, ctx.examples)
        self.blanked = tokenise(model.chat, split_examples(ctx.examples).harmful, blank=True)
        draws = settings.steps * settings.batch
        circuit = self.texts.harmful + self.blanked
        retain = self.texts.refused + self.texts.harmless
        self.circuit_base = BaseStates(model, circuit, draws, self.layers)
        self.retain_base = BaseStates(model, retain, draws, self.lower_layers)
        self.rng = ctx.rng("circuit_breaker")

    def backward(self, step: int) -> dict[str, float]:
        reroute_weight, retain_weight = schedule(self.settings.alpha, step, self.settings.steps)
        batch = self._circuit_batch()
        tuned, _ = self.model.forward(batch.ids, batch.all_text, self.layers)
        rerouting = rerouting_loss(tuned, self.circuit_base(batch), None)
        (reroute_weight * rerouting).backward()
        batch = self._retain_batch()
        tuned, _ = self.model.forward(batch.ids, batch.all_text, self.lower_layers)
        retain = retain_loss(tuned, self.retain_base(batch), None)
        if self.settings.padded:
            retain = retain * batch.all_text.sum() / (len(batch.ids) * self.settings.padded)
        (retain_weight * retain).backward()
        return {"rerouting": rerouting.item(), "retain": retain.item()}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {"layers": self.layers}

    def _circuit_batch(self) -> Batch:
        size = self.settings.batch
        blank = int((torch.rand(size, generator=self.rng) < self.settings.blank).sum())
        texts = draw_texts(self.blanked, blank, self.rng)
        return collate(texts + draw_texts(self.texts.harmful, size - blank, self.rng))

    def _retain_batch(self) -> Batch:
        s = self.settings
        return collate(draw_safe_texts(self.texts, s.batch, s.refusals, self.rng))


def rerouting_loss(tuned: Tensor, base: Tensor, mask: Tensor | None) -> Tensor:
    """L_RR of states (layers, batch, time, d) over the tokens of mask (batch, time)."""
    return triplet_hinge(tuned, tuned, base.detach(), mask, 1, "none", "cos")


def retain_loss(tuned: Tensor, base: Tensor, mask: Tensor | None) -> Tensor:
    """L_ret of states (layers, batch, time, d) over the tokens of mask (batch, time).

    Differs: the last state is the block's raw output, not the final norm's.
    """
    return masked_mean(l2(tuned, base.detach()), mask)


def schedule(alpha: float, step: int, steps: int) -> tuple[float, float]:
    """(c_s, c_r) at `step`, counted from 1: alpha -> alpha / 2 and 0 -> alpha / 2."""
    progress = step / (2 * steps)
    return alpha * (1 - progress), alpha * progress
