"""SCAV, safety concept activation vectors (Xu, Huang, Chen, Wang, 2404.12038).

A linear probe per layer tells harmful from harmless instructions, P_m(e) = sigmoid(w . e + b). In
every layer whose probe is right on more than P1 of held-out instructions, and wherever P_m(e) >
P0, the state moves by the smallest shift that takes it to P0:

    e <- e + eps v,   v = w / |w|,   eps = 1[P_m(e) > P0] (logit(P0) - b - w . e) / |w|

Later layers see what the earlier ones left.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from robench.model import ChatModel, Probes, perturbation, perturbation_norms
from robench.types import Attempt, Behavior, Context, Edit, Forecast, Lengths, Prompt, user

from .steering import ROLES, Positions, among, best, forecast, probes, read

WEAK = "below-p1"  # the tag of attempts where no probe was accurate enough: the best one acts


@dataclass(frozen=True)
class SCAV:
    """Closed-form shifts against linear probes.

    `p0` is a grid: where it has more than one value, the one that breaks most `tune` behaviors is
    taken, of equals the largest.
    """

    p0: tuple[float, ...] = (1e-4,)  # 1e-3 in the published code
    p1: float = 0.9
    positions: Positions = "each"
    transfer: bool = False  # fit the probes on the undefended model
    pairs: int = 140  # of references, at most

    needs: ClassVar[tuple[str, ...]] = ("references", "tune")
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "default": {"p0": (5e-2, 1e-2, 1e-3, 1e-4)},
        "demo": {"p0": (5e-2, 1e-2, 1e-3, 1e-4), "positions": "last"},
    }

    def __post_init__(self) -> None:
        if not self.p0:
            raise ValueError("p0 must not be empty")
        if not all(0 < p < 1 for p in (*self.p0, self.p1)):
            raise ValueError("p0 and p1 must be in (0, 1)")
        if self.pairs < 1:
            raise ValueError("pairs must be at least 1")

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        yield from steered(self, model, behaviors, ctx, random=False)

    def forecast(self, lengths: Lengths) -> Forecast:
        """At most, with as many layers as there are."""
        return forecast(lengths, self.pairs, len(self.p0), lengths.depth)


@dataclass(frozen=True)
class SCAVRandom:
    """The control: shifts as long as SCAV's, at P0 as SCAV chooses it, along random directions.

    Where it breaks a model as often as SCAV does, the size of the shift did it, not the direction.
    """

    p0: tuple[float, ...] = (1e-4,)  # all fields as for scav
    p1: float = 0.9
    positions: Positions = "each"
    transfer: bool = False
    pairs: int = 140

    role: ClassVar[str] = "control"
    needs: ClassVar[tuple[str, ...]] = SCAV.needs
    presets: ClassVar[dict[str, dict[str, object]]] = SCAV.presets

    def __post_init__(self) -> None:
        SCAV(**vars(self))

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        yield from steered(SCAV(**vars(self)), model, behaviors, ctx, random=True)

    def forecast(self, lengths: Lengths) -> Forecast:
        """As SCAV's; each shift has a direction more."""
        return forecast(lengths, self.pairs, len(self.p0), 2 * lengths.depth)


def steered(
    settings: SCAV, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context, random: bool
) -> Iterator[Attempt]:
    """An attempt per behavior with the shifts of `settings`, fitted and tuned once.

    Args:
        random: whether the shifts, once chosen, go along random directions.
    """
    grid = sorted(settings.p0, reverse=True)
    roles = ROLES[settings.positions]

    def shifts(found: Probes, p0: float) -> tuple[Shift, ...]:
        return tuple(
            Shift(l, found.weight[l], float(found.bias[l]), p0, roles)
            for l in active(found.accuracy, settings.p1)
        )

    def fitted() -> Mapping[str, Tensor]:
        found = probes(*read(model, ctx, settings.pairs, settings.transfer))
        chosen = best(model, [shifts(found, p0) for p0 in grid], ctx)
        return {**found._asdict(), "chosen": torch.tensor(chosen)}

    known = ctx.memo("scav", fitted)
    found = Probes(known["weight"], known["bias"], known["accuracy"])
    chosen: tuple[Edit, ...] = shifts(found, grid[int(known["chosen"])])
    weak = bool(found.accuracy[chosen[0].layer] <= settings.p1)
    if random:
        chosen = tuple(
            RandomShift(
                **vars(shift), along=_unit(model.width, ctx.rng("scav_random", shift.layer))
            )
            for shift in chosen
        )
    for behavior in behaviors:
        yield Attempt(
            behavior,
            Prompt(user(behavior.request), edits=chosen),
            tag=WEAK if weak else "",
            final=True,
            tries=len(grid) if len(grid) > 1 else 0,
        )


def active(accuracy: Tensor, p1: float) -> list[int]:
    """The layers 1..L more accurate than P1, the most accurate one where none is.

    Differs: probe l acts on the output of block l, on which it was fitted; the published code
    fits on the block's input and shifts its output.
    """
    layers = range(1, len(accuracy))
    chosen = [l for l in layers if accuracy[l] > p1]
    return chosen or [max(layers, key=lambda l: float(accuracy[l]))]


@dataclass(frozen=True)
class Shift:
    """Takes states to P0 by the smallest shift at the positions whose role is one of `roles`."""

    layer: int
    weight: Tensor
    bias: float
    p0: float
    roles: tuple[int, ...]

    def __call__(self, h: Tensor, role: Tensor) -> Tensor:
        shift = perturbation(h.flatten(0, 1), self.weight, self.bias, self.p0).view_as(h)
        return torch.where(among(role, self.roles) & (shift != 0), h + shift, h)


@dataclass(frozen=True)
class RandomShift:
    """Where `Shift` would act, moves states as far along a unit vector (d,)."""

    layer: int
    weight: Tensor
    bias: float
    p0: float
    roles: tuple[int, ...]
    along: Tensor

    def __call__(self, h: Tensor, role: Tensor) -> Tensor:
        length = perturbation_norms(h.flatten(0, 1), self.weight, self.bias, self.p0).view(
            *h.shape[:2], 1
        )
        moved = h + length * self.along.to(h.device)
        return torch.where(among(role, self.roles) & (length > 0), moved, h)


def _unit(width: int, rng: torch.Generator) -> Tensor:
    """A random unit vector (d,)."""
    return functional.normalize(torch.randn(width, generator=rng), dim=0)
