"""ES2, embedding space separation (Zhao, Wang, Shen, 2603.20206).

With z_l(x) the tuned state of a query x at its last prompt token, over harmful queries x^h and
harmless ones x^s, at two layers S, the one where harmfulness emerges and the terminal one:

    D_l   = mean_ij |z_l(x_i^h) - z_l(x_j^s)|_2
    L_sep = -mean over S of D_l / D_l^0,   D_l^0 the value before training
    L_KL  = mean over tokens of harmless text of KL(tuned || base)
    L     = L_sep + lambda L_KL

Nothing bounds L_sep. Training ends when the running mean of L_KL on held-out harmless text passes
kappa, and the last weights below it are kept.

The paper's text and code were not at hand: the ingredients are the paper's (two layers, Euclidean
distance, KL on harmless input, a threshold that ends training), their details are our reading.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from robench.errors import Failure
from robench.model import ChatModel, at_depth, fit_probes, perturbation_norms
from robench.training import (
    BaseStates,
    Recipe,
    Text,
    collate,
    draw_texts,
    kl_divergence,
    split_examples,
    tokenise,
    trained_adapter,
    without_adapter,
)
from robench.types import Context, Example, Forecast, Lengths

Distance = Literal["pairwise", "centroid"]

P0 = 1e-4  # the probability to which the measured perturbations go, as SCAV's
LEAST = 4  # queries of either kind: one at least is held out, the others are trained on


@dataclass(frozen=True)
class ES2:
    """Push harmful and harmless queries apart, as far as harmless replies stay what they were.

    The preset `paper` is our reading: the abstract names the ingredients, not their settings.
    """

    distance: Distance = "pairwise"
    accuracy: float = 0.95  # of held-out probes, from the emergence layer on
    floor: float = 0.0  # depth above which the emergence layer lies
    kl_weight: float = 1.0  # lambda
    kappa: float = 0.05  # nats per token
    smoothing: float = 0.9  # of the running mean that is compared with kappa
    queries: int = 400  # harmful ones, and as many harmless ones; drawn where there are more
    held: float = 0.2  # share of the queries kept for probes, figures and kappa
    steps: int = 300  # at most
    batch: int = 16  # of harmful queries, and as many of harmless text
    limit: int = 256  # tokens of a prompt and of a reply, at most
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    checkpointing: bool = False  # blocks are computed again in the backward pass, for memory

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {
            "kl_weight": 10.0,
            "kappa": 0.045,
            "rate": 3e-4,
            "steps": 150,
            "batch": 32,
            "floor": 0.34,
        },
    }

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "queries", "limit", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        for name in ("accuracy", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1]")
        if not 0 < self.held < 1:
            raise ValueError("held must be in (0, 1)")
        if not 0 <= self.smoothing < 1:
            raise ValueError("smoothing must be in [0, 1)")
        for name in ("kl_weight", "kappa"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative")

    @contextmanager
    def applied(self, model: ChatModel, ctx: Context, cache: Path) -> Iterator[ChatModel]:
        recipe = Recipe.of(self, model.depth)

        def objective(wearing: ChatModel) -> Separating:
            return Separating(self, wearing, ctx)

        with trained_adapter(self, recipe, model, ctx, cache, objective) as target:
            yield target

    def forecast(self, lengths: Lengths) -> Forecast:
        """At most: as many queries and steps as are allowed."""
        harmless = self.steps * self.batch * (lengths.prompt + lengths.reply)
        harmful = self.steps * self.batch * lengths.prompt
        probed = 2 * 2 * self.queries * lengths.prompt  # before and after
        return Forecast(self.steps, harmful + 4 * harmless + probed, harmful + harmless)


class Separating:
    """The Objective: one batch of harmful queries and one of harmless text per step."""

    def __init__(self, settings: ES2, model: ChatModel, ctx: Context) -> None:
        self.settings, self.model = settings, model
        self.rng = ctx.rng("es2")
        harmful, _, harmless = split_examples(ctx.examples)
        kept, queries = self._split("harmful", harmful)
        self.held_harmful, self.harmful = _prompts(kept), _prompts(queries)
        self.held_harmless, self.harmless = self._split("harmless", harmless)
        texts, draws = self.harmless + self.held_harmless, 2 * settings.steps * settings.batch
        self.base = BaseStates(model, texts, draws, [model.depth])
        every = range(model.depth + 1)
        with without_adapter(model):
            before = self._queries(every)
        self.probed = fit_probes(*before).accuracy.tolist()
        first = at_depth(settings.floor, model.depth)
        self.emergence = emergence(self.probed, settings.accuracy, first)
        self.layers = sorted({self.emergence, model.depth})
        states, labels, held = before
        states = states[:, self.layers]
        self.scale = torch.stack(  # D^0 (layers,)
            [
                separation(states[labels & ~held, i], states[~labels & ~held, i], settings.distance)
                for i in range(len(self.layers))
            ]
        ).to(model.device)
        self.norms = states[held].norm(dim=-1).mean(0).tolist()
        self.figures = {"start": self._figures(states, labels, held)}
        self.parameters = {n: p for n, p in model.adapter.named_parameters() if p.requires_grad}
        self.average, self.kept_step, self.kept_kl = 0.0, 0, 0.0
        self.kept = {name: p.detach().clone() for name, p in self.parameters.items()}

    def backward(self, step: int) -> dict[str, float]:
        harmful = collate(draw_texts(self.harmful, self.settings.batch, self.rng))
        text = collate(draw_texts(self.harmless, self.settings.batch, self.rng))
        away, _ = self.model.forward(
            harmful.ids, harmful.all_text, self.layers, harmful.last_prompt_token
        )
        states, logits = self.model.forward(text.ids, text.all_text, self.layers, logits=True)
        stay = states[:, text.last_prompt_token[text.all_text]]
        apart = torch.stack(
            [separation(h, s, self.settings.distance) for h, s in zip(away, stay, strict=True)]
        )
        ratio = (apart / self.scale).mean()
        kl = kl_divergence(self.base.logits(text), logits, None, direction="tuned||base")
        (self.settings.kl_weight * kl - ratio).backward()
        return {"separation": ratio.item(), "kl": kl.item(), "held_kl": self.average}

    def done(self, step: int) -> bool:
        """Measure the weights after `step` steps; at the end put the last good ones back."""
        smoothing = self.settings.smoothing
        measured = self._held_kl()
        self.average = smoothing * self.average + (1 - smoothing) * measured
        if not math.isfinite(self.average):
            raise Failure(f"training stopped: held_kl is {self.average} at step {step}")
        passed = self.average > self.settings.kappa
        if passed:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.kept[name])
        else:
            self.kept_step, self.kept_kl = step, measured
            self.kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        if not passed and step < self.settings.steps:
            return False
        with self._evaluating():
            self.figures["end"] = self._figures(*self._queries(self.layers))
        return True

    def state(self) -> dict[str, Tensor]:
        numbers = torch.tensor([self.average, self.kept_step, self.kept_kl], dtype=torch.float64)
        kept = {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        return {"rng": self.rng.get_state(), "numbers": numbers, **kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        self.average, step, self.kept_kl = state["numbers"].tolist()
        self.kept_step = int(step)
        for name, tensor in self.kept.items():
            tensor.copy_(state[f"kept.{name}"])

    def notes(self) -> dict[str, object]:
        """Layers, probe accuracies, where training ended, `figures` of either layer."""
        return {
            "emergence": self.emergence,
            "terminal": self.layers[-1],
            "probe_accuracy": self.probed,
            "kept_step": self.kept_step,
            "kept_kl": self.kept_kl,
            "held_kl": self.average,
            **self.figures,
        }

    def _split(self, kind: str, examples: Sequence[Example]) -> tuple[list[Text], list[Text]]:
        """(held out, trained on), each request once."""
        once = {e.behavior.request: e for e in examples}
        texts = tokenise(self.model.chat, list(once.values()), limit=self.settings.limit)
        if len(texts) < LEAST:
            raise Failure(
                f"es2 needs at least {LEAST} {kind} queries of at most {self.settings.limit} "
                f"tokens, and the training data has {len(texts)}"
            )
        order = torch.randperm(len(texts), generator=self.rng).tolist()[: self.settings.queries]
        count = min(max(1, round(self.settings.held * len(order))), len(order) - 2)
        return [texts[i] for i in order[:count]], [texts[i] for i in order[count:]]

    def _queries(self, layers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """States (n, layers, d) of all queries, which are harmful (n,), which held out (n,)."""
        groups = [self.harmful, self.held_harmful, _prompts(self.harmless)]
        groups.append(_prompts(self.held_harmless))
        texts = [text for group in groups for text in group]
        parts = []
        for at in range(0, len(texts), self.settings.batch):
            batch = collate(texts[at : at + self.settings.batch])
            states, _ = self.model.forward(
                batch.ids, batch.all_text, layers, batch.last_prompt_token
            )
            parts.append(states.transpose(0, 1).float().cpu())
        counts = torch.tensor([len(group) for group in groups])
        labels = torch.tensor([True, True, False, False]).repeat_interleave(counts)
        held = torch.tensor([False, True, False, True]).repeat_interleave(counts)
        return torch.cat(parts), labels, held

    def _held_kl(self) -> float:
        """L_KL of a batch of held-out harmless text."""
        text = collate(draw_texts(self.held_harmless, self.settings.batch, self.rng))
        with self._evaluating():
            _, tuned = self.model.forward(text.ids, text.all_text, logits=True)
            base = self.base.logits(text)
            return kl_divergence(base, tuned, None, direction="tuned||base").item()

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The tuned model as it will be deployed: eval mode, no gradients."""
        training = self.model.network.training
        self.model.network.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.network.train(training)

    def _figures(self, states: Tensor, labels: Tensor, held: Tensor) -> dict[str, dict[str, float]]:
        """`figures` of the emergence and the terminal layer."""
        names = ["emergence", "terminal"] if len(self.layers) == 2 else ["terminal"]
        return {
            name: figures(states[:, i], labels, held, self.norms[i]) for i, name in enumerate(names)
        }


