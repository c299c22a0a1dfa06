"""SCAV by prompt (Xu, Huang, Chen, Wang, 2404.12038): AutoDAN's search with another fitness.

With P_m the probe of the last layer L, e_S the state at the last token of the attacked prompt and
e_0 that of the plain request, the search minimises over templates S

    J(S) = P_m(e_S) |e_S - e_0|_2

It needs neither targets nor logits. Differs: e_0 belongs to the behavior; the published code takes
the state of one constant string for all of them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from robench.config import at_least
from robench.model import ChatModel
from robench.types import Attempt, Behavior, Context, Forecast, Lengths, Prompt, user

from . import genetic
from .steering import ProbeStates, fit_layer_probes, read_references


@dataclass(frozen=True)
class SCAVPrompt:
    """A message around the request that the last layer's probe classifies as harmless.

    The final attempt is the member with the lowest J. Fields from `steps` to `synonyms` as for
    autodan, with the defaults of SCAV's code.
    """

    steps: int = 100
    population: int = 256
    elites: float = 0.05
    crossover: float = 0.5
    points: int = 5
    mutation: float = 0.01
    cycle: int = 5
    words: int = 0
    unseen: bool = True
    patience: int = 0
    every: int = 10
    pool: str = ""
    synonyms: str = ""
    probe: ProbeStates = "raw"  # what the probe is fitted on
    transfer: bool = False  # fit the probe on the undefended model
    pairs: int = 140  # of references, at most

    needs: ClassVar[tuple[str, ...]] = ("references",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {
            "steps": 15, "population": 24, "mutation": 0.2, "cycle": 2, "unseen": False, "every": 5,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        at_least(self, 1, "pairs")
        genetic.check_settings(self)

    @property
    def files(self) -> tuple[Path, ...]:
        return genetic.files(self)

    def accepts(self, behaviors: Sequence[Behavior]) -> str:
        return genetic.unsuited(self, behaviors, "scav_prompt")

    def run(
        self, model: ChatModel, behaviors: Sequence[Behavior], ctx: Context
    ) -> Iterator[Attempt]:
        probe = ctx.memo("scav_prompt", lambda: self._fit(model, ctx))
        plain = model.hidden([Prompt(user(b.request)) for b in behaviors])[:, -1]

        def losses(members: Sequence[Sequence[str]]) -> list[Tensor]:
            counts = [len(texts) for texts in members]
            prompts = [
                filled(text, behavior)
                for behavior, texts in zip(behaviors, members, strict=True)
                for text in texts
            ]
            if not prompts:
                return [torch.empty(0) for _ in behaviors]
            states = model.hidden(prompts)[:, -1]
            origin = plain.repeat_interleave(torch.tensor(counts), dim=0)
            return list(fitness(states, origin, probe["weight"], probe["bias"]).split(counts))

        results = genetic.search(
            genetic.read_pool(self.pool, self.population),
            losses,
            self,
            genetic.read_synonyms(self.synonyms),
            [ctx.rng("scav_prompt", b.id) for b in behaviors],
        )
        yield from genetic.attempts(results, behaviors, filled, self.every)

    def forecast(self, lengths: Lengths) -> Forecast:
        members = genetic.read_pool(self.pool, self.population).population
        tokens = sum(lengths.tokens(text) + lengths.prompt for text in members)
        attempts = math.ceil(self.steps / self.every)
        return Forecast(self.steps, (self.steps + 1) * tokens, attempts=attempts)

    def _fit(self, model: ChatModel, ctx: Context) -> Mapping[str, Tensor]:
        states = read_references(model, ctx, self.pairs, self.transfer)
        probes = fit_layer_probes(*states, self.probe)
        return {"weight": probes.weight[-1], "bias": probes.bias[-1]}


def filled(template: str, behavior: Behavior) -> Prompt:
    """The template with the behavior's request in place of the placeholder."""
    return genetic.filled(template, behavior.request)


def fitness(states: Tensor, origin: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """J (n,) of states (n, d) with plain states `origin` (n, d), for a probe (d,) and its bias."""
    harmful = torch.sigmoid(states.double() @ weight.double() + bias.double())
    return (harmful * (states - origin).double().norm(dim=1)).float()
