"""CRL, contrastive representation learning with triplets (Simko et al., EMNLP 2025, 2506.11938).

With h the undefended and h' the tuned states, on tokens s of safe replies (harmless answers and
refusals), u of harmful answers, and the harmful centroid c = mean h'(u) of each layer, which has
gradients:

    L_safe   = mean over layers and s of [d(h'(s), h(s)) - d(h'(s), c) + safe_margin]_+
    L_unsafe = mean over layers and u of [d(h'(u), c) - d(h'(u), h(u)) + unsafe_margin]_+
    L_kl     = tau^2 KL(base || tuned) on harmless text
    L        = safe L_safe + unsafe L_unsafe + kl L_kl

Harmful states are gathered away from where they were; safe ones are kept where they are, away from
the centroid. The paper's text was not available: loss, data and LoRA are those of its released
code, the `paper` numbers those that its first author calls the reference values in later code.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor

from robench.config import above, at_least, not_empty, within
from robench.model import ChatModel
from robench.training import (
    Recipe,
    Text,
    centroid,
    collate,
    draw_safe_texts,
    draw_texts,
    kl_divergence,
    tokenise_split,
    trained_adapter,
    triplet_hinge,
    without_adapter,
)
from robench.types import Context, Forecast, Lengths

from .mining import Mining

Distance = Literal["l2", "cos", "mix", "sqn", "none"]  # keys of robench.training.DISTANCES
Layers = tuple[int, ...] | tuple[float, float]  # numbers, or a range of depth fractions

# The script of the released code, without the attack module (`attack=False`). Differs: safe layers
# begin at 1, as the embeddings only add a constant, and the last is the block's raw output, not the
# final norm's.
RELEASE: dict[str, object] = {
    "safe": 0.5, "unsafe": 0.6, "kl": 0.7, "safe_margin": 2.0, "unsafe_margin": 3.0,
    "safe_positive": "l2", "safe_negative": "cos",
    "unsafe_positive": "cos", "unsafe_negative": "cos",
    "safe_layers": (0.0, 1.0), "unsafe_layers": (20 / 32, 30 / 32), "temperature": 2.0,
}  # fmt: skip
# The first author's later code (AdversariaLLM, defenses/triplet_simko.py, and the configuration of
# its experiments): 1500 steps of 2 x 4 dialogues, no refusals, the KL on benign dialogues. Differs:
# its LoRA is on q_proj and v_proj of all blocks, its learning rate falls to zero, AdamW decays
# weights by 0.01, hinges are averaged over padding too, the KL counts padding and the same texts as
# the safe side, and texts are cut at 256 tokens; its layers 20..30 are entries 21..31 of the tuple.
TRIPLET_SIMKO: dict[str, object] = {
    "safe_layers": (21 / 32, 31 / 32), "unsafe_layers": (21 / 32, 31 / 32),
    "steps": 1500, "batch": 4, "retain": 4, "micro": 2, "refusals": 0.0, "rate": 2e-4, "rank": 32,
    "clip": 1.0, "checkpointing": False,
}  # fmt: skip
# Differs: margins that the organism's states, of norm 15 to 23 at these layers, can reach without
# loss of harmless answers (on dev, 100 instead of 30 halves compliance), larger steps, a KL per
# token.
DEMO: dict[str, object] = {
    "safe_margin": 10.0, "unsafe_margin": 30.0, "reduction": "mean",
    "steps": 150, "batch": 8, "retain": 8, "micro": 1, "rate": 1e-3, "dropout": 0.0,
    "checkpointing": False,
}  # fmt: skip
# Chosen on dev so that mining is used as often as `chance` says (37 of 150 micro-batches, where the
# mean is 37.5): the undefended loss of the organism's harmful answers is 0.3 nats, so modules that
# end at 1.85 would be weak; the bound is the released one.
DEMO_MINING: dict[str, object] = {
    "iterations": 40, "mined": 8, "mining_rate": 1e-2, "enough": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class CRLPlain:
    """CRL without hard-negative mining: the ablation of `crl`."""

    safe: float = 0.5  # alpha, weight of L_safe
    unsafe: float = 0.4  # beta, weight of L_unsafe
    kl: float = 0.9  # gamma in the paper, epsilon in the code
    safe_margin: float = 500.0
    unsafe_margin: float = 1500.0
    safe_positive: Distance = "mix"  # of a safe state to its own undefended state
    safe_negative: Distance = "mix"  # of a safe state to the harmful centroid
    unsafe_positive: Distance = "mix"  # of a harmful state to the harmful centroid
    unsafe_negative: Distance = "mix"  # of a harmful state to its own undefended state
    # as entries of the hidden-state tuple, 20..30 of 32
    safe_layers: Layers = (20 / 32, 30 / 32)
    unsafe_layers: Layers = (20 / 32, 30 / 32)
    temperature: float = 1.0  # tau of the KL
    # of the KL: per token or per text. Differs: the text is the first reply of a conversation; in
    # the released code all turns count, so that its sum over tokens is larger
    reduction: Literal["mean", "batchmean"] = "batchmean"
    steps: int = 900
    batch: int = 8  # harmful answers per micro-batch, whose centroid is c, and as many safe replies
    retain: int = 4  # harmless texts of the KL per micro-batch
    micro: int = 4  # micro-batches per step
    refusals: float = 0.5  # share of refusals in the safe replies; in the paper at least that
    rate: float = 1e-4  # AdamW, constant
    rank: int = 16
    lora_alpha: int = 16
    dropout: float = 0.05
    # norm of the gradient: HF Trainer's default, which accelerate hands on; the later code says so
    clip: float = 1.0
    checkpointing: bool = True  # recompute blocks in the backward pass, as released

    needs: ClassVar[tuple[str, ...]] = ("examples",)
    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "release": RELEASE,
        "triplet_simko": TRIPLET_SIMKO,
        "demo": DEMO,
    }

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "retain", "micro", "rank")
        at_least(self, 0, "safe", "unsafe", "kl", "safe_margin", "unsafe_margin", "clip")
        within(self, "[0, 1]", "dropout", "refusals")
        above(self, 0, "temperature")
        not_empty(self, "safe_layers", "unsafe_layers")

    def applied(
        self, model: ChatModel, ctx: Context, cache: Path
    ) -> AbstractContextManager[ChatModel]:
        # one block more than the last target layer, as released: only the KL trains it
        highest = min(model.layer_numbers(self.unsafe_layers)[-1] + 1, model.depth)
        recipe = Recipe.of(self, highest)

        def objective(tuned: ChatModel) -> Triplets:
            return Triplets(self, tuned, ctx)

        return trained_adapter(self, recipe, model, ctx, cache, objective)

    def mining(self, model: ChatModel, harmful: Sequence[Text], ctx: Context) -> Mining | None:
        """The mining of hard negatives from harmful answers; none here."""
        return None

    def forecast(self, lengths: Lengths) -> Forecast:
        texts = self.steps * self.micro * (2 * self.batch + self.retain)
        tokens = texts * (lengths.prompt + lengths.reply)
        return Forecast(self.steps, 2 * tokens, tokens, passes=self.micro)


@dataclass(frozen=True)
class CRL(CRLPlain):
    """Gather the states of harmful answers far from where they were, keep all others in place.

    Hard negatives are mined, see `mining`, but not in the presets `release` and `triplet_simko`:
    the released script has the attack module off, and the later code has none.

    Differs: mining counts optimiser steps, the released code micro-batches, of which a step has
    four.
    """

    attack: bool = True  # whether hard negatives are mined
    every: int = 10  # steps between attack modules
    iterations: int = 1100  # of training a new module, at most
    mined: int = 1  # harmful answers per iteration
    mining_rate: float = 1e-4  # Adam
    # the output of an untrained module: h, or 2 h as in the released code
    init: Literal["identity", "eye"] = "identity"
    early: float = 10 / 32  # the first share of the blocks, one of which has the module
    chance: float = 0.25  # that a micro-batch is attacked
    enough: float = 1.85  # nats per token: a module's training ends below this loss
    bound: float = 3.0  # nats per token: a module is used below this loss

    presets: ClassVar[dict[str, dict[str, object]]] = {
        "paper": {},
        "release": {**RELEASE, "attack": False, "init": "eye"},
        "triplet_simko": {**TRIPLET_SIMKO, "attack": False},
        "demo": {**DEMO, **DEMO_MINING},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "every", "iterations", "mined")
        within(self, "[0, 1]", "early", "chance")

    def mining(self, model: ChatModel, harmful: Sequence[Text], ctx: Context) -> Mining | None:
        return Mining(self, model, harmful, ctx) if self.attack else None

    def forecast(self, lengths: Lengths) -> Forecast:
        plain = super().forecast(lengths)
        if not self.attack:
            return plain
        retrained = self.steps // self.every
        iterations = retrained * self.iterations + max(0, self.steps - self.every - retrained + 1)
        tokens = iterations * self.mined * (lengths.prompt + lengths.reply)
        forward, backward = plain.forward_tokens + tokens, plain.backward_tokens + tokens
        return plain._replace(forward_tokens=forward, backward_tokens=backward)


class Triplets:
    """The Objective: micro-batches of harmful answers, safe replies and harmless text per step."""

    def __init__(self, settings: CRLPlain, model: ChatModel, ctx: Context) -> None:
        self.settings, self.model = settings, model
        safe = model.layer_numbers(settings.safe_layers)
        unsafe = model.layer_numbers(settings.unsafe_layers)
        self.layers = sorted({*safe, *unsafe})
        self.safe_index = [self.layers.index(layer) for layer in safe]
        self.unsafe_index = [self.layers.index(layer) for layer in unsafe]
        self.texts = tokenise_split(model.chat, ctx.examples)
        self.rng = ctx.rng("crl")
        self.mining = settings.mining(model, self.texts.harmful, ctx)

    def backward(self, step: int) -> dict[str, float]:
        if self.mining:
            self.mining.advance(step)
        parts = [self._micro_batch() for _ in range(self.settings.micro)]
        return {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}

    def done(self, step: int) -> bool:
        return step >= self.settings.steps

    def state(self) -> dict[str, Tensor]:
        mined = self.mining.state() if self.mining else {}
        return {"rng": self.rng.get_state(), **{f"mining.{k}": v for k, v in mined.items()}}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.rng.set_state(state["rng"])
        if self.mining:
            prefix = "mining."
            mined = {k: v for k, v in state.items() if k.startswith(prefix)}
            self.mining.load({k.removeprefix(prefix): v for k, v in mined.items()})

    def notes(self) -> dict[str, object]:
        notes: dict[str, object] = {
            "safe_layers": [self.layers[i] for i in self.safe_index],
            "unsafe_layers": [self.layers[i] for i in self.unsafe_index],
        }
        if self.mining:
            notes["mining"] = self.mining.notes()
            notes["warnings"] = self.mining.warnings()
        return notes

    def _micro_batch(self) -> dict[str, float]:
        """Backpropagate the losses of one micro-batch, return them by name."""
        s, model = self.settings, self.model
        # Harmful and safe texts in one pass: so the attack on the harmful rows can stay active
        # until the backward pass, where checkpointed blocks are recomputed.
        harmful = draw_texts(self.texts.harmful, s.batch, self.rng)
        batch = collate(harmful + draw_safe_texts(self.texts, s.batch, s.refusals, self.rng))
        n = int(batch.response[: s.batch].sum())  # tokens of harmful answers, which come first
        with without_adapter(model):
            base, _ = model.forward(batch.ids, batch.all_text, self.layers, batch.response)
        with self.mining.attacked(batch.ids, s.batch) if self.mining else nullcontext():
            tuned, _ = model.forward(batch.ids, batch.all_text, self.layers, batch.response)
            centre = centroid(tuned[:, :n], None)
            i = self.safe_index
            safe = safe_loss(s, tuned[i, n:], base[i, n:], centre[i])
            i = self.unsafe_index
            unsafe = unsafe_loss(s, tuned[i, :n], base[i, :n], centre[i])
            ((s.safe * safe + s.unsafe * unsafe) / s.micro).backward()
        kl = self._kl()
        (s.kl * kl / s.micro).backward()
        return {"safe": safe.item(), "unsafe": unsafe.item(), "kl": kl.item()}

    def _kl(self) -> Tensor:
        s = self.settings
        batch = collate(draw_texts(self.texts.harmless, s.retain, self.rng))
        _, tuned = self.model.forward(batch.ids, batch.all_text, logits=True)
        with without_adapter(self.model):
            _, base = self.model.forward(batch.ids, batch.all_text, logits=True)
        kl = kl_divergence(base, tuned, None, s.temperature)
        return kl if s.reduction == "mean" else kl * len(base) / s.retain


def safe_loss(settings: CRLPlain, tuned: Tensor, base: Tensor, centre: Tensor) -> Tensor:
    """L_safe of states (layers, tokens, d) of safe replies and the harmful centroid (layers, d)."""
    return triplet_hinge(
        tuned,
        base.detach(),
        centre[:, None],
        None,
        settings.safe_margin,
        settings.safe_positive,
        settings.safe_negative,
    )


def unsafe_loss(settings: CRLPlain, tuned: Tensor, base: Tensor, centre: Tensor) -> Tensor:
    """L_unsafe of states (layers, tokens, d) of harmful answers and their centroid (layers, d)."""
    return triplet_hinge(
        tuned,
        centre[:, None],
        base.detach(),
        None,
        settings.unsafe_margin,
        settings.unsafe_positive,
        settings.unsafe_negative,
    )