def separation(harmful: Tensor, harmless: Tensor, distance: Distance) -> Tensor:
    """The mean distance of harmful states (n, d) from harmless ones (m, d); both sides are live.

    Args:
        distance: "pairwise", the mean over all n m pairs of their Euclidean distance, or
            "centroid", the distance of the two means.
    """
    if distance not in ("pairwise", "centroid"):
        raise ValueError(f"no distance {distance!r}: pairwise or centroid")
    harmful, harmless = harmful.float(), harmless.float()
    if distance == "centroid":
        return (harmful.mean(0) - harmless.mean(0)).norm()
    # not by matrix products, which lose what near states differ by
    pairs = torch.cdist(harmful, harmless, compute_mode="donot_use_mm_for_euclid_dist")
    return pairs.mean()


def emergence(accuracy: Sequence[float], threshold: float, first: int) -> int:
    """The smallest layer from `first` on, from which accuracy (0..L) stays >= threshold.

    Where the last layer's is below it there is none, and the most accurate layer stands in.
    """
    layers = range(first, len(accuracy))
    staying = [l for l in layers if min(accuracy[l:]) >= threshold]
    return staying[0] if staying else max(layers, key=lambda l: accuracy[l])


def figures(states: Tensor, labels: Tensor, held: Tensor, norm: float) -> dict[str, float]:
    """How far apart the held-out queries of a layer are; scaling moves only two of the figures.

    centroid_cosine:       of the two means
    norm_ratio:            mean state norm over `norm`, its value before training
    margin:                distance of the means, in within-class standard deviations along it
    probe_accuracy:        of a probe that is refitted to these states
    perturbation:          mean length of SCAV's shift of harmful states to P0 by that probe
    relative_perturbation: the same over the mean state norm

    Args:
        states: (n, d) of all queries; the probe is fitted on those that are not held out.
        labels: (n,) True at harmful ones.
        held: (n,) True at held-out ones.
    """
    harmful, harmless = states[labels & held], states[~labels & held]
    across = harmful.mean(0) - harmless.mean(0)
    apart = across.norm()
    along = across / apart
    spread = torch.cat([side @ along - (side @ along).mean() for side in (harmful, harmless)])
    probe = fit_probes(states[:, None], labels, held)
    size = states[held].norm(dim=-1).mean().item()
    length = perturbation_norms(harmful.double(), probe.weight[0], probe.bias[0], P0).mean().item()
    cosine = functional.cosine_similarity(harmful.mean(0), harmless.mean(0), dim=0)
    return {
        "centroid_cosine": cosine.item(),
        "norm_ratio": size / norm,
        "margin": (apart / spread.square().mean().sqrt()).item(),
        "probe_accuracy": probe.accuracy[0].item(),
        "perturbation": length,
        "relative_perturbation": length / size,
    }


def _prompts(texts: Sequence[Text]) -> list[Text]:
    """The texts without their replies."""
    return [Text(text.prompt, []) for text in texts]
