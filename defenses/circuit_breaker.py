"""Circuit breakers by representation rerouting (Zou, Phan, Wang, et al., 2406.04313).

With h the undefended and h' the tuned states, on harmful answers c and on retain text r:

    L_RR  = mean over layers S and tokens of c of ReLU(cos(h'(c), h(c)))
    L_ret = mean over layers 0..max S and tokens of r of |h'(r) - h(r)|_2
    L     = c_s(t) L_RR + c_r(t) L_ret,   c_s = alpha (1 - t / 2T),   c_r = alpha t / 2T
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from robench.model import ChatModel, at_depth
from robench.training import (
    BaseStates,
    Batch,
    Recipe,
    collate,
    draw_texts,
    l2,
    masked_mean,
    split_examples,
    tokenise,
    trained_adapter,
    triplet_hinge,
)
from robench.types import Context, Forecast, Lengths


@dataclass(frozen=True)
class CircuitBreaker:
    """Turn the states of harmful answers away from where they were, keep all others in place.

    Differs: the adapter sits on the blocks up to the last layer of S; the published one has one
    block more, which L_ret alone trains.

    The retain text is harmless answers and refusals of harmful requests.
    """

    alpha: float = 10.0  # Llama-3; 5 for Mistral
    depths: tuple[float, ...] = (10 / 32, 20 / 32)  # S, as fractions of the depth
    steps: int = 150
    batch: int = 16  # of harmful answers, and as many of retain text
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    blank: float = 0.5  # share of harmful answers under an emptied user turn
    refusals: float = 0.25  # share of refusals in the retain text; left open in the paper
    spread: float = 1e-4  # see Recipe; in the paper bf16 rounding breaks the symmetry
    padded: int = 1024  # row length over which L_ret is averaged, padding as zeros; 0: real tokens
    checkpointing: bool = True  # blocks are computed again in the backward pass, as released

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
        for name in ("steps", "batch", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("dropout", "blank", "refusals"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1]")
        if not self.depths or not all(0 < depth <= 1 for depth in self.depths):
            raise ValueError("depths must be fractions of the depth in (0, 1]")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        layers = sorted({at_depth(depth, model.depth) for depth in self.depths})
        recipe = Recipe.of(self, layers[-1])

        def objective(wearing: ChatModel) -> Rerouting:
            return Rerouting(self, wearing, layers, ctx)

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        tokens = self.steps * 2 * self.batch * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, 2 * tokens, tokens, passes=2)


class Rerouting:
    """The Objective: one batch of harmful answers and one of retain text per step."""

    def __init__(
        self, settings: CircuitBreaker, model: ChatModel, layers: Sequence[int], ctx: Context
    ) -> None:
        self.settings, self.model, self.layers = settings, model, list(layers)
        harmful, refused, harmless = split_examples(ctx.examples)
        self.harmful = tokenise(model.chat, harmful)
        self.blanked = tokenise(model.chat, harmful, blank=True)
        self.refused = tokenise(model.chat, refused)
        self.harmless = tokenise(model.chat, harmless)
        draws = settings.steps * settings.batch
        self.rerouted = BaseStates(model, self.harmful + self.blanked, draws, self.layers)
        texts, below = self.refused + self.harmless, range(layers[-1] + 1)
        self.retained = BaseStates(model, texts, draws, below)
        self.rng = ctx.rng("circuit_breaker")

    def backward(self, step: int) -> dict[str, float]:
        reroute, retain = schedule(self.settings.alpha, step, self.settings.steps)
        circuit = self._circuit_batch()
        tuned, _ = self.model.forward(circuit.ids, circuit.all_text, self.layers)
        rerouting = rerouting_loss(tuned, self.rerouted(circuit), None)
        (reroute * rerouting).backward()
        kept = self._retain_batch()
        tuned, _ = self.model.forward(kept.ids, kept.all_text, range(self.layers[-1] + 1))
        retaining = retain_loss(tuned, self.retained(kept), None)
        if self.settings.padded:
            retaining = retaining * kept.all_text.sum() / (len(kept.ids) * self.settings.padded)
        (retain * retaining).backward()
        return {"rerouting": rerouting.item(), "retain": retaining.item()}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {"layers": self.layers}

    def _circuit_batch(self) -> Batch:
        drawn = torch.rand(self.settings.batch, generator=self.rng) < self.settings.blank
        empty = int(drawn.sum())
        texts = draw_texts(self.blanked, empty, self.rng)
        return collate(texts + draw_texts(self.harmful, self.settings.batch - empty, self.rng))

    def _retain_batch(self) -> Batch:
        refusals = round(self.settings.refusals * self.settings.batch)
        texts = draw_texts(self.refused, refusals, self.rng)
        texts += draw_texts(self.harmless, self.settings.batch - len(texts), self.rng)
        return collate(texts)


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
