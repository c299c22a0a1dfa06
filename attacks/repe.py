"""RepE, representation engineering (Zou, Phan, Chen, Campbell, et al., 2310.01405).

A direction u per layer is read from the states of harmful and harmless instructions at their last
token, and added with strength alpha while the model reads the prompt and replies, so that a harmful
request is represented as a harmless one:

    h_l <- h_l + alpha u_l,   u_l = +-PC1 of randomly ordered pair differences, towards harmless
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from robench.config import at_least, not_empty
from robench.model import ChatModel
from robench.types import Attempt, Behavior, Context, Forecast, Lengths, Prompt, user

from .steering import (
    ROLES,
    Positions,
    best,
    forecast,
    has_role,
    read_references,
)

Reading = Literal["pca", "mean_difference", "cluster_mean"]


@dataclass(frozen=True)
class RepE:
    """One vector per layer, the same for all behaviors.

    `layers`, `strength` and `positions` are grids: of several settings the one that breaks most
    `tune` behaviors is chosen (see `steering.best`).
    """

    # cluster_mean is the difference of means itself, mean_difference its unit vector
    reading: Reading = "pca"
    # each entry is layer numbers or a range of depth fractions; this is the 7B notebook's
    layers: tuple[tuple[int, ...] | tuple[float, float], ...] = ((0.34, 0.47),)
    strength: tuple[float, ...] = (4.0,)  # alpha; 0 does not change the model
    # absolute: alpha times the direction as read; relative: in units of the layer's mean norm
    scale: Literal["absolute", "relative"] = "absolute"
    positions: tuple[Positions, ...] = ("all",)
    transfer: bool = False  # read the directions on the undefended model
    pairs: int = 128  # of references, at most

    needs: ClassVar[tuple[str, ...]] = ("references", "tune")
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        # the authors' harmless_llama2 notebook
        "nb13b": {"layers": (tuple(range(-32, -24)),)},
        "nb7b": {"layers": (tuple(range(-22, -17)),)},
        # circuit-breakers-eval
        "cb": {"layers": (tuple(range(-20, -10)),), "strength": (1.0,)},
        "tuned": {
            "layers": ((0.35, 0.7), (0.225, 0.4), (0.34, 0.47)),
            "strength": (0.05, 0.1, 0.2, 0.4), "scale": "relative",
        },
        "demo": {
            "reading": "cluster_mean", "layers": ((0.34, 0.5), (0.5, 0.67)),
            "strength": (0.7, 1.0, 1.5), "positions": ("prompt", "last"),
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        not_empty(self, "layers", "strength", "positions")
        if not all(self.layers):
            raise ValueError("an entry of layers must not be empty")
        at_least(self, 0, "strength")
        at_least(self, 1, "pairs")

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        settings = [
            Setting(strength, tuple(model.layer_numbers(layers)), positions)
            for strength, layers, positions in product(
                sorted(self.strength), self.layers, self.positions
            )
        ]

        def fit() -> Mapping[str, Tensor]:
            direction = self._direction(model, settings, ctx)
            edits = [setting.edits(direction) for setting in settings]
            choice = best(model, edits, [setting.strength for setting in settings], ctx)
            return {"direction": direction, "choice": torch.tensor(choice)}

        memo = ctx.memo("repe", fit)
        chosen, at_edge = memo["choice"].tolist()
        edits = settings[chosen].edits(memo["direction"])
        for behavior in behaviors:
            yield Attempt(
                behavior,
                Prompt(user(behavior.request), edits=edits),
                final=True,
                tries=len(settings) if len(settings) > 1 else 0,
                chosen=chosen,
                edge_of_grid=bool(at_edge),
            )

    def forecast(self, lengths: Lengths) -> Forecast:
        """An upper bound, as if all layers were edited."""
        settings = len(self.strength) * len(self.layers) * len(self.positions)
        return forecast(lengths, self.pairs, settings, lengths.depth)

    def _direction(self, model: ChatModel, settings: Sequence["Setting"], ctx: Context) -> Tensor:
        """The vectors (L+1, d) that strength 1 adds, in fp32."""
        harmful, harmless = read_references(model, ctx, self.pairs, self.transfer)
        swapped = torch.rand(len(harmful), generator=ctx.rng("repe")) < 0.5
        direction = directions(self.reading, harmful, harmless, swapped)
        if self.reading == "pca":
            means = directions("mean_difference", harmful, harmless, swapped)
            agreement = functional.cosine_similarity(direction, means, dim=1)
            weak = {l for s in settings for l in s.layers if agreement[l].abs() <= 0.8}
            if weak:
                warnings.warn(
                    "repe: the principal component and the difference of means differ "
                    f"(|cos| <= 0.8) at layers {sorted(weak)}: the directions may be of little use",
                    stacklevel=2,
                )
        if self.scale == "relative":
            norm = torch.cat([harmful, harmless]).norm(dim=2).mean(0)
            direction = functional.normalize(direction, dim=1) * norm[:, None]
        return direction.float()


class Setting(NamedTuple):
    """A point of the grid."""

    strength: float
    layers: tuple[int, ...]
    positions: Positions

    def edits(self, direction: Tensor) -> tuple["AddVector", ...]:
        """The edits of this setting; none at strength 0, which is exactly the unedited model."""
        if self.strength == 0:
            return ()
        roles = ROLES[self.positions]
        return tuple(AddVector(l, self.strength * direction[l], roles) for l in self.layers)


@dataclass(frozen=True)
class AddVector:
    """Adds a vector (d,) at the positions whose role is one of `roles`."""

    layer: int
    vector: Tensor
    roles: tuple[int, ...]

    def __call__(self, h: Tensor, role: Tensor) -> Tensor:
        return torch.where(has_role(role, self.roles), h + self.vector.to(h.device), h)


def directions(reading: Reading, harmful: Tensor, harmless: Tensor, swapped: Tensor) -> Tensor:
    """The direction from harmful to harmless of each layer (layers, d), in fp64.

    pca: the first principal component of the pairs' differences, which PCA centres. If all pairs
    had the same order, the centring would remove what distinguishes the two kinds, hence `swapped`.
    Its sign is such that in most pairs the harmless state lies further along it.

    Args:
        reading: how the direction is computed.
        harmful, harmless: paired states (n, layers, d).
        swapped: (n,) True at the pairs that are subtracted the other way round.
    """
    differences = harmless.double() - harmful.double()
    mean = differences.mean(0)
    if reading == "cluster_mean":
        return mean
    if reading == "mean_difference":
        return functional.normalize(mean, dim=1)
    ordered = torch.where(swapped[:, None, None], -differences, differences)
    centred = (ordered - ordered.mean(0)).transpose(0, 1)  # (layers, n, d)
    component = torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]
    votes = (differences * component).sum(2).sign().sum(0)
    return torch.where(votes < 0, -1, 1)[:, None] * component
