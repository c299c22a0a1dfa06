"""Shared by RepE and SCAV: the positions that are edited, reading the references, tuning."""

from collections.abc import Sequence
from typing import Literal

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


def best(model: ChatModel, settings: Sequence[Sequence[Edit]], ctx: Context) -> int:
    """The index of the setting that breaks most `tune` behaviors, the first of equals.

    A behavior is broken if the tuning judge calls the greedy reply harmful. A single setting is not
    tried.

    Raises:
        Failure: there are several settings, but no judge or no `tune` behaviors.
    """
    if len(settings) == 1:
        return 0
    if ctx.judge is None or not ctx.tune:
        raise Failure(f"comparing {len(settings)} settings needs a judge and tune behaviors")
    prompts = [Prompt(user(b.request), edits=tuple(e)) for e in settings for b in ctx.tune]
    scores = ctx.judge.score([*ctx.tune] * len(settings), model.generate(prompts))
    broken = (
        torch.tensor(scores).view(len(settings), -1).ge(threshold_of(ctx.judge)).sum(1).tolist()
    )
    return max(range(len(settings)), key=broken.__getitem__)


def forecast(lengths: Lengths, pairs: int, settings: int, layers: int) -> Forecast:
    """An upper bound: reading the references, answering every tuning request in every setting."""
    references = 2 * min(pairs, lengths.harmful, lengths.harmless)
    replies = settings * lengths.tune if settings > 1 else 0
    tokens = references * lengths.prompt + replies * (lengths.prompt + lengths.reply)
    return Forecast(0, tokens, once=True, vectors=layers)


def fit_layer_probes(harmful: Tensor, harmless: Tensor) -> Probes:
    """A probe per layer 0..L from states (n, L+1, d) of each kind, the last of each held out."""
    n = len(harmful)
    held_out = torch.arange(n) >= n - round(HELD_OUT * n)
    labels = torch.arange(2 * n) < n
    return fit_probes(torch.cat([harmful, harmless]), labels, held_out.repeat(2))
