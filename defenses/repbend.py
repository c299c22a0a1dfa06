"""RepBend: representation bending (Yousefpour, Kim, Kwon, et al., 2504.01550, released code).

With h the undefended and h' the tuned states, on safe replies s, harmful answers u and retain text
r, and a_i the state of u_i at its last prompt token:

    L = alpha mean |h'(s) - h(s)|_2 - beta mean |h'(u) - h(u)|_2
        + gamma mean over i != j of (1 - cos(a_i, a_j)) + epsilon KL(base || tuned on r)

Safe states are kept at all layers, harmful ones are pushed away at the upper ones.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from robench.config import at_least, within
from robench.model import ChatModel, at_depth
from robench.training import (
    Recipe,
    collate,
    cosine,
    draw_safe_texts,
    draw_texts,
    kl_divergence,
    l2,
    masked_mean,
    tokenise_split,
    trained_adapter,
    tuned_and_base,
    without_adapter,
)
from robench.types import Context, Forecast, Lengths


@dataclass(frozen=True)
class RepBend:
    """Bend the states of harmful answers away from where they were and towards one direction.

    Safe replies are answers to harmless requests and refusals of harmful ones. The push has no
    bound; only the number of steps stops it. The demo takes half of the texts per step; in both
    presets the cosine term is over the 8 harmful answers of a micro-batch.

    Differs: the last state is the block's raw output, not the final norm's; the retain text is the
    first reply of a conversation, not all of them.
    """

    alpha: float = 0.5  # safe; the four weights of RepBend's own script
    beta: float = 0.5  # forget
    gamma: float = 0.1  # cosine
    epsilon: float = 0.3  # KL
    depths: tuple[float, float] = (20 / 32, 30 / 32)  # of the lowest and highest bent layer
    temperature: float = 2.0  # of the KL
    steps: int = 450
    batch: int = 8  # harmful answers per micro-batch, and as many safe replies
    retain: int = 4  # retain texts per micro-batch
    micro: int = 4  # micro-batches per step
    refusals: float = 0.5  # share of refusals in the safe replies; in the released data at least
    # that, as half of them are refusals of WildJailbreak and some of WildGuardMix are
    clip: float = 1.0  # norm of the gradient: HF Trainer's default, which accelerate hands on
    rate: float = 1e-5  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    spread: float = 0.0  # see Recipe; not needed where gamma > 0
    checkpointing: bool = True  # recompute blocks in the backward pass, as released

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {
            "steps": 150,
            "micro": 2,
            "retain": 8,
            "rate": 1e-4,
            "dropout": 0.0,
            "checkpointing": False,
        },
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "retain", "micro", "rank")
        at_least(self, 0, "clip")
        within(self, "(0, 1]", "depths")
        if self.depths[0] > self.depths[1]:
            raise ValueError("depths must be in ascending order")
        within(self, "[0, 1]", "dropout", "refusals")

    def applied(
        self, model: ChatModel, ctx: Context, cache: Path
    ) -> AbstractContextManager[ChatModel]:
        low, high = (at_depth(depth, model.depth) for depth in self.depths)
        recipe = Recipe.of(self, min(high + 1, model.depth))

        def objective(tuned: ChatModel) -> Bending:
            return Bending(self, tuned, range(low, high + 1), ctx)

        return trained_adapter(self, recipe, model, ctx, cache, objective)

    def forecast(self, lengths: Lengths) -> Forecast:
        texts = self.steps * self.micro * (2 * self.batch + self.retain)
        tokens = texts * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, 2 * tokens, tokens, passes=3 * self.micro)


class Bending:
    """The Objective: micro-batches of harmful, of safe and of retain text per step."""

    def __init__(
        self, settings: RepBend, model: ChatModel, layers: Sequence[int], ctx: Context
    ) -> None:
        self.settings, self.model, self.layers = settings, model, list(layers)
        self.texts = tokenise_split(model.chat, ctx.examples)
        self.rng = ctx.rng("repbend")

    def backward(self, step: int) -> dict[str, float]:
        parts = [self._micro_batch() for _ in range(self.settings.micro)]
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {"layers": self.layers}

    def _micro_batch(self) -> dict[str, float]:
        """Backpropagate its share of the losses, return them by name."""
        return {"safe": self._safe(), **self._bend(), "kl": self._retain()}

    def _safe(self) -> float:
        s = self.settings
        batch = collate(draw_safe_texts(self.texts, s.batch, s.refusals, self.rng))
        layers = range(self.model.depth + 1)
        tuned, base = tuned_and_base(self.model, batch, layers, batch.response)
        loss = masked_mean(l2(tuned, base), None)
        (s.alpha * loss / s.micro).backward()
        return loss.item()

    def _bend(self) -> dict[str, float]:
        batch = collate(draw_texts(self.texts.harmful, self.settings.batch, self.rng))
        tokens = batch.response | batch.last_prompt_token
        tuned, base = tuned_and_base(self.model, batch, self.layers, tokens)
        last = batch.last_prompt_token[tokens].to(tuned.device)
        forget = -masked_mean(l2(tuned[:, ~last], base[:, ~last]), None)
        spread = dissimilarity(tuned[:, last])
        s = self.settings
        ((s.beta * forget + s.gamma * spread) / s.micro).backward()
        return {"forget": forget.item(), "cosine": spread.item()}

    def _retain(self) -> float:
        batch = collate(draw_texts(self.texts.harmless, self.settings.retain, self.rng))
        _, tuned = self.model.forward(batch.ids, batch.all_text, logits=True)
        with without_adapter(self.model):
            _, base = self.model.forward(batch.ids, batch.all_text, logits=True)
        total = kl_divergence(base, tuned, None, self.settings.temperature, "base||tuned", "mean")
        # Summed over tokens and averaged over texts, as in the released code
        loss = total * batch.all_text.sum() / len(batch.ids)
        (self.settings.epsilon * loss / self.settings.micro).backward()
        return loss.item()


def dissimilarity(states: Tensor) -> Tensor:
    """The mean over layers and pairs i != j of 1 - cos(a_i, a_j), of states (layers, n, d)."""
    n = states.shape[1]
    pairs = cosine(states[:, :, None], states[:, None])
    same = torch.eye(n, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0).sum((1, 2)).mean() / max(1, n * (n - 1))
