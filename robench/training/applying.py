"""Adapters as peft folders, put on a model and taken off again; whoever trained them.

peft itself is silent where an adapter does not fit: weights without a place are left out, and a
part that is missing stays untrained. Here that is an error, as it would be a model without defense.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robench import files
from robench.errors import Failure, InputError
from robench.model.chat_model import ChatModel
from robench.model.folding import FoldedAdapter, fold_adapter
from robench.training.adapter_names import fitted_to

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
# Ways to start LoRA that leave the base model's weights as they are
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@contextmanager
def adapter_applied(model: ChatModel, folder: Path) -> Iterator[ChatModel]:
    """The model with the adapter of a peft folder; afterwards the base as it was.

    Embeddings that were saved with the adapter take the place of the model's, as they do in peft.

    Raises:
        InputError: its configuration is damaged or of an unknown kind.
        Failure: the adapter does not fit the model, or the files are damaged.
    """
    from peft import get_peft_model
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    rejected = f"the adapter in {folder.name} cannot be applied"
    config = adapter_config(folder)
    _refuse_other_kinds(config, rejected)
    config.inference_mode = True
    with ExitStack() as undo:
        try:
            weights = fitted_to(model.network, config, load_file(folder / WEIGHTS))
            undo.callback(_put_back, _children(model.network))
            with without_deprecations(), torch.random.fork_rng():
                adapter = get_peft_model(model.network, config)
            undo.callback(adapter.unload)
            of_base = (*_embeddings(adapter, weights), *_biases(adapter, weights))
            _load_weights(adapter, weights)
        except (ValueError, RuntimeError, LookupError, TypeError, SafetensorError) as error:
            raise Failure(f"{rejected}: {one_line(error)}") from error
        adapter.eval().requires_grad_(False)
        folded = fold_adapter(adapter)
        if of_base:
            rest = None if folded else adapter
            folded = FoldedAdapter((*(folded.weights if folded else ()), *of_base), rest)
            folded.enable()
        if folded:
            undo.callback(folded.disable)
        yield replace(model, adapter=folded or adapter)


def _children(network: nn.Module) -> list[tuple[nn.Module, dict[str, nn.Module | None]]]:
    """Every module of a network with those right below it."""
    return [(module, dict(module._modules)) for module in network.modules()]


def _put_back(parts: list[tuple[nn.Module, dict[str, nn.Module | None]]]) -> None:
    """Every module where it was.

    peft leaves what it has put on when it fails half way, and when it takes an adapter off, the
    modules that were trained and saved whole (`modules_to_save`).
    """
    for module, children in parts:
        module._modules.clear()
        module._modules.update(children)


def adapter_config(folder: Path) -> Any:
    """The peft configuration of a folder.

    Raises:
        InputError: it is no JSON object, of a kind that peft does not know, or of a later version
            of peft and asks for what this one does not do.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, __version__

    path = folder / CONFIG
    settings = _settings(path)
    kind = settings.get("peft_type")
    if kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        known = ", ".join(sorted(str(name.value) for name in PEFT_TYPE_TO_CONFIG_MAPPING))
        raise InputError(
            f"{path}: peft {__version__} knows no adapters of the kind {kind!r}: upgrade peft, or "
            f"give one of the kinds {known}"
        )
    cls = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    strange = settings.keys() - {field.name for field in fields(cls)}
    for name in sorted(strange):  # numbers are defaults of settings that are off
        if settings[name] and (
            settings[name] is True or not isinstance(settings[name], (int, float))
        ):
            raise InputError(
                f"{path} asks for {name}, which peft {__version__} does not do: upgrade peft"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the settings above
            return cls(**{name: v for name, v in settings.items() if name not in strange})
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = files.read_json(path)
    except InputError as error:
        raise InputError(f"{error}; save or download the adapter again") from None
    if not isinstance(settings, dict):
        raise InputError(
            f"{path} is damaged: it is not a JSON object; save or download the adapter again"
        )
    return settings


def _refuse_other_kinds(config: Any, rejected: str) -> None:
    """Refuse an adapter that is more than weights, or changes those of the base model for good.

    Raises:
        Failure: it is one.
    """
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise Failure(f"{rejected}: it adds prompt tokens; robench applies those on weights")
    if getattr(config, "layer_replication", None):
        raise Failure(f"{rejected}: it repeats layers; merge it into a model and give model:FOLDER")
    start = getattr(config, "init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        raise Failure(
            f"{rejected}: it was started by {start!r}, which changes the base model: convert it to "
            "plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _load_weights(adapter: Any, weights: dict[str, Tensor]) -> None:
    """Load all weights of a peft folder: a part that is missing would be undefended.

    Raises:
        ValueError: the file has other weights than the adapter.
    """
    from peft import set_peft_model_state_dict

    result = set_peft_model_state_dict(adapter, weights)
    own = {name for name, _ in adapter.named_parameters() if ".default" in name}
    lacking = own & set(result.missing_keys)
    for names, verb in ((lacking, "lacks"), (set(result.unexpected_keys), "has")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"for this model its file {verb} {min(names).replace('.default', '')}{more}"
            )


def _embeddings(
    adapter: Any, weights: dict[str, Tensor]
) -> tuple[tuple[nn.Parameter, Tensor, Tensor], ...]:
    """Take embeddings of the base model out of an adapter's weights: each with its own and these.

    Raises:
        ValueError: they are of other tokens than the model's.
    """
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: dict[nn.Parameter, Tensor] = {}
    name_of = {module: name for name, module in adapter.named_modules()}
    for module in (
        adapter.get_input_embeddings(),
        adapter.base_model.model.get_output_embeddings(),
    ):
        if module is None or isinstance(module, AuxiliaryTrainingWrapper):
            continue
        base = getattr(module, "base_layer", module)
        name = name_of[module].removesuffix(".base_layer")
        for key in (f"{name}.weight", f"{name}.base_layer.weight"):
            if key in weights:
                _add(found, base.weight, weights.pop(key), key)
    return tuple((p, p.data, w) for p, w in found.items() if not torch.equal(p.data, w))


def _biases(
    adapter: Any, weights: dict[str, Tensor]
) -> tuple[tuple[nn.Parameter, Tensor, Tensor], ...]:
    """Take biases of the base model out of an adapter's weights (`bias="all"`), likewise.

    peft writes them over the model's own, for good.
    """
    found = []
    for name, parameter in adapter.named_parameters():
        is_of_base = name.endswith(".bias") and "lora_" not in name and "_to_save" not in name
        if is_of_base and name in weights:
            found.append((parameter, parameter.data, weights.pop(name).to(parameter)))
    return tuple(found)


def _add(found: dict[nn.Parameter, Tensor], parameter: nn.Parameter, new: Tensor, key: str) -> None:
    if new.shape != parameter.shape:
        raise ValueError(
            f"its {key} embeds {len(new)} tokens and the model {len(parameter)}: it has tokens of "
            "its own; merge it into a model and give model:FOLDER"
        )
    new = new.to(parameter)
    if not torch.equal(found.setdefault(parameter, new), new):
        raise ValueError(f"its {key} differs from its other embedding, and the model has one")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def without_deprecations() -> Iterator[None]:
    """Ignore deprecations in transformers that a user can do nothing about.

    peft uses one of the names, and those that replace the others are unknown to versions that
    robench supports.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "`gradient_checkpointing_.*able` is deprecated")
        yield
