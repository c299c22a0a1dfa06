"""Shared by RepE and SCAV: the positions that are edited, reading the references, tuning."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robench.errors import Failure
from robench.model import ChatModel, Probes, fit_probes
from robench.types import (
    LAST,
    PROMPT,
    REPLY,
    Behavior,
    Context,
    Edit,
    Forecast,
    Lengths,
    Prompt,
    threshold_of,
    user,
)

# prompt: every prompt token; last: only the last one; each: the last one and every generated token,
# as the authors of SCAV do; all: every token, as those of RepE
Positions = Literal["prompt", "last", "each", "all"]
ROLES: dict[Positions, tuple[int, ...]] = {
    "prompt": (PROMPT, LAST),
    "last": (LAST,),
    "each": (LAST, REPLY),
    "all": (PROMPT, LAST, REPLY),
}
# What a probe is fitted on: the states as they are, as in SCAV's code, or standardised ones, on
# which the same penalty leaves a probe that takes a much smaller shift
ProbeStates = Literal["raw", "standardised"]
MIN_REFERENCES = 4  # of either kind
HELD_OUT = 0.25  # the share of the references on which the probes' accuracy is measured


def has_role(role: Tensor, roles: Sequence[int]) -> Tensor:
    """(batch, time, 1) True at the positions whose role is one of `roles`."""
    return torch.stack([role == r for r in roles]).any(0)[..., None]


def read_references(
    model: ChatModel, ctx: Context, pairs: int, transfer: bool
) -> tuple[Tensor, Tensor]:
    """States (n, L+1, d) of n harmful references and of as many harmless ones, drawn by the seed.

    Args:
        model: the model under attack.
        ctx: has the references.
        pairs: the maximum of n.
        transfer: whether to read the undefended model instead of the one under attack.

    Raises:
        Failure: too few references of either kind.
    """
    harmful = [b for b in ctx.references if b.harmful]
    harmless = [b for b in ctx.references if not b.harmful]
    n = min(pairs, len(harmful), len(harmless))
    if n < MIN_REFERENCES:
        raise Failure(
            f"needs at least {MIN_REFERENCES} harmful and {MIN_REFERENCES} harmless references, "
            f"and there are {len(harmful)} and {len(harmless)}: give --reference FILE"
        )
    rng = ctx.rng("references")
    drawn: list[Behavior] = []
    for pool in (harmful, harmless):
        drawn += [pool[i] for i in torch.randperm(len(pool), generator=rng)[:n].tolist()]
    source = model.undefended() if transfer else model
    states = source.hidden([Prompt(user(b.request)) for b in drawn])
    return states[:n], states[n:]


class Choice(NamedTuple):
    """The setting that was taken.

    number:  of the setting, from 0
    at_edge: whether it is the strongest or the weakest, and none between is as good
    """

    number: int
    at_edge: bool


def best(
    model: ChatModel,
    settings: Sequence[Sequence[Edit]],
    strengths: Sequence[float],
    ctx: Context,
) -> Choice:
    """The setting that breaks most `tune` behaviors.

    Of equals it is the one whose replies have the highest mean score, then the strongest, then the
    first. A behavior is broken if the tuning judge calls the greedy reply harmful; a reply that it
    cannot judge has score 0. A single setting is not tried.

    Args:
        model: the model under attack.
        settings: the edits of each.
        strengths: of each, a number that grows with the size of the change.
        ctx: provides the tuning behaviors and the tuning judge.

    Raises:
        Failure: there are several settings, but no judge or no `tune` behaviors.
    """
    if len(settings) == 1:
        return Choice(0, False)
    if ctx.judge is None or not ctx.tune:
        raise Failure(f"comparing {len(settings)} settings needs a judge and tune behaviors")
    prompts = [Prompt(user(b.request), edits=tuple(e)) for e in settings for b in ctx.tune]
    scores = ctx.judge.score([*ctx.tune] * len(settings), model.generate(prompts))
    harmful = threshold_of(ctx.judge)
    n = len(ctx.tune)
    merits = []  # of each setting: behaviors broken, sum of the scores
    for start in range(0, len(scores), n):
        scored = [score for score in scores[start : start + n] if not math.isnan(score)]
        merits.append((sum(score >= harmful for score in scored), math.fsum(scored)))
    number = max(range(len(settings)), key=lambda i: (merits[i], strengths[i]))
    return Choice(number, at_edge(merits, strengths, number))


def at_edge(merits: Sequence[tuple[int, float]], strengths: Sequence[float], chosen: int) -> bool:
    """Whether the chosen setting has an extreme strength, and none between has its merit.

    Where one between does, the merit is flat towards that edge, and the tie went to strength.
    """
    ends = min(strengths), max(strengths)
    if strengths[chosen] not in ends or ends[0] == ends[1]:
        return False
    between = [m for m, s in zip(merits, strengths, strict=True) if s not in ends]
    return merits[chosen] not in between


def forecast(lengths: Lengths, pairs: int, settings: int, layers: int) -> Forecast:
    """An upper bound: reading the references, answering every tuning request in every setting."""
    references = 2 * min(pairs, lengths.harmful, lengths.harmless)
    replies = settings * lengths.tune if settings > 1 else 0
    tokens = references * lengths.prompt + replies * (lengths.prompt + lengths.reply)
    return Forecast(0, tokens, once=True, vectors=layers)


def fit_layer_probes(harmful: Tensor, harmless: Tensor, probe: ProbeStates) -> Probes:
    """A probe per layer 0..L from states (n, L+1, d) of each kind, the last of each held out.

    Differs: the authors of SCAV fit with saga from scikit-learn, which is random and stops where
    it moves little; this solver goes on to the minimum of the same function. On raw states of the
    organism the two directions have a cosine of .983 to 1.000, by layer, and the mean shifts of
    harmful states differ by at most 1 %.
    """
    n = len(harmful)
    held_out = torch.arange(n) >= n - round(HELD_OUT * n)
    labels = torch.arange(2 * n) < n
    states = torch.cat([harmful, harmless])
    return fit_probes(states, labels, held_out.repeat(2), standardised=probe == "standardised")
