"""GCG, greedy coordinate gradient (Zou, Wang, Carlini, Nasr, Kolter, Fredrikson, 2307.15043).

Algorithm 1: at a suffix x of S tokens, the gradient of the target's cross-entropy f in every
one-hot token, g_i . E_eff[v] (S x vocab), names the K most promising replacements per position; W
single swaps are drawn from them, scored exactly, and x becomes the best of them, even if it is
worse than x.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robench.model import ChatModel
from robench.slots import Slots
from robench.types import GAP, Attempt, Behavior, Context, Forecast, Lengths, user


@dataclass(frozen=True)
class GCG:
    """A suffix of tokens behind the behavior, found by gradient-guided single swaps.

    The final attempt is the suffix of least loss.
    """

    steps: int = 500  # Zou et al., experiments/configs
    width: int = 512  # W, candidates per step (batch_size there)
    topk: int = 256  # K, replacements per position
    init: str = "! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! ! !"  # 20 tokens on most tokenizers
    every: int = 50  # steps between recorded attempts (test_steps there)

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {"steps": 10, "width": 256, "topk": 128, "init": "!!!!!!!!!!", "every": 5},
    }

    def __post_init__(self) -> None:
        for name in ("steps", "width", "topk", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if not self.init:
            raise ValueError("init must not be empty")

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        slots = model.slots(
            [user(f"{b.request}{GAP}") for b in behaviors], [b.target for b in behaviors]
        )
        generators = [ctx.rng("gcg", b.id) for b in behaviors]
        ids = slots.spell(self.init)  # (n, k)
        loss = slots.loss(ids[:, None])[:, 0]
        best_ids, best_loss = ids.clone(), loss.clone()
        traces = [[value] for value in loss.tolist()]
        for step in range(1, self.steps + 1):
            gradient = token_gradient(slots, model, ids)
            swaps = sample(gradient, ids, model.allowed, self.width, self.topk, generators, slots)
            losses = slots.loss(swaps.ids).masked_fill(~swaps.real, math.inf)
            loss, chosen = losses.min(1)
            alive = loss.isfinite()  # no candidate survived: stay, the next draw differs
            ids[alive] = swaps.ids[alive, chosen[alive]]
            better = loss < best_loss
            best_ids[better], best_loss[better] = ids[better], loss[better]
            for trace, value in zip(traces, best_loss.tolist(), strict=True):
                trace.append(value)
            final = step == self.steps
            if final or step % self.every == 0:
                for i, behavior in enumerate(behaviors):
                    yield Attempt(
                        behavior,
                        slots.prompt(i, best_ids[i]),
                        step,
                        final=final,
                        trace=tuple(traces[i]),
                    )

    def forecast(self, lengths: Lengths) -> Forecast:
        read = lengths.tokens(self.init) + lengths.target
        return Forecast(self.steps, self.steps * (self.width + 1) * read, self.steps * read)


@dataclass(frozen=True)
class Swaps:
    """Candidates ids (n, w, k); `real` (n, w) is False at places that were left unfilled."""

    ids: Tensor
    real: Tensor


def token_gradient(slots: Slots, model: ChatModel, ids: Tensor) -> Tensor:
    """The gradient (n, k, vocab) of each row's loss in its one-hot tokens, in fp32, on the CPU."""
    soft = model.embed(ids).float().requires_grad_()
    (gradient,) = torch.autograd.grad(slots.loss_of_embeddings(soft).sum(), soft)
    return (gradient @ model.embedding.float().T).cpu()


def sample(
    gradient: Tensor,
    ids: Tensor,
    allowed: Tensor,
    width: int,
    topk: int,
    generators: Sequence[torch.Generator],
    slots: Slots,
) -> Swaps:
    """W distinct single swaps per row that survive tokenisation, spread evenly over positions.

    As in the authors' `sample_control`, each position gets its even share of the W swaps, drawn
    uniformly from its K best tokens.

    Differs: drawn without replacement and never the token that stands there, so no candidate is
    scored twice or for nothing. Swaps that do not survive the whole prompt's re-tokenisation are
    replaced by further draws of the same position, not by copies of the current suffix.
    """
    n, k, _ = gradient.shape
    scores = gradient.masked_fill(~allowed, math.inf)
    scores = scores.scatter(2, ids.cpu()[..., None], math.inf)
    limit = min(topk, int(scores.isfinite().sum(2).min()))
    if limit == 0:
        raise ValueError("the tokenizer leaves no token to swap in")
    share = [(j + 1) * width // k - j * width // k for j in range(k)]
    drawn = min(limit, math.ceil(1.5 * max(share)))  # spares for those that do not survive
    top = scores.topk(limit, dim=2, largest=False).indices  # (n, k, limit)
    order = torch.stack([torch.rand(k, limit, generator=g) for g in generators]).argsort(2)
    tokens = top.gather(2, order[..., :drawn])  # (n, k, drawn)
    candidates = ids.cpu()[:, None, None].expand(n, k, drawn, k).clone()
    position = torch.arange(k)
    candidates[:, position, :, position] = tokens.transpose(0, 1)
    survives = slots.survives(candidates.view(n, k * drawn, k)).view(n, k, drawn)
    # The first `share` survivors of each position, in the order of drawing
    kept = survives & (survives.cumsum(2) <= torch.tensor(share)[:, None])
    kept = kept.view(n, -1)
    most = max(1, int(kept.sum(1).max()))
    first = kept.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    picked = candidates.view(n, k * drawn, k).gather(1, first[..., None].expand(-1, -1, k))
    return Swaps(picked, kept.gather(1, first))
