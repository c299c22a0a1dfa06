"""Whether two runs of a method gave the same, and what it left on the model."""

from collections.abc import Sequence
from dataclasses import fields

import torch
from torch import Tensor

from robench.model.chat_model import ChatModel
from robench.types import Attempt, Prompt, user


def snapshot(model: ChatModel) -> tuple[dict[str, Tensor], Tensor]:
    """The model's weights, and its states (1, L+1, d) on one request."""
    weights = {name: p.clone() for name, p in model.network.state_dict().items()}
    return weights, model.hidden([Prompt(user("Tell me how to wreck a lamp."))])


def left_behind(model: ChatModel, before: tuple[dict[str, Tensor], Tensor]) -> list[str]:
    """What a method left on the model since the snapshot `before`."""
    weights, states = before
    problems = []
    now = model.network.state_dict()
    hooked = any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
    if now.keys() != weights.keys() or any(not torch.equal(weights[k], now[k]) for k in weights):
        problems.append("the model's weights are not what they were")
    elif not hooked and not torch.equal(states, snapshot(model)[1]):
        problems.append("the model's states are not what they were")
    if any(p.grad is not None for p in model.network.parameters()):
        problems.append("it left gradients on the model's weights")
    if hooked:
        problems.append("it left hooks on the model")
    if model.network.training:
        problems.append("it left the model in training mode")
    return problems


def same_attempts(some: Sequence[Attempt], others: Sequence[Attempt]) -> bool:
    """Whether two lists of attempts are equal, tensors up to 1e-5."""
    if len(some) != len(others):
        return False
    return all(
        a.behavior.id == b.behavior.id
        and (a.step, a.tag, a.final) == (b.step, b.tag, b.final)
        and _alike(a.prompt, b.prompt)
        for a, b in zip(some, others, strict=True)
    )


def _alike(one: Prompt, other: Prompt) -> bool:
    if one.messages != other.messages or len(one.edits) != len(other.edits):
        return False
    if (one.soft is None) != (other.soft is None):
        return False
    pairs = [] if one.soft is None or other.soft is None else [(one.soft, other.soft)]
    for first, second in zip(one.edits, other.edits, strict=True):
        if type(first) is not type(second):
            return False
        for field in fields(first):  # type: ignore[arg-type]
            here, there = getattr(first, field.name), getattr(second, field.name)
            if isinstance(here, Tensor) and isinstance(there, Tensor):
                pairs.append((here, there))
            elif type(here) is not type(there) or here != there:
                return False
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in pairs)
