"""What an attack made, on disk: soft prompts, edits, and what it fitted once. safetensors only.

A tensor is named `PROMPT.soft` or `PROMPT.edits.NUMBER.FIELD`. Other fields of an edit stand in the
file's metadata as JSON, and its class as `module:name` under `PROMPT.edits.NUMBER`.

A run's folder may come from others. Reading one imports nothing but installed attacks and defenses,
whatever names it holds, and makes nothing but edits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from safetensors.torch import load, save

from robench.config import build
from robench.errors import InputError
from robench.results.schema import Artifact
from robench.types import Context, Edit, Prompt

if TYPE_CHECKING:
    import pandas as pd

_FROM_A_FILE = "robench_file_"  # modules of methods that are a file: methods/registry.py


def packed_prompts(prompts: Sequence[Prompt], name: str) -> tuple[list[str | None], bytes | None]:
    """For each prompt the key of its soft vectors and edits, if any, and the file of them all.

    Args:
        name: of the file, which must be on the disk before rows that cite the keys are; None is
            given back where no prompt has any.
    """
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, str] = {}
    keys: list[str | None] = []
    for i, prompt in enumerate(prompts):
        if prompt.access == "text":
            keys.append(None)
            continue
        keys.append(f"{name}:{i}")
        if prompt.soft is not None:
            tensors[f"{i}.soft"] = prompt.soft.contiguous()
        for number, edit in enumerate(prompt.edits):
            key = f"{i}.edits.{number}"
            plain[key] = f"{type(edit).__module__}:{type(edit).__qualname__}"
            for field in fields(edit):  # type: ignore[arg-type]
                value = getattr(edit, field.name)
                if isinstance(value, torch.Tensor):
                    tensors[f"{key}.{field.name}"] = value.contiguous().clone()
                else:
                    plain[f"{key}.{field.name}"] = json.dumps(value)
    return keys, save(tensors, metadata=plain) if tensors or plain else None


def load_prompt(row: Mapping[str, Any] | pd.Series[Any]) -> Prompt:
    """The prompt of a row of `load_rows` as the target received it, its tensors on the CPU.

    Raises:
        InputError: its tensors are gone or damaged, or the class of an edit cannot be had: the
            file of its attack is not loaded, or its module is of no installed attack or defense.
    """
    return read_prompt(Path(row["run"]) / "cells" / row["cell"], row["artifact"])


def read_prompt(cell: Path, artifact: Artifact) -> Prompt:
    """The prompt that the artifact of a row in a cell's folder describes; see `load_prompt`."""
    messages = tuple(artifact["messages"])
    if artifact["tensors"] is None:
        return Prompt(messages)
    name, _, key = artifact["tensors"].partition(":")
    tensors, plain = _read(cell / "tensors" / Path(name).name)
    edits: list[Edit] = []
    while f"{key}.edits.{len(edits)}" in plain:
        edits.append(_edit(f"{key}.edits.{len(edits)}", tensors, plain))
    soft = tensors.get(f"{key}.soft")
    if soft is None and not edits:
        raise InputError(f"{cell / 'tensors' / name} holds nothing of prompt {key}")
    return Prompt(messages, soft, tuple(edits))


def packed_memory(ctx: Context) -> bytes | None:
    """The file of what an attack fitted once, so that a resumed cell uses the same; None: nothing.

    As of prompts, it must be on the disk before the rows of those whom it served.
    """
    if not ctx.memory:
        return None
    flat = {f"{key}/{name}": t for key, made in ctx.memory.items() for name, t in made.items()}
    return save({name: t.contiguous() for name, t in flat.items()})


def merged_memory(before: bytes | None, after: bytes) -> bytes:
    """The file of what was fitted before and of what is new beside it; what was first stands."""
    return after if before is None else save({**load(after), **load(before)})


def recall(ctx: Context, memory: bytes) -> None:
    """Give the context back what is in the file of `packed_memory`.

    Raises:
        InputError: it is damaged.
    """
    from safetensors import SafetensorError

    try:
        tensors = load(memory)
    except SafetensorError as error:
        raise InputError(f"cannot read what the attack fitted: {error}") from error
    for name, tensor in tensors.items():
        key, _, part = name.rpartition("/")
        ctx.memory.setdefault(key, {})[part] = tensor


def _edit(name: str, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, str]) -> Edit:
    """The edit that is stored under a name."""
    cls = _edit_class(plain[name])
    try:
        hints = get_type_hints(cls)
        values: dict[str, Any] = {}
        for field in (field.name for field in fields(cls) if field.init):
            stored = f"{name}.{field}"
            if stored in tensors:
                values[field] = tensors[stored]
            else:
                values[field] = _plain(plain[stored], hints[field])
        edit = build(cls, values)
    except (KeyError, NameError, TypeError, json.JSONDecodeError) as error:
        raise InputError(
            f"the stored edit {plain[name]} does not fit its class: {error}"
        ) from error
    if not isinstance(edit, Edit):
        raise InputError(f"{plain[name]} is not an edit")
    return edit


def _plain(text: str, hint: Any) -> Any:
    """A value from its JSON; `build` turns lists into the tuples that a hint asks for.

    `build` reads text as YAML unless the hint is `str`; a string stays in its JSON's quotes then.
    """
    value = json.loads(text)
    return text if isinstance(value, str) and hint is not str else value


def _edit_class(reference: str) -> type:
    """The dataclass `module:name` of an edit.

    Raises:
        InputError: its module is neither imported nor of an installed attack or defense, or there
            is no such dataclass with a `layer` in it.
    """
    module, _, name = reference.partition(":")
    if module not in sys.modules:
        if module.startswith(_FROM_A_FILE):
            raise InputError(
                f"the edit {name} is of an attack in a file: load the attack's file first, from "
                'where the run had it, by robench.methods.registry.load_class("attack", '
                '"FILE.py:CLASS")'
            )
        if not _is_installed_method(module):
            raise InputError(
                f"the edit {reference} is of no installed attack or defense: install its package, "
                "or import the module first if you trust it"
            )
    try:
        member: Any = import_module(module)
    except ImportError as error:
        raise InputError(f"the module of the edit {reference} fails to import: {error}") from error
    for part in name.split("."):  # no getattr, which imports what a package loads lazily
        member = vars(member).get(part) if isinstance(member, type | ModuleType) else None
    if not (isinstance(member, type) and is_dataclass(member)):
        raise InputError(f"{reference} is not an edit: there is no such dataclass")
    if "layer" not in (field.name for field in fields(member)):
        raise InputError(f"{reference} is not an edit: it has no field `layer`")
    return member


def _is_installed_method(module: str) -> bool:
    """Whether a module is that of a registered attack or defense, or beside one in its package."""
    for group in ("robench.attacks", "robench.defenses"):
        for entry in entry_points(group=group):
            package = entry.module.rpartition(".")[0]
            if module == entry.module or (package and module.rpartition(".")[0] == package):
                return True
    return False


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a file.

    Raises:
        InputError: it is gone or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read the tensors in {path}: {error}") from error
