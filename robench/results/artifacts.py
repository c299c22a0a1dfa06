"""What an attack found, on disk: soft prompts, edits, and what it fitted once. safetensors only."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch

from robench.types import Context, Prompt


def save_prompts(prompts: Sequence[Prompt], path: Path) -> list[str | None]:
    """Save soft prompts and edits; return for each prompt the key of its tensors, if any.

    A tensor is named `PROMPT.soft` or `PROMPT.edits.NUMBER.FIELD`; other fields of an edit stand
    in the file's metadata.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, str] = {}
    keys: list[str | None] = []
    for i, prompt in enumerate(prompts):
        if prompt.access == "text":
            keys.append(None)
            continue
        keys.append(f"{path.name}:{i}")
        if prompt.soft is not None:
            tensors[f"{i}.soft"] = prompt.soft.contiguous()
        for number, edit in enumerate(prompt.edits):
            for field in fields(edit):  # type: ignore[arg-type]
                value = getattr(edit, field.name)
                name = f"{i}.edits.{number}.{field.name}"
                if isinstance(value, torch.Tensor):
                    tensors[name] = value.contiguous().clone()
                else:
                    plain[name] = json.dumps(value)
            plain[f"{i}.edits.{number}"] = type(edit).__name__
    if tensors or plain:
        _write(path, tensors, plain)
    return keys


def remember(ctx: Context, path: Path) -> None:
    """Store what the attack fitted once, so that a resumed cell uses the same."""
    if ctx.memory:
        flat = {f"{key}/{name}": t for key, made in ctx.memory.items() for name, t in made.items()}
        _write(path, {name: t.contiguous() for name, t in flat.items()}, {})


def recall(ctx: Context, path: Path) -> None:
    if path.is_file():
        from safetensors.torch import load_file

        for name, tensor in load_file(path).items():
            key, _, part = name.rpartition("/")
            ctx.memory.setdefault(key, {})[part] = tensor


def _write(path: Path, tensors: dict[str, torch.Tensor], plain: dict[str, str]) -> None:
    from safetensors.torch import save

    draft = path.with_name(f"{path.name}.tmp")
    draft.write_bytes(save(tensors, metadata=plain))  # save_file hides a full disk from us
    draft.replace(path)
