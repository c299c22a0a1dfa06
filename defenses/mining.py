"""Adversarial hard negatives (CRL, Simko et al., 2506.11938; its released code).

An affine residual module h <- h + (W h + b) behind one early decoder block is trained to make the
defended model give harmful answers. The states of harmful answers under it are hard examples: they
are where an attacker would move them to.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from robench.errors import Failure
from robench.model import ChatModel, at_depth, edited
from robench.training import Batch, Text, collate, draw_texts, without_adapter
from robench.types import Context

SEEN = 100  # answers whose mean loss ends a module's training (released code)
RECENT = 10  # iterations whose mean loss decides whether a module is used (released code)
SAMPLE = 64  # answers that the undefended loss is measured on, about


class Settings(Protocol):
    """What mining is told; a defense passes itself."""

    @property
    def every(self) -> int: ...  # steps between modules
    @property
    def iterations(self) -> int: ...  # of training a new module, at most
    @property
    def mined(self) -> int: ...  # harmful answers per iteration
    @property
    def mining_rate(self) -> float: ...
    @property
    def init(self) -> Literal["identity", "eye"]: ...
    @property
    def early(self) -> float: ...  # the share of the blocks, from the first, that a module is in
    @property
    def chance(self) -> float: ...  # that a batch is attacked
    @property
    def enough(self) -> float: ...  # times the undefended loss: training ends
    @property
    def bound(self) -> float: ...  # times the undefended loss: the module is used


@dataclass(frozen=True)
class Affine:
    """An Edit at every position: h + (W h + b), in fp32, W (d, d) and b (d,)."""

    layer: int
    weight: Tensor
    bias: Tensor

    def __call__(self, h: Tensor, role: Tensor) -> Tensor:
        weight, bias = self.weight.to(h.device), self.bias.to(h.device)
        with torch.autocast(h.device.type, enabled=False):
            return h + functional.linear(h.float(), weight, bias).to(h.dtype)


class Mining:
    """One attack module at a time, trained anew every `every` steps and kept up in between.

    Differs: a module starts as the identity unless `init` is "eye", and keeps one Adam for its
    life, where the released code takes a fresh one for each iteration of upkeep; answers are drawn
    with replacement.
    """

    def __init__(
        self, settings: Settings, model: ChatModel, harmful: Sequence[Text], ctx: Context
    ) -> None:
        self.settings, self.model, self.harmful = settings, model, harmful
        self.rng = ctx.rng("mining")
        with without_adapter(model):
            batches = [self._batch() for _ in range(math.ceil(SAMPLE / settings.mined))]
            losses = [answer_loss(model, batch).item() for batch in batches]
        self.undefended = _finite(sum(losses) / len(losses))
        self.module: Affine | None = None
        self.recent: list[float] = []  # losses of the module's last iterations
        self.used, self.asked = 0, 0  # batches
        self.log: list[tuple[float, ...]] = []  # step, layer, iterations, first and last loss

    def advance(self, step: int) -> None:
        """Train a new module at every `every`-th step, and the old one a little at the others.

        The model is in eval mode meanwhile and its adapter frozen.
        """
        new = step % self.settings.every == 0
        if not new and self.module is None:
            return
        with _frozen(self.model):
            if new:
                self._begin()
                losses = self._train()
                assert self.module is not None
                self.log.append((step, self.module.layer, len(losses), losses[0], losses[-1]))
                self.recent = losses[-RECENT:]
            else:
                self.recent = [*self.recent, self._iterate()][-RECENT:]

    @contextmanager
    def attacked(self, ids: Tensor, rows: int) -> Iterator[None]:
        """Perhaps let the module act on the first `rows` of ids (batch, time).

        The backward pass belongs inside: checkpointed blocks are computed again there.
        """
        self.asked += 1
        drawn = torch.rand((), generator=self.rng).item() < self.settings.chance
        if self.module is None or not drawn or not self.works():
            yield
            return
        self.used += 1
        module = Affine(self.module.layer, self.module.weight.detach(), self.module.bias.detach())
        with _acting(self.model, module, ids, rows):
            yield

    def works(self) -> bool:
        """Whether the module's recent loss is below its bound."""
        limit = self.settings.bound * self.undefended
        return bool(self.recent) and sum(self.recent) / len(self.recent) < limit

    def state(self) -> dict[str, Tensor]:
        kept = {
            "rng": self.rng.get_state(),
            "recent": torch.tensor(self.recent, dtype=torch.float64),
            "log": torch.tensor(self.log, dtype=torch.float64),
            "counts": torch.tensor([self.used, self.asked]),
        }
        if self.module is not None:
            kept["layer"] = torch.tensor(self.module.layer)
            for name in ("weight", "bias"):
                parameter = getattr(self.module, name)
                kept[name] = parameter.detach()
                for key, value in self.adam.state[parameter].items():
                    kept[f"{name}.{key}"] = value
        return kept

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        self.recent = state["recent"].tolist()
        self.log = [tuple(row) for row in state["log"].tolist()]
        self.used, self.asked = state["counts"].tolist()
        if "layer" in state:
            self._place(int(state["layer"]), state["weight"], state["bias"])
            for name in ("weight", "bias"):
                parameter = getattr(self.module, name)
                self.adam.state[parameter] = {
                    key.partition(".")[2]: value.to(
                        "cpu" if key.endswith(".step") else parameter.device
                    )
                    for key, value in state.items()
                    if key.startswith(f"{name}.")
                }

    def notes(self) -> dict[str, object]:
        names = ("step", "layer", "iterations", "first_loss", "last_loss")
        return {
            "undefended_loss": round(self.undefended, 6),
            "attacked": self.used,
            "micro_batches": self.asked,
            "modules": [
                {n: int(x) if x == int(x) else round(x, 6) for n, x in zip(names, row, strict=True)}
                for row in self.log
            ],
        }

    def _begin(self) -> None:
        """A new module behind a block drawn from the early ones."""
        last = at_depth(self.settings.early, self.model.depth)
        layer = 1 + int(torch.randint(last, (), generator=self.rng))
        weight, bias = (
            torch.zeros(self.model.width, self.model.width),
            torch.zeros(self.model.width),
        )
        if self.settings.init == "eye":
            weight, bias = torch.eye(self.model.width), bias + 1e-7
        self._place(layer, weight, bias)

    def _place(self, layer: int, weight: Tensor, bias: Tensor) -> None:
        device = self.model.device
        self.module = Affine(
            layer, weight.to(device).requires_grad_(), bias.to(device).requires_grad_()
        )
        self.adam = torch.optim.Adam(
            [self.module.weight, self.module.bias], lr=self.settings.mining_rate
        )

    def _train(self) -> list[float]:
        losses: list[float] = []
        window = math.ceil(SEEN / self.settings.mined)
        limit = self.settings.enough * self.undefended
        while len(losses) < self.settings.iterations:
            losses.append(self._iterate())
            if len(losses) >= window and sum(losses[-window:]) / window < limit:
                break
        return losses

    def _iterate(self) -> float:
        assert self.module is not None
        batch = self._batch()
        with _acting(self.model, self.module, batch.ids, len(batch.ids)):
            loss = answer_loss(self.model, batch)
            loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        return _finite(loss.item())

    def _batch(self) -> Batch:
        return collate(draw_texts(self.harmful, self.settings.mined, self.rng))


def answer_loss(model: ChatModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of a right-padded batch's reply tokens, given what stands before."""
    before = batch.response.roll(-1, dims=1)
    _, logits = model.forward(batch.ids, batch.all_text, tokens=before, logits=True)
    labels = batch.ids[batch.response].to(logits.device)
    return functional.cross_entropy(logits.float(), labels)


def _finite(loss: float) -> float:
    """The loss, if a module can be trained on it.

    Raises:
        Failure: it cannot.
    """
    if not math.isfinite(loss):
        raise Failure(f"mining stopped: the loss of harmful answers is {loss}")
    return loss


def _acting(
    model: ChatModel, module: Affine, ids: Tensor, rows: int
) -> AbstractContextManager[None]:
    """The module on the first `rows` of ids, at all positions."""
    return edited(model.network, [(module, torch.arange(rows))], torch.zeros_like(ids))


@contextmanager
def _frozen(model: ChatModel) -> Iterator[None]:
    """Eval mode, and no gradients for the adapter."""
    training = model.network.training
    trained = [p for p in model.adapter.parameters() if p.requires_grad]
    model.network.eval()
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.network.train(training)
