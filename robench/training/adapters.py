"""LoRA adapters as peft folders: train an Objective once, put it on, take it off.

The undefended model is never a second copy: it is the same weights with the adapter off.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from robench import files
from robench.config import as_dict, digest
from robench.errors import Failure
from robench.identity import source_digest
from robench.model.chat_model import ChatModel
from robench.model.folding import fold, off
from robench.model.hooks import blocks
from robench.training.corpus import Batch, fingerprint
from robench.training.loop import Cost, train_loop
from robench.types import Context, Defense, Objective

RECORD = "robench_defense.yaml"
CARD = "README.md"


@dataclass(frozen=True)
class Recipe:
    """What an adapter is, and how fast it learns.

    layers: the adapter sits on every linear map of decoder blocks 1..layers
    spread: standard deviation of LoRA's B at the start; at B = 0 the gradient of some losses is
            exactly zero, and in fp32 no rounding noise ever starts the training
    checkpointing: blocks are computed again in the backward pass instead of being held in memory
    """

    layers: int
    rate: float
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    spread: float = 0.0
    checkpointing: bool = False

    @classmethod
    def of(cls, defense: Any, layers: int) -> Recipe:
        """The recipe in the fields of a defense (`lora_alpha` is alpha), else the defaults."""
        names = {field.name: field.name for field in fields(cls)} | {"alpha": "lora_alpha"}
        del names["layers"]
        own = {to: getattr(defense, name) for to, name in names.items() if hasattr(defense, name)}
        return cls(layers, **own)


@contextmanager
def trained_adapter(
    defense: Defense,
    recipe: Recipe,
    model: ChatModel,
    ctx: Context,
    cache: Path,
    objective: Callable[[ChatModel], Objective],
) -> Iterator[ChatModel]:
    """The model with an adapter on, trained at the first visit; afterwards the base as it was.

    Args:
        defense: whose adapter it is; its settings go into the record.
        recipe: size, place and step size of the adapter.
        model: the base model; its weights never change.
        ctx: whose seed and examples go into the record.
        cache: where the peft folder is or will be; a killed training goes on from a file beside it.
        objective: makes the Objective from the model with the untrained adapter on.

    Raises:
        Failure: a loss was NaN or infinite.
    """
    if not (cache / RECORD).is_file():
        _train(defense, recipe, model, ctx, cache, objective)
    with adapter_applied(model, cache) as target:
        yield target


@contextmanager
def adapter_applied(model: ChatModel, folder: Path) -> Iterator[ChatModel]:
    """The model with the adapter of a peft folder on; afterwards the base as it was.

    Raises:
        Failure: the adapter does not fit the model, or the files are damaged.
    """
    from peft import PeftConfig, get_peft_model
    from safetensors import SafetensorError

    refused = f"the adapter in {folder.name} cannot be put on"
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise Failure(f"{refused}: it adds prompt tokens; robench wears what sits on the weights")
    config.inference_mode = True
    try:
        with _quiet(), torch.random.fork_rng():
            adapter = get_peft_model(model.network, config)
    except (ValueError, KeyError) as error:
        raise Failure(f"{refused}: {_line(error)}") from error
    with ExitStack() as undo:
        undo.callback(adapter.unload)
        try:
            _fill(adapter, folder)
        except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise Failure(f"{refused}: {_line(error)}") from error
        adapter.eval().requires_grad_(False)
        folded = fold(adapter)
        if folded:
            undo.callback(folded.put, on=False)
        yield replace(model, adapter=folded or adapter)


def _fill(adapter: Any, folder: Path) -> None:
    """Load the weights of a peft folder, all of them: a part that is missing would be undefended.

    Raises:
        ValueError: the file has other weights than the adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(folder / "adapter_model.safetensors")
    wanted = get_peft_model_state_dict(adapter, save_embedding_layers=False).keys()
    for names, what in ((wanted - found.keys(), "lacks"), (found.keys() - wanted, "has")):
        if names:
            also = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"for this model its file {what} {min(names)}{also}")
    set_peft_model_state_dict(adapter, found)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def without_adapter(model: ChatModel) -> Iterator[None]:
    """The frozen reference inside a training step: adapter off, eval mode, no gradients."""
    training = model.network.training
    model.network.eval()
    try:
        with torch.no_grad(), off(model.adapter):
            yield
    finally:
        model.network.train(training)


