"""Adversarial hard negatives (CRL, Simko et al., 2506.11938; its released code).

An affine residual module h <- h + (W h + b) after an early decoder block is trained to make the
defended model give harmful answers. The states of harmful answers with it are hard negatives: an
attacker would move them there.
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
from robench.training import Batch, Text, collate, draw_texts, evaluating, without_adapter
from robench.types import Context

WINDOW = 100  # latest answers whose mean loss ends a module's training (released code)
RECENT = 10  # latest iterations whose mean loss decides whether it is used (released code)
LITTLE = 0.75  # share of the expected use below which the record has a warning
SAMPLE = 64  # answers, about, on which the undefended loss is measured


class Settings(Protocol):
    """The settings of mining: fields that a defense must have."""

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
    def early(self) -> float: ...  # the first share of the blocks, one of which has the module
    @property
    def chance(self) -> float: ...  # that a batch is attacked
    @property
    def enough(self) -> float: ...  # nats per token: below it a module's training ends
    @property
    def bound(self) -> float: ...  # nats per token: below it a module is used


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
    """One attack module at a time: a new one every `every` steps, trained a little in between.

    Differs: a module starts as the identity unless `init` is "eye", and keeps one Adam, where the
    released code takes a new one for each later iteration; answers are drawn with replacement.
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
        self.attacked_batches, self.batches = 0, 0
        self.log: list[tuple[float, ...]] = []  # step, layer, iterations, first and last loss

    def advance(self, step: int) -> None:
        """Train a new module at every `every`-th step, and the current one a little at others.

        The model is in eval mode meanwhile, and its adapter is frozen.
        """
        is_new = step % self.settings.every == 0
        if not is_new and self.module is None:
            return
        with evaluating(self.model, gradients=True):
            if is_new:
                module = self._new_module()
                losses = self._train(module)
                self.log.append((step, module.layer, len(losses), losses[0], losses[-1]))
                self.recent = losses[-RECENT:]
            elif self.module is not None:
                self.recent = [*self.recent, self._iterate(self.module)][-RECENT:]

    @contextmanager
    def attacked(self, ids: Tensor, rows: int) -> Iterator[None]:
        """Apply the module to the first `rows` of ids (batch, time), with probability `chance`.

        The backward pass belongs inside: checkpointed blocks are recomputed there.
        """
        self.batches += 1
        drawn = torch.rand((), generator=self.rng).item() < self.settings.chance
        if self.module is None or not drawn or not self.works():
            yield
            return
        self.attacked_batches += 1
        module = Affine(self.module.layer, self.module.weight.detach(), self.module.bias.detach())
        with _module_applied(self.model, module, ids, rows):
            yield

    def works(self) -> bool:
        """Whether the module's recent loss is below its bound."""
        recent = self.recent
        return bool(recent) and sum(recent) / len(recent) < self.settings.bound

    def state(self) -> dict[str, Tensor]:
        state = {
            "rng": self.rng.get_state(),
            "recent": torch.tensor(self.recent, dtype=torch.float64),
            "log": torch.tensor(self.log, dtype=torch.float64),
            "counts": torch.tensor([self.attacked_batches, self.batches]),
        }
        if self.module is not None:
            state["layer"] = torch.tensor(self.module.layer)
            for name in ("weight", "bias"):
                parameter = getattr(self.module, name)
                state[name] = parameter.detach()
                for key, value in self.adam.state[parameter].items():
                    state[f"{name}.{key}"] = value
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        self.recent = state["recent"].tolist()
        self.log = [tuple(row) for row in state["log"].tolist()]
        self.attacked_batches, self.batches = state["counts"].tolist()
        if "layer" in state:
            module = self._set_module(int(state["layer"]), state["weight"], state["bias"])
            for name in ("weight", "bias"):
                parameter = getattr(module, name)
                self.adam.state[parameter] = {
                    key.partition(".")[2]: value.to(
                        "cpu" if key.endswith(".step") else parameter.device
                    )
                    for key, value in state.items()
                    if key.startswith(f"{name}.")
                }

    @property
    def expected(self) -> float:
        """How many batches a module that always works attacks, on average."""
        return self.settings.chance * self.batches

    def warnings(self) -> list[str]:
        """That the modules were used much less than expected, if they were."""
        if self.attacked_batches >= LITTLE * self.expected:
            return []
        return [
            f"hard negatives were used in {self.attacked_batches} of {self.batches} micro-batches, "
            f"where {self.expected:.1f} are expected: modules came late or did not reach `bound`"
        ]

    def notes(self) -> dict[str, object]:
        """Use against expectation, the loss to which thresholds compare, and all modules."""
        names = ("step", "layer", "iterations", "first_loss", "last_loss")
        return {
            "undefended_loss": round(self.undefended, 6),
            "attacked": self.attacked_batches,
            "micro_batches": self.batches,
            "expected": round(self.expected, 2),
            "share_of_expected": round(self.attacked_batches / max(self.expected, 1e-9), 4),
            "modules": [
                {n: int(x) if x == int(x) else round(x, 6) for n, x in zip(names, row, strict=True)}
                for row in self.log
            ],
        }

    def _new_module(self) -> Affine:
        """A new module after a block drawn from the early ones."""
        last, d = at_depth(self.settings.early, self.model.depth), self.model.width
        layer = 1 + int(torch.randint(last, (), generator=self.rng))
        if self.settings.init == "eye":
            return self._set_module(layer, torch.eye(d), torch.full((d,), 1e-7))
        return self._set_module(layer, torch.zeros(d, d), torch.zeros(d))

    def _set_module(self, layer: int, weight: Tensor, bias: Tensor) -> Affine:
        device = self.model.device
        weight, bias = weight.to(device).requires_grad_(), bias.to(device).requires_grad_()
        self.module = Affine(layer, weight, bias)
        self.adam = torch.optim.Adam([weight, bias], lr=self.settings.mining_rate)
        return self.module

    def _train(self, module: Affine) -> list[float]:
        losses: list[float] = []
        window = math.ceil(WINDOW / self.settings.mined)
        while len(losses) < self.settings.iterations:
            losses.append(self._iterate(module))
            if len(losses) >= window and sum(losses[-window:]) / window < self.settings.enough:
                break
        return losses

    def _iterate(self, module: Affine) -> float:
        batch = self._batch()
        with _module_applied(self.model, module, batch.ids, len(batch.ids)):
            loss = answer_loss(self.model, batch)
            loss.backward()
        self.adam.step()
        self.adam.zero_grad()
        return _finite(loss.item())

    def _batch(self) -> Batch:
        return collate(draw_texts(self.harmful, self.settings.mined, self.rng))


def answer_loss(model: ChatModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of a right-padded batch's reply tokens, given all tokens before them."""
    before = batch.response.roll(-1, dims=1)
    _, logits = model.forward(batch.ids, batch.all_text, tokens=before, logits=True)
    labels = batch.ids[batch.response].to(logits.device)
    return functional.cross_entropy(logits.float(), labels)


def _finite(loss: float) -> float:
    """The loss.

    Raises:
        Failure: it is NaN or infinite.
    """
    if not math.isfinite(loss):
        raise Failure(f"mining stopped: the loss of harmful answers is {loss}")
    return loss


def _module_applied(
    model: ChatModel, module: Affine, ids: Tensor, rows: int
) -> AbstractContextManager[None]:
    """Apply the module to the first `rows` of ids, at all positions."""
    return edited(model.network, [(module, torch.arange(rows))], torch.zeros_like(ids))
