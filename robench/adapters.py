"""LoRA adapters as peft folders: train an Objective once, put it on, take it off.

The undefended model is never a second copy: it is the same weights with the adapter off.
"""

import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm.auto import tqdm

from robench.errors import Failure
from robench.hooks import blocks
from robench.model import ChatModel
from robench.types import Objective

RECORD = "robench_defense.yaml"


@dataclass(frozen=True)
class Recipe:
    """How an adapter is made.

    layers: the adapter sits on every linear map of decoder blocks 1..layers
    spread: standard deviation of LoRA's B at the start; at B = 0 the rerouting gradient is exactly
            zero, and in fp32 no rounding noise ever starts the training
    """

    layers: int
    rate: float
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    spread: float = 0.0
    seed: int = 0


@contextmanager
def worn(
    model: ChatModel,
    recipe: Recipe,
    cache: Path,
    objective: Callable[[ChatModel], Objective],
) -> Iterator[ChatModel]:
    """The model with an adapter on, trained at the first visit; afterwards the base as it was.

    Args:
        model: the base model; its weights never change.
        recipe: size, place and step size of the adapter.
        cache: where the peft folder is or will be.
        objective: makes the Objective from the model with the untrained adapter on.

    Raises:
        Failure: a loss was NaN or infinite.
    """
    from peft import PeftModel

    if not (cache / RECORD).is_file():
        _train(model, recipe, cache, objective)
    with _quiet():
        adapter = PeftModel.from_pretrained(model.network, str(cache))
    try:
        adapter.eval().requires_grad_(False)
        yield replace(model, adapter=adapter)
    finally:
        adapter.unload()


@contextmanager
def bare(model: ChatModel) -> Iterator[None]:
    """The frozen reference inside a training step: adapter off, eval mode, no gradients."""
    training = model.network.training
    model.network.eval()
    try:
        with torch.no_grad(), model.adapter.disable_adapter():
            yield
    finally:
        model.network.train(training)


def _train(
    model: ChatModel,
    recipe: Recipe,
    cache: Path,
    objective: Callable[[ChatModel], Objective],
) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    started, spent = time.perf_counter(), model.usage.tflop
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        config = LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=recipe.dropout,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=_linear_names(model.network),
            layers_to_transform=list(range(recipe.layers)),
        )
        with _quiet():
            adapter = get_peft_model(model.network, config)
        try:
            adapter.train()
            parameters = [p for p in adapter.parameters() if p.requires_grad]
            for name, parameter in adapter.named_parameters():
                if "lora_B" in name and recipe.spread:
                    nn.init.normal_(parameter, std=recipe.spread)
            curves = _descend(replace(model, adapter=adapter), recipe, parameters, objective)
            trained = get_peft_model_state_dict(adapter)
            config = adapter.peft_config["default"]
        finally:
            adapter.unload()
            model.network.eval()
    record = {
        "recipe": asdict(recipe),
        "steps": len(next(iter(curves.values()), [])),
        "train_seconds": round(time.perf_counter() - started, 3),
        "train_tflop": round(model.usage.tflop - spent, 6),
        "curves": curves,
    }
    _save(cache, config, trained, record)


def _save(cache: Path, config: Any, trained: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the peft folder under a temporary name, then rename it: it is whole or not there."""
    from safetensors.torch import save

    draft = cache.with_name(f"{cache.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    config.inference_mode = True
    config.save_pretrained(str(draft))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
    (draft / "adapter_model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    (draft / RECORD).write_text(yaml.safe_dump(record, sort_keys=False), "utf-8")
    draft.rename(cache)


def _descend(
    model: ChatModel,
    recipe: Recipe,
    parameters: list[nn.Parameter],
    objective: Callable[[ChatModel], Objective],
) -> dict[str, list[float]]:
    """AdamW at a constant rate, no weight decay, until the objective is done; its curves."""
    goal = objective(model)
    optimizer = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=0.0)
    curves: dict[str, list[float]] = {}
    step = 0
    with tqdm(desc="training", unit="step", leave=False, disable=None) as bar:
        while not goal.done(step):
            step += 1
            losses = goal.backward(step)
            for name, value in losses.items():
                if value != value or abs(value) == float("inf"):
                    raise Failure(f"training stopped: {name} is {value} at step {step}")
                curves.setdefault(name, []).append(round(value, 6))
            optimizer.step()
            optimizer.zero_grad()
            bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
            bar.update()
    return curves


def _linear_names(network: nn.Module) -> list[str]:
    """Names of the linear maps inside a decoder block: q_proj, down_proj, ..."""
    inside = blocks(network)[0].named_modules()
    return sorted({n.rpartition(".")[2] for n, m in inside if isinstance(m, nn.Linear)})


@contextmanager
def _quiet() -> Iterator[None]:
    """peft calls transformers by a name that is about to go: nothing a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield
