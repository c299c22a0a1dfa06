"""ES2, embedding space separation (Zhao, Wang, Shen, 2603.20206).

With z_l(x) the tuned state of a query x at its last prompt token, over harmful queries x^h and
harmless ones x^s, at two layers S, the one where harmfulness emerges and a terminal one:

    D_l   = mean_ij |z_l(x_i^h) - z_l(x_j^s)|_2 / u_l
    L_sep = -mean over S of D_l / D_l^0,   D_l^0 the value before training
    L_KL  = mean over tokens of harmless text of KL(tuned || base)
    L     = L_sep + lambda L_KL

u_l is the unit of distance. With a constant one, longer states are farther apart, although every
later block reads them at unit scale; with the states' own mean norm or spread, scaling does not
count. Training ends when L_KL of all held-out harmless text exceeds kappa, and the last weights
that were measured below it are kept.

The paper's text and code were not available: the ingredients are the paper's (two layers, Euclidean
distance, KL on harmless input, a threshold that ends training), their details are our reading.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from robench.config import at_least, within
from robench.errors import Failure
from robench.model import ChatModel, at_depth, fit_probes, perturbation_norms
from robench.training import (
    BaseStates,
    Recipe,
    Text,
    collate,
    draw_texts,
    evaluating,
    kl_divergence,
    split_examples,
    tokenise,
    trained_adapter,
    without_adapter,
)
from robench.types import Context, Example, Forecast, Lengths

Distance = Literal["pairwise", "centroid"]
Unit = Literal["norm", "spread", "constant"]

P0 = 1e-4  # the probability that the measured perturbations reach, as SCAV's
MIN_QUERIES = 4  # of either kind: at least one is held out, the others are trained on


@dataclass(frozen=True)
class ES2:
    """Separate harmful from harmless queries, as far as harmless replies do not change.

    The preset `paper` is our reading: the abstract names the ingredients, not their settings.
    """

    distance: Distance = "pairwise"
    # of distance: the mean norm of the tuned states, their spread within a class, or a constant
    unit: Unit = "norm"
    accuracy: float = 0.95  # of probes on held-out queries, from the emergence layer on
    floor: float = 0.0  # lowest depth of the emergence layer
    # the terminal layer: where the plateau of probe accuracy and state norms ends, or the last one
    terminal: Literal["plateau", "last"] = "plateau"
    cap: float = 0.75  # highest depth of the plateau's end
    growth: float = 1.5  # of mean state norms from a layer to the next: beyond it a plateau ends
    kl_weight: float = 1.0  # lambda
    kappa: float = 0.05  # nats per token
    check: int = 5  # steps between measurements of the KL that is compared with kappa
    queries: int = 400  # harmful ones, and as many harmless ones; drawn if there are more
    held: float = 0.2  # share of the queries held out for probes, measures and kappa
    steps: int = 300  # at most
    batch: int = 16  # harmful queries, and as many harmless texts
    limit: int = 256  # tokens of a prompt and of a reply, at most
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    checkpointing: bool = False  # recompute blocks in the backward pass, to save memory

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    unverified: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "demo": {
            "kl_weight": 10.0,
            "kappa": 0.045,
            "rate": 3e-4,
            "steps": 150,
            "batch": 32,
            "floor": 0.34,
            "check": 1,
        },
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "queries", "limit", "rank", "check", "growth")
        at_least(self, 0, "kl_weight", "kappa")
        within(self, "[0, 1]", "accuracy", "floor", "cap")
        within(self, "(0, 1)", "held")

    def applied(
        self, model: ChatModel, ctx: Context, cache: Path
    ) -> AbstractContextManager[ChatModel]:
        depth = 1.0 if self.terminal == "last" else max(self.cap, self.floor)
        recipe = Recipe.of(self, at_depth(depth, model.depth))

        def objective(tuned: ChatModel) -> Separating:
            return Separating(self, tuned, ctx)

        return trained_adapter(self, recipe, model, ctx, cache, objective)

    def forecast(self, lengths: Lengths) -> Forecast:
        """An upper bound: with as many queries and steps as are allowed."""
        harmless = self.steps * self.batch * (lengths.prompt + lengths.reply)
        harmful = self.steps * self.batch * lengths.prompt
        probed = 2 * 2 * self.queries * lengths.prompt  # before and after
        held = round(self.held * self.queries) * (lengths.prompt + lengths.reply)
        measured = 2 * math.ceil(self.steps / self.check) * held
        forward = harmful + 2 * harmless + measured + probed
        return Forecast(self.steps, forward, harmful + harmless)


class Separating:
    """The Objective: one batch of harmful queries and one of harmless text per step."""

    def __init__(self, settings: ES2, model: ChatModel, ctx: Context) -> None:
        self.settings, self.model = settings, model
        self.rng = ctx.rng("es2")
        harmful, _, harmless = split_examples(ctx.examples)
        held_out, trained = self._split("harmful", harmful)
        self.held_harmful, self.harmful = _prompts(held_out), _prompts(trained)
        self.held_harmless, self.harmless = self._split("harmless", harmless)
        texts = self.harmless + self.held_harmless
        draws = settings.steps * (settings.batch + len(self.held_harmless) // settings.check)
        self.base = BaseStates(model, texts, draws, [model.depth])
        self._choose_layers()
        self.parameters = {n: p for n, p in model.adapter.named_parameters() if p.requires_grad}
        self.held_kl, self.kept_step, self.kept_kl = 0.0, 0, 0.0
        self.kept = {name: p.detach().clone() for name, p in self.parameters.items()}

    def _choose_layers(self) -> None:
        """Choose S by probes on the undefended states, and measure these states."""
        model, settings = self.model, self.settings
        with without_adapter(model):
            states, labels, held_out = self._query_states(range(model.depth + 1))
        self.probe_accuracy = fit_probes(states, labels, held_out).accuracy.tolist()
        self.state_norms = states.norm(dim=-1).mean(0).tolist()
        first = at_depth(settings.floor, model.depth)
        self.emergence = emergence(self.probe_accuracy, settings.accuracy, first)
        self.layers = sorted({self.emergence, self._terminal()})
        states = states[:, self.layers]
        harmful, harmless = states[labels & ~held_out], states[~labels & ~held_out]
        initial = [  # D^0 of each layer
            self._separation(harmful[:, i], harmless[:, i]) for i in range(len(self.layers))
        ]
        self.initial_distance = torch.stack(initial).to(model.device)
        self.norms = states[held_out].norm(dim=-1).mean(0).tolist()
        self.measured = {"start": self._measure(states, labels, held_out)}

    def _terminal(self) -> int:
        settings, depth = self.settings, self.model.depth
        if settings.terminal == "last":
            return depth
        highest = max(at_depth(settings.cap, depth), self.emergence)
        return plateau_end(
            self.probe_accuracy[: highest + 1],
            self.state_norms,
            self.emergence,
            settings.accuracy,
            settings.growth,
        )

    def _separation(self, harmful: Tensor, harmless: Tensor) -> Tensor:
        distance = separation(harmful, harmless, self.settings.distance)
        return distance / unit_length(harmful, harmless, self.settings.unit)

    def backward(self, step: int) -> dict[str, float]:
        harmful = collate(draw_texts(self.harmful, self.settings.batch, self.rng))
        text = collate(draw_texts(self.harmless, self.settings.batch, self.rng))
        harmful_states, _ = self.model.forward(
            harmful.ids, harmful.all_text, self.layers, harmful.last_prompt_token
        )
        states, logits = self.model.forward(text.ids, text.all_text, self.layers, logits=True)
        harmless_states = states[:, text.last_prompt_token[text.all_text]]
        pairs = zip(harmful_states, harmless_states, strict=True)
        distance = torch.stack([self._separation(h, s) for h, s in pairs])
        ratio = (distance / self.initial_distance).mean()
        kl = kl_divergence(self.base.logits(text), logits, None, direction="tuned||base")
        (self.settings.kl_weight * kl - ratio).backward()
        return {"separation": ratio.item(), "kl": kl.item(), "held_kl": self.held_kl}

    def done(self, step: int) -> bool:
        """Measure the KL after `step` steps; at the end restore the last weights below kappa."""
        if step % self.settings.check and step < self.settings.steps:
            return False
        self.held_kl = kl = self._held_out_kl()
        if not math.isfinite(kl):
            raise Failure(f"training stopped: held_kl is {kl} at step {step}")
        exceeds = kl > self.settings.kappa
        if exceeds:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(self.kept[name])
        else:
            self.kept_step, self.kept_kl = step, kl
            self.kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        if not exceeds and step < self.settings.steps:
            return False
        with evaluating(self.model):
            self.measured["end"] = self._measure(*self._query_states(self.layers))
        return True

    def state(self) -> dict[str, Tensor]:
        numbers = torch.tensor([self.held_kl, self.kept_step, self.kept_kl], dtype=torch.float64)
        kept = {f"kept.{name}": tensor for name, tensor in self.kept.items()}
        return {"rng": self.rng.get_state(), "numbers": numbers, **kept}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        self.held_kl, step, self.kept_kl = state["numbers"].tolist()
        self.kept_step = int(step)
        for name, tensor in self.kept.items():
            tensor.copy_(state[f"kept.{name}"])

    def notes(self) -> dict[str, object]:
        """The layers and how they were chosen, where training ended, `measures` of both layers."""
        notes: dict[str, object] = {
            "emergence": self.emergence,
            "terminal": self.layers[-1],
            "terminal_choice": self.settings.terminal,
            "probe_accuracy": self.probe_accuracy,
            "state_norms": self.state_norms,
            "kept_step": self.kept_step,
            "kept_kl": self.kept_kl,
            "held_kl": self.held_kl,
            **self.measured,
        }
        falls = falling_perturbations(self.measured["start"], self.measured["end"])
        return {**notes, "warnings": falls} if falls else notes

    def _split(self, kind: str, examples: Sequence[Example]) -> tuple[list[Text], list[Text]]:
        """The held-out and the trained queries, each request once."""
        by_request = {e.behavior.request: e for e in examples}
        texts = tokenise(self.model.chat, list(by_request.values()), limit=self.settings.limit)
        if len(texts) < MIN_QUERIES:
            raise Failure(
                f"es2 needs at least {MIN_QUERIES} {kind} queries of at most {self.settings.limit} "
                f"tokens, and the training data has {len(texts)}"
            )
        order = torch.randperm(len(texts), generator=self.rng).tolist()[: self.settings.queries]
        count = min(max(1, round(self.settings.held * len(order))), len(order) - 2)
        return [texts[i] for i in order[:count]], [texts[i] for i in order[count:]]

    def _query_states(self, layers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """States (n, layers, d) of all queries, which are harmful (n,), which held out (n,)."""
        groups = [
            self.harmful,
            self.held_harmful,
            _prompts(self.harmless),
            _prompts(self.held_harmless),
        ]
        texts = [text for group in groups for text in group]
        parts = []
        for start in range(0, len(texts), self.settings.batch):
            batch = collate(texts[start : start + self.settings.batch])
            states, _ = self.model.forward(
                batch.ids, batch.all_text, layers, batch.last_prompt_token
            )
            parts.append(states.transpose(0, 1).float().cpu())
        counts = torch.tensor([len(group) for group in groups])
        labels = torch.tensor([True, True, False, False]).repeat_interleave(counts)
        held_out = torch.tensor([False, True, False, True]).repeat_interleave(counts)
        return torch.cat(parts), labels, held_out

    def _held_out_kl(self) -> float:
        """L_KL of all held-out harmless text."""
        total, tokens = 0.0, 0
        with evaluating(self.model):
            for start in range(0, len(self.held_harmless), self.settings.batch):
                text = collate(self.held_harmless[start : start + self.settings.batch])
                _, tuned = self.model.forward(text.ids, text.all_text, logits=True)
                base = self.base.logits(text)
                kl = kl_divergence(base, tuned, None, direction="tuned||base").item()
                total, tokens = total + kl * len(tuned), tokens + len(tuned)
        return total / tokens

    def _measure(
        self, states: Tensor, labels: Tensor, held_out: Tensor
    ) -> dict[str, dict[str, float]]:
        """`measures` of the emergence layer and the terminal one."""
        names = ["emergence", "terminal"] if len(self.layers) == 2 else ["terminal"]
        return {
            name: measures(states[:, i], labels, held_out, self.norms[i])
            for i, name in enumerate(names)
        }


def separation(harmful: Tensor, harmless: Tensor, distance: Distance) -> Tensor:
    """The mean distance of harmful states (n, d) from harmless ones (m, d); both have gradients.

    Args:
        harmful, harmless: the states.
        distance: "pairwise", the mean over all n m pairs of their Euclidean distance, or
            "centroid", the distance of the two means.
    """
    if distance not in ("pairwise", "centroid"):
        raise ValueError(f"no distance {distance!r}: pairwise or centroid")
    harmful, harmless = harmful.float(), harmless.float()
    if distance == "centroid":
        return (harmful.mean(0) - harmless.mean(0)).norm()
    # not by matrix products, which lose the small differences of near states
    pairs = torch.cdist(harmful, harmless, compute_mode="donot_use_mm_for_euclid_dist")
    return pairs.mean()


def unit_length(harmful: Tensor, harmless: Tensor, unit: Unit) -> Tensor:
    """The length in which distances are told, of states (n, d) and (m, d); it has gradients.

    Args:
        harmful, harmless: the states.
        unit: "norm", the mean norm of all states; "spread", the root mean square distance of
            states from the mean of their class; "constant", 1.
    """
    if unit not in ("norm", "spread", "constant"):
        raise ValueError(f"no unit {unit!r}: norm, spread or constant")
    classes = [harmful.float(), harmless.float()]
    if unit == "constant":
        return torch.ones((), device=harmful.device)
    if unit == "norm":
        return torch.cat(classes).norm(dim=-1).mean()
    return torch.cat([x - x.mean(0) for x in classes]).square().sum(-1).mean().sqrt()


def plateau_end(
    accuracy: Sequence[float], norms: Sequence[float], first: int, threshold: float, growth: float
) -> int:
    """The last layer from `first` on before accuracies or state norms leave their plateau.

    They leave it where the accuracy falls below the threshold, or the mean norm is more than
    `growth` times that of the layer before. No layer above the last of `accuracy` is taken.
    """
    layer = first
    while (
        layer + 1 < len(accuracy)
        and accuracy[layer + 1] >= threshold
        and norms[layer + 1] <= growth * norms[layer]
    ):
        layer += 1
    return layer


def falling_perturbations(
    start: Mapping[str, Mapping[str, float]], end: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """A warning for each layer whose relative perturbation training made smaller."""
    name = "relative_perturbation"
    return [
        f"at the {layer} layer the relative perturbation fell from {start[layer][name]:.3f} to "
        f"{end[layer][name]:.3f}, while norms grew by {end[layer]['norm_ratio']:.2f}: harmful "
        "queries are easier to move across the probe than before"
        for layer in start
        if end[layer][name] < start[layer][name]
    ]


def emergence(accuracy: Sequence[float], threshold: float, first: int) -> int:
    """The smallest layer >= `first` from which on the accuracy (0..L) is >= threshold.

    If the last layer's is below it, there is none: the most accurate layer is taken.
    """
    layers = range(first, len(accuracy))
    emerged = [l for l in layers if min(accuracy[l:]) >= threshold]
    return emerged[0] if emerged else max(layers, key=lambda l: accuracy[l])


def measures(states: Tensor, labels: Tensor, held_out: Tensor, norm: float) -> dict[str, float]:
    """How separate the held-out queries are at a layer; scaling the states changes two measures.

    centroid_cosine:       of the two means
    norm_ratio:            mean state norm over `norm`, its value before training
    margin:                distance of the means, in within-class standard deviations along it
    probe_accuracy:        of a probe that is fitted to these states
    perturbation:          mean norm of SCAV's shift of harmful states to P0 by that probe
    relative_perturbation: the same over the mean state norm

    Args:
        states: (n, d) of all queries; the probe is fitted on those that are not held out.
        labels: (n,) True at harmful ones.
        held_out: (n,) True at held-out ones.
        norm: mean state norm before training.
    """
    harmful, harmless = states[labels & held_out], states[~labels & held_out]
    difference = harmful.mean(0) - harmless.mean(0)
    distance = difference.norm()
    axis = difference / distance
    within_class = torch.cat([x @ axis - (x @ axis).mean() for x in (harmful, harmless)])
    probe = fit_probes(states[:, None], labels, held_out)
    size = states[held_out].norm(dim=-1).mean().item()
    shifts = perturbation_norms(harmful.double(), probe.weight[0], probe.bias[0], P0)
    shift = shifts.mean().item()
    cosine = functional.cosine_similarity(harmful.mean(0), harmless.mean(0), dim=0)
    return {
        "centroid_cosine": cosine.item(),
        "norm_ratio": size / norm,
        "margin": (distance / within_class.square().mean().sqrt()).item(),
        "probe_accuracy": probe.accuracy[0].item(),
        "perturbation": shift,
        "relative_perturbation": shift / size,
    }


def _prompts(texts: Sequence[Text]) -> list[Text]:
    """The texts without their replies."""
    return [Text(text.prompt, []) for text in texts]