def tuned_and_base(
    model: ChatModel, batch: Batch, layers: Sequence[int], tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """States (layers, tokens, d) with the adapter on and, without gradients, off."""
    tuned, _ = model.forward(batch.ids, batch.all_text, layers, tokens)
    with without_adapter(model):
        base, _ = model.forward(batch.ids, batch.all_text, layers, tokens)
    return tuned, base


def _train(
    defense: Defense,
    recipe: Recipe,
    model: ChatModel,
    ctx: Context,
    cache: Path,
    objective: Callable[[ChatModel], Objective],
) -> None:
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    purpose = {
        "defense": type(defense).__name__,
        "settings": as_dict(defense),
        "recipe": asdict(recipe),
        "source": source_digest(defense),
        "base_model": str(model.network.name_or_path),
        "base_identity": model.identity,
        "train_data": fingerprint(ctx.examples),
        "reference_data": digest([[b.request, b.harmful] for b in ctx.references]),
        "seed": ctx.seed,
    }
    checkpoint = cache.with_name(f"{cache.name}.checkpoint.safetensors")
    started, counted = time.perf_counter(), model.usage.tflop

    def spent() -> Cost:
        return Cost(time.perf_counter() - started, model.usage.tflop - counted)

    with torch.random.fork_rng():
        torch.manual_seed(ctx.seed)
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
            with _checkpointed(model.network, recipe.checkpointing):
                adapter.train()
                parameters = {n: p for n, p in adapter.named_parameters() if p.requires_grad}
                for name, parameter in parameters.items():
                    if "lora_B" in name and recipe.spread:
                        nn.init.normal_(parameter, std=recipe.spread)
                goal = objective(replace(model, adapter=adapter))
                curves, cost = train_loop(
                    goal, parameters, recipe.rate, checkpoint, digest(purpose), spent
                )
            trained = get_peft_model_state_dict(adapter, save_embedding_layers=False)
            config = adapter.peft_config["default"]
        except torch.OutOfMemoryError as error:
            raise Failure(
                f"training ran out of memory: {_line(error)}; set the defense's field "
                "`checkpointing` to true or `batch` to less"
            ) from error
        finally:
            adapter.unload()
            model.network.eval()
    record = {
        "robench": version("robench"),
        **purpose,
        "steps": len(next(iter(curves.values()), [])),
        "train_seconds": round(cost.seconds, 3),
        "train_tflop": round(cost.tflop, 6),
        "notes": goal.notes(),
        "curves": curves,
    }
    _save(cache, config, trained, record)
    checkpoint.unlink(missing_ok=True)


def _save(cache: Path, config: Any, trained: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write the peft folder under a temporary name, then rename it: it is whole or not there."""
    from safetensors.torch import save

    draft = cache.with_name(f"{cache.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    files.make_folder(draft)
    config.inference_mode = True
    config.save_pretrained(str(draft))
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.items()}
    weights = save(tensors, metadata={"format": "pt"})
    files.write_bytes(draft / "adapter_model.safetensors", weights)
    files.write_text(draft / CARD, _card(record))
    files.write_text(draft / RECORD, yaml.safe_dump(record, sort_keys=False))
    files.replace_folder(draft, cache)


def _card(record: dict[str, Any]) -> str:
    """The model card, with the front matter that the hub reads."""
    front = {
        "base_model": record["base_model"],
        "library_name": "peft",
        "tags": ["robench", "safety-defense", "lora"],
    }
    losses = [
        f"| {name} | {curve[0]:.4g} | {curve[-1]:.4g} |"
        for name, curve in record["curves"].items()
        if curve
    ]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {record['defense']} on {record['base_model']}",
            "",
            f"A safety defense as a LoRA adapter, trained by robench {record['robench']} in "
            f"{record['steps']} steps with seed {record['seed']}. Settings, data hashes and loss "
            f"curves stand in `{RECORD}`.",
            "",
            "| loss | first step | last step |",
            "|---|---|---|",
            *losses,
            "",
            "How well it holds is for `robench run --defenses adapter:FOLDER` to say.",
            "",
        ]
    )


@contextmanager
def _checkpointed(network: Any, wanted: bool) -> Iterator[None]:
    if wanted:
        with _quiet():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            with _quiet():
                network.gradient_checkpointing_disable()


def _linear_names(network: nn.Module) -> list[str]:
    """Names of the linear maps inside a decoder block: q_proj, down_proj, ..."""
    inside = blocks(network)[0].named_modules()
    return sorted({n.rpartition(".")[2] for n, m in inside if isinstance(m, nn.Linear)})


@contextmanager
def _quiet() -> Iterator[None]:
    """Names of transformers that are about to go: nothing a user could mend.

    peft uses one, and the others' successors are unknown to versions that robench supports.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "`gradient_checkpointing_.*able` is deprecated")
        yield
