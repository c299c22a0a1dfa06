"""Circuit breakers by representation rerouting (Zou, Phan, Wang, et al., 2406.04313).

With h the undefended and h' the tuned states, on harmful answers c and on retain text r:

    L_RR  = mean over layers S and tokens of c of ReLU(cos(h'(c), h(c)))
    L_ret = mean over layers 0..max S and tokens of r of |h'(r) - h(r)|_2
    L     = c_s(t) L_RR + c_r(t) L_ret,   c_s = alpha (1 - t / 2T),   c_r = alpha t / 2T

The retain text is a mix of answers to harmless requests, answers to requests that only look harmful
and refusals of harmful ones. The Llama-3 recipe empties the user turn of half of all texts, of
retain texts as of harmful ones: if only harmful texts had an empty user turn, the adapter would
learn to break whatever follows one.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from robench.config import at_least, not_empty, within
from robench.errors import Failure
from robench.model import ChatModel, at_depth
from robench.training import (
    BaseStates,
    Batch,
    Recipe,
    Text,
    collate,
    draw_texts,
    is_near_harmful,
    l2,
    masked_mean,
    split_examples,
    tokenise,
    trained_adapter,
    triplet_hinge,
)
from robench.types import Context, Forecast, Lengths

# Texts of the retain set in the released code, by kind: UltraChat, 230 XSTest answers 50 times, and
# 2,000 refusals twice, those only in the Llama-3 recipe.
ULTRACHAT, XSTEST, REFUSALS = 10_001, 230 * 50, 2_000 * 2
LLAMA3 = ULTRACHAT + XSTEST + REFUSALS


@dataclass(frozen=True)
class CircuitBreaker:
    """Make the states of harmful answers orthogonal to what they were, keep all others in place.

    The preset `paper` is the released recipe for Llama-3, `paper_mistral` the one for Mistral.

    Differs: the adapter is on the blocks up to the last layer of S; the published one is on one
    block more, which only L_ret trains. Texts are drawn with replacement, and the switch is drawn
    each time, not once per text. Of a conversation the first reply alone is retained, not all.
    """

    alpha: float = 10.0
    depths: tuple[float, ...] = (10 / 32, 20 / 32)  # S, as fractions of the depth
    steps: int = 150
    batch: int = 16  # harmful answers, and as many retain texts
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    blank: float = 0.5  # probability of an empty user turn, for harmful and for retain texts
    near_harmful: float = XSTEST / LLAMA3  # share of the retain text: answers to harmless requests
    # that only look harmful (XSTest in the paper)
    refusals: float = REFUSALS / LLAMA3  # share of the retain text: refusals of harmful requests
    clip: float = 1.0  # norm of the gradient: HF Trainer's default, which accelerate hands on
    spread: float = 1e-4  # see Recipe; in the paper bf16 rounding breaks the symmetry
    padded: int = 1024  # row length over which L_ret is averaged, padding as zeros; 0: real tokens
    checkpointing: bool = True  # recompute blocks in the backward pass, as released

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "paper_mistral": {
            "alpha": 5.0,
            "blank": 0.0,
            "near_harmful": XSTEST / (ULTRACHAT + XSTEST),
            "refusals": 0.0,
        },
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
        at_least(self, 0, "clip")
        within(self, "[0, 1]", "dropout", "blank", "refusals", "near_harmful")
        if self.refusals + self.near_harmful > 1:
            raise ValueError("refusals and near_harmful are shares of one mix: at most 1 together")
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
        self.harmful, self.retain = switched_texts(model, ctx)
        self.shares = retain_shares(settings, self.retain)
        draws = settings.steps * settings.batch
        circuit, retain = self.harmful.all(), [t for k in self.shares for t in self.retain[k].all()]
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
        """The layers S, the shares of the retain text, and which of its kinds were not given."""
        notes: dict[str, object] = {"layers": self.layers, "retain_shares": dict(self.shares)}
        missing = [MISSING[kind] for kind in MISSING if self._lacks(kind)]
        return {**notes, "warnings": missing} if missing else notes

    def _lacks(self, kind: str) -> bool:
        return kind not in self.shares and getattr(self.settings, kind) > 0

    def _circuit_batch(self) -> Batch:
        return collate(self.harmful.draw(self.settings.batch, self.settings.blank, self.rng))

    def _retain_batch(self) -> Batch:
        """Texts whose kinds are drawn by their shares, and blanked with the same probability."""
        s = self.settings
        weights = torch.tensor(list(self.shares.values()))
        kinds = torch.multinomial(weights, s.batch, replacement=True, generator=self.rng)
        counts = kinds.bincount(minlength=len(weights)).tolist()
        drawn = zip(self.shares, counts, strict=True)
        return collate([t for k, n in drawn for t in self.retain[k].draw(n, s.blank, self.rng)])


class Switched(NamedTuple):
    """Texts as they are, and the same replies after an empty user turn."""

    whole: list[Text]
    blanked: list[Text]

    def all(self) -> list[Text]:
        return self.whole + self.blanked

    def draw(self, size: int, blank: float, rng: torch.Generator) -> list[Text]:
        """`size` texts, each with an empty user turn with probability `blank`."""
        empty = int((torch.rand(size, generator=rng) < blank).sum())
        return draw_texts(self.blanked, empty, rng) + draw_texts(self.whole, size - empty, rng)


# What a training without a kind of retain text is warned of; keys are fields of CircuitBreaker.
MISSING = {
    "near_harmful": "no answers to requests that only look harmful were given: their share of the "
    "retain text went to other kinds",
    "refusals": "no refusals of harmful requests were given: their share of the retain text went "
    "to other kinds",
}


def switched_texts(model: ChatModel, ctx: Context) -> tuple[Switched, dict[str, Switched]]:
    """The harmful answers, and the retain texts by kind, without kinds that have none.

    Raises:
        Failure: there are no answers to harmful requests, or none to harmless ones.
    """
    split = split_examples(ctx.examples)
    kinds = {
        "harmful": split.harmful,
        "harmless": [e for e in split.harmless if not is_near_harmful(e)],
        "near_harmful": [e for e in split.harmless if is_near_harmful(e)],
        "refusals": split.refused,
    }
    texts = {
        kind: Switched(*(tokenise(model.chat, part, blank) for blank in (False, True)))
        for kind, part in kinds.items()
        if part
    }
    return texts.pop("harmful"), texts


def retain_shares(settings: CircuitBreaker, retain: Mapping[str, Switched]) -> dict[str, float]:
    """The share of each kind of retain text; what is missing is divided among the others."""
    wanted = {
        "harmless": 1 - settings.near_harmful - settings.refusals,
        "near_harmful": settings.near_harmful,
        "refusals": settings.refusals,
    }
    shares = {kind: share for kind, share in wanted.items() if kind in retain and share > 0}
    if not shares:
        raise Failure(
            "the training data has no retain text of the kinds that circuit_breaker is set to draw"
        )
    return {kind: round(share / sum(shares.values()), 6) for kind, share in shares.items()}


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
