"""Whether what an attack yields can be written to a run's folder, and read from there again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from safetensors.torch import save
from torch import Tensor

from robench.types import GAP, Edit, Prompt


def prompt_problem(prompt: Prompt, width: int) -> str:
    """Why a prompt cannot be stored or answered, "" where it can.

    Args:
        width: d, the size of the model's embeddings.
    """
    messages = prompt.messages
    if not isinstance(messages, tuple) or not messages:
        return f"a prompt's messages are no tuple of messages: {messages!r}"
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            return f"a message is no dict of `role` and `content`: {message!r}"
        if not all(isinstance(value, str) for value in message.values()):
            return f"a message holds something that is not text: {message!r}"
    marked = any(GAP in message["content"] for message in messages)
    if prompt.soft is None and marked:
        return "a prompt still has the mark GAP: `slots.prompt(i, ids)` puts tokens in its place"
    if prompt.soft is not None:
        return _soft_problem(prompt.soft, width) or _edits_problem(prompt.edits)
    return _edits_problem(prompt.edits)


def memory_problem(memory: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Why what went through `ctx.memo` cannot be stored, "" where it can."""
    for key, made in memory.items():
        for name, value in made.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                return f"ctx.memo({key!r}) was given a {kind} for {name!r}, not a tensor"
            if not isinstance(key, str) or not isinstance(name, str) or "/" in name:
                return f"ctx.memo({key!r}) was given the name {name!r}: text without a slash"
            if words := _tensor_problem(value):
                return f"ctx.memo({key!r}) was given a tensor for {name!r} {words}"
    return ""


def _soft_problem(soft: Any, width: int) -> str:
    if not isinstance(soft, Tensor) or not soft.is_floating_point():
        return f"a prompt's soft vectors are no tensor of floats, but {type(soft).__name__}"
    if soft.dim() != 2 or soft.shape[1] != width or not len(soft):
        shape = tuple(soft.shape)
        return f"a prompt's soft vectors have the shape {shape}, not (k, {width}) with k > 0"
    if not soft.isfinite().all():
        return "a prompt's soft vectors are not finite"
    words = _tensor_problem(soft)
    return f"a prompt has soft vectors {words}" if words else ""


def _edits_problem(edits: Sequence[Any]) -> str:
    if not isinstance(edits, tuple):
        return f"a prompt's edits are no tuple, but {type(edits).__name__}"
    for edit in edits:
        name = type(edit).__name__
        parameters = vars(type(edit)).get("__dataclass_params__")
        if parameters is None or not parameters.frozen:
            return f"an edit is no frozen dataclass: put @dataclass(frozen=True) above {name}"
        for field in fields(edit):
            if words := _value_problem(getattr(edit, field.name)):
                return f"the edit {name} has a field {field.name!r} {words}"
        if not isinstance(edit, Edit):
            return f"the edit {name} has no `layer` or cannot be called as edit(h, role)"
    return ""


def _value_problem(value: Any) -> str:
    if isinstance(value, Tensor):
        return _tensor_problem(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        kind = type(value).__name__
        return f"of type {kind}: its fields are tensors, or text, numbers and tuples of these"
    return ""


def _tensor_problem(tensor: Tensor) -> str:
    try:
        save({"tensor": tensor.detach().contiguous().clone()})
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        return f"that safetensors cannot save: {error}"
    return ""
