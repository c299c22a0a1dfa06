"""Direct preference optimisation (Rafailov, Sharma, Mitchell, et al., 2305.18290, released code).

With p a prompt, w its preferred and l its other reply, pi the tuned and ref the undefended model:

    L = - mean log sigmoid(beta (log pi(w|p) / ref(w|p) - log pi(l|p) / ref(l|p)))

Of a harmful request the refusal is preferred to the answer, of a harmless one the answer to a
refusal. The reference is the same weights with the adapter off.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from robench.config import above, at_least, within
from robench.errors import Failure
from robench.model import ChatModel
from robench.training import (
    Batch,
    Recipe,
    Text,
    collate,
    reply_logits,
    split_examples,
    tokenise,
    trained_adapter,
    without_adapter,
)
from robench.types import Context, Example, Forecast, Lengths

# Pairs of Anthropic's HH, on which the paper trains: 42,537 are on harmlessness.
HH, HH_HARMLESS = 160_800, 42_537
BATCH = 64


@dataclass(frozen=True)
class DPO:
    """Prefer refusals of harmful requests to answers, and answers to harmless ones to refusals.

    Differs: pairs are made of the training text, a request with its own answer and its own refusal
    (or, of a harmless one, with a refusal of some harmful request); the paper's are two samples of
    a model, compared by people. A LoRA adapter is trained, where the paper trains all weights at
    5e-7: its rate, size and dropout are those of Zephyr's recipe for adapters (Tunstall et al.,
    2310.16944). AdamW in the place of RMSprop, no warm-up; pairs are drawn with replacement.
    """

    beta: float = 0.1
    steps: int = HH // BATCH  # one epoch of the paper's set
    batch: int = BATCH  # pairs
    harmless: float = 1 - HH_HARMLESS / HH  # share of the pairs that are of harmless requests
    limit: int = 512  # tokens of a reply; in the paper of prompt and reply together
    rate: float = 5e-6  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    clip: float = 10.0  # norm of the gradient
    checkpointing: bool = False

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {"steps": 150, "batch": 8, "harmless": 0.5, "rate": 3e-4, "dropout": 0.0},
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "rank", "limit")
        at_least(self, 0, "clip")
        above(self, 0, "rate", "beta")
        within(self, "[0, 1]", "dropout", "harmless")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        recipe = Recipe.of(self, model.depth)

        def objective(tuned: ChatModel) -> Preferring:
            return Preferring(self, tuned, ctx)

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        text = lengths.prompt + min(lengths.reply, self.limit)
        tokens = 2 * self.steps * self.batch * text
        return Forecast(self.steps, 2 * tokens, tokens)


class Pair(NamedTuple):
    """Two replies to one request."""

    preferred: Text
    other: Text


class Preferring:
    """The Objective: one batch of pairs per step."""

    def __init__(self, settings: DPO, model: ChatModel, ctx: Context) -> None:
        self.settings, self.model = settings, model
        self.rng = ctx.rng("dpo")
        self.harmful, self.harmless = (
            tokenised_pairs(model, pairs, settings.limit) for pairs in pairs_of(ctx.examples)
        )

    def backward(self, step: int) -> dict[str, float]:
        pairs = self._draw()
        batch = collate([*(p.preferred for p in pairs), *(p.other for p in pairs)])
        tuned = log_likelihoods(self.model, batch)
        with without_adapter(self.model):
            base = log_likelihoods(self.model, batch)
        margins = (tuned - base).unflatten(0, (2, len(pairs)))
        margin = margins[0] - margins[1]
        loss = preference_loss(margin, self.settings.beta)
        loss.backward()
        return {"preference": loss.item(), "preferred": (margin > 0).float().mean().item()}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        return {"rng": self.rng.get_state()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])

    def notes(self) -> dict[str, object]:
        return {"pairs": {"harmful": len(self.harmful), "harmless": len(self.harmless)}}

    def _draw(self) -> list[Pair]:
        count = round(self.settings.harmless * self.settings.batch)
        drawn = []
        for pairs, size in ((self.harmless, count), (self.harmful, self.settings.batch - count)):
            rows = torch.randint(len(pairs), (size,), generator=self.rng).tolist()
            drawn += [pairs[row] for row in rows]
        return drawn


def pairs_of(
    examples: Sequence[Example],
) -> tuple[list[tuple[Example, Example]], list[tuple[Example, Example]]]:
    """(preferred, other) of harmful and of harmless requests, in the order of the examples.

    Raises:
        Failure: no harmful request is both answered and refused.
    """
    split = split_examples(examples)
    refusals = {e.behavior.request: e for e in split.refused}
    answered = [e for e in split.harmful if e.behavior.request in refusals]
    if not answered:
        raise Failure(
            "the training data has no harmful request with both an answer and a refusal, which dpo "
            "compares"
        )
    harmful = [(refusals[e.behavior.request], e) for e in answered]
    harmless = [
        (e, replace(e, reply=split.refused[number % len(split.refused)].reply, kind="refusal"))
        for number, e in enumerate(split.harmless)
    ]
    return harmful, harmless


def tokenised_pairs(
    model: ChatModel, pairs: Sequence[tuple[Example, Example]], limit: int
) -> list[Pair]:
    """Pairs through the chat template; those with a prompt longer than `limit` are left out."""
    sides = (
        tokenise(model.chat, side, limit=limit, ended=True) for side in zip(*pairs, strict=True)
    )
    return [Pair(*texts) for texts in zip(*sides, strict=True)]


def log_likelihoods(model: ChatModel, batch: Batch) -> Tensor:
    """log P of each reply of a batch, the sum over its tokens: (batch,), differentiable."""
    logits, ids = reply_logits(model, batch)
    rows = batch.response.nonzero()[:, 0].to(logits.device)
    totals = torch.zeros(len(batch.ids), device=logits.device)
    return totals.index_add(0, rows, -cross_entropy(logits, ids, reduction="none"))


def preference_loss(margin: Tensor, beta: float) -> Tensor:
    """- mean log sigmoid(beta margin), of margins (pairs,) of log likelihood ratios."""
    return -logsigmoid(beta * margin).mean()
