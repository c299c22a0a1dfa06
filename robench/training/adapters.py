"""LoRA adapters as peft folders: trained once on an Objective, applied to a model, removed.

The undefended model is never a second copy: it is the same weights with the adapter off.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
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
from robench.model.folding import fold_adapter
from robench.model.hooks import blocks
from robench.texts.training_texts import fingerprint
from robench.training.loop import Cost, train_loop
from robench.types import Context, Defense, Objective

RECORD = "robench_defense.yaml"
CARD = "README.md"


@dataclass(frozen=True)
class Recipe:
    """Size, place and learning rate of an adapter.

    layers:        the adapter is on every linear layer of decoder blocks 1..layers
    rate:          AdamW's learning rate
    rank, alpha, dropout: LoRA's
    spread:        standard deviation of LoRA's B at the start; at B = 0 the gradient of some losses
                   is exactly zero, and in fp32 no rounding noise ever starts the training
    checkpointing: recompute blocks in the backward pass instead of holding them in memory
    clip:          largest norm of the gradient of all weights together; 0: any
    """

    layers: int
    rate: float
    rank: int = 16
    alpha: int = 16
    dropout: float = 0.0
    spread: float = 0.0
    checkpointing: bool = False
    clip: float = 0.0

    @classmethod
    def of(cls, defense: Any, layers: int) -> Recipe:
        """The recipe in the fields of a defense (`lora_alpha` is alpha), else the defaults."""
        sources = {field.name: field.name for field in fields(cls)} | {"alpha": "lora_alpha"}
        del sources["layers"]
        declared = {field.name for field in fields(defense)}
        return cls(
            layers, **{to: getattr(defense, by) for to, by in sources.items() if by in declared}
        )


@contextmanager
def trained_adapter(
    defense: Defense,
    recipe: Recipe,
    model: ChatModel,
    ctx: Context,
    cache: Path,
    make_objective: Callable[[ChatModel], Objective],
) -> Iterator[ChatModel]:
    """The model with an adapter, which is trained on first use; afterwards the base as it was.

    Args:
        defense: whose adapter it is; its settings go into the record.
        recipe: size, place and learning rate of the adapter.
        model: the base model; its weights never change.
        ctx: its seed and hashes of its texts go into the record.
        cache: the peft folder, which exists or will be made; an interrupted training resumes from a
            file next to it.
        make_objective: makes the Objective from the model with the untrained adapter.

    Raises:
        Failure: a loss was NaN or infinite, or the training ran out of memory.
    """
    if not (cache / RECORD).is_file():
        _Training(defense, recipe, model, ctx, make_objective).run(cache)
    with adapter_applied(model, cache) as target:
        yield target


@contextmanager
def adapter_applied(model: ChatModel, folder: Path) -> Iterator[ChatModel]:
    """The model with the adapter of a peft folder; afterwards the base as it was.

    Raises:
        Failure: the adapter does not fit the model, or the files are damaged.
    """
    from peft import PeftConfig, get_peft_model
    from safetensors import SafetensorError

    rejected = f"the adapter in {folder.name} cannot be applied"
    config = PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or config.is_adaption_prompt:
        raise Failure(f"{rejected}: it adds prompt tokens; robench applies those on weights")
    config.inference_mode = True
    try:
        with _without_deprecations(), torch.random.fork_rng():
            adapter = get_peft_model(model.network, config)
    except (ValueError, KeyError) as error:
        raise Failure(f"{rejected}: {_one_line(error)}") from error
    with ExitStack() as undo:
        undo.callback(adapter.unload)
        try:
            _load_weights(adapter, folder)
        except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise Failure(f"{rejected}: {_one_line(error)}") from error
        adapter.eval().requires_grad_(False)
        folded = fold_adapter(adapter)
        if folded:
            undo.callback(folded.disable)
        yield replace(model, adapter=folded or adapter)


def _load_weights(adapter: Any, folder: Path) -> None:
    """Load all weights of a peft folder: a part that is missing would be undefended.

    Raises:
        ValueError: the file has other weights than the adapter.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(adapter, save_embedding_layers=False).keys()
    for names, verb in ((expected - weights.keys(), "lacks"), (weights.keys() - expected, "has")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"for this model its file {verb} {min(names)}{more}")
    set_peft_model_state_dict(adapter, weights)


@dataclass(frozen=True)
class _Training:
    """The training of one adapter; fields as in `trained_adapter`."""

    defense: Defense
    recipe: Recipe
    model: ChatModel
    ctx: Context
    make_objective: Callable[[ChatModel], Objective]

    def run(self, cache: Path) -> None:
        """Train the adapter, or resume, and write its peft folder."""
        from peft import get_peft_model, get_peft_model_state_dict

        purpose = self._purpose()
        checkpoint = cache.with_name(f"{cache.name}.checkpoint.safetensors")
        network = self.model.network
        with torch.random.fork_rng():
            torch.manual_seed(self.ctx.seed)
            with _without_deprecations():
                adapter = get_peft_model(network, self._lora_config())
            try:
                with _checkpointed(network, self.recipe.checkpointing):
                    adapter.train()
                    curves, cost, notes = self._fit(adapter, checkpoint, digest(purpose))
                trained = get_peft_model_state_dict(adapter, save_embedding_layers=False)
                config = adapter.peft_config["default"]
            except torch.OutOfMemoryError as error:
                raise Failure(
                    f"training ran out of memory: {_one_line(error)}; set the defense's field "
                    "`checkpointing` to true or `batch` to a smaller number"
                ) from error
            finally:
                adapter.unload()
                network.eval()
        record = {
            "robench": version("robench"),
            **purpose,
            "steps": len(next(iter(curves.values()), [])),
            "train_seconds": round(cost.seconds, 3),
            "train_tflop": round(cost.tflop, 6),
            "notes": notes,
            "curves": curves,
        }
        _save(cache, config, trained, record)
        checkpoint.unlink(missing_ok=True)

    def _fit(
        self, adapter: Any, checkpoint: Path, purpose: str
    ) -> tuple[Mapping[str, list[float]], Cost, dict[str, object]]:
        """Loss curves, cost and the objective's notes of the training of a new adapter."""
        usage = self.model.usage
        start, start_tflop = time.perf_counter(), usage.tflop

        def cost() -> Cost:
            return Cost(time.perf_counter() - start, usage.tflop - start_tflop)

        parameters = {n: p for n, p in adapter.named_parameters() if p.requires_grad}
        for name, parameter in parameters.items():
            if "lora_B" in name and self.recipe.spread:
                nn.init.normal_(parameter, std=self.recipe.spread)
        objective = self.make_objective(replace(self.model, adapter=adapter))
        rate, clip = self.recipe.rate, self.recipe.clip
        curves, total = train_loop(objective, parameters, rate, checkpoint, purpose, cost, clip)
        return curves, total, objective.notes()

    def _purpose(self) -> dict[str, Any]:
        """What is trained: the head of the record, and the key that a checkpoint must have."""
        return {
            "defense": type(self.defense).__name__,
            "settings": as_dict(self.defense),
            "recipe": asdict(self.recipe),
            "source": source_digest(self.defense),
            "base_model": str(self.model.network.name_or_path),
            "base_identity": self.model.identity,
            "train_data": fingerprint(self.ctx.examples),
            "reference_data": digest([[b.request, b.harmful] for b in self.ctx.references]),
            "seed": self.ctx.seed,
        }

    def _lora_config(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.recipe.rank,
            lora_alpha=self.recipe.alpha,
            lora_dropout=self.recipe.dropout,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=_linear_names(self.model.network),
            layers_to_transform=list(range(self.recipe.layers)),
        )


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
            f"curves are in `{RECORD}`.",
            "",
            "| loss | first step | last step |",
            "|---|---|---|",
            *losses,
            "",
            *_card_notes(record["notes"]),
            "`robench run --defenses adapter:FOLDER` measures how well it holds.",
            "",
        ]
    )


def _card_notes(notes: Mapping[str, Any]) -> list[str]:
    """The notes of a training as lines of the card: warnings first, then its figures by name."""
    lines = [f"**Note:** {warning}." for warning in notes.get("warnings", ())]
    figures = [f"- {name}: {value}" for name, value in _figures(notes) if name != "warnings"]
    return [line for part in (lines, figures) for line in (*part, "") if part]


def _figures(notes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of notes; those inside a mapping by both names; no lists of mappings."""
    for name, value in notes.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}, ")
        elif isinstance(value, (list, tuple)):
            if not any(isinstance(entry, Mapping) for entry in value):
                yield prefix + name, ", ".join(map(_figure, value))
        else:
            yield prefix + name, _figure(value)


def _figure(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _checkpointed(network: Any, enabled: bool) -> Iterator[None]:
    if enabled:
        with _without_deprecations():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if enabled:
            with _without_deprecations():
                network.gradient_checkpointing_disable()


def _linear_names(network: nn.Module) -> list[str]:
    """Names of the linear layers inside a decoder block: q_proj, down_proj, ..."""
    modules = blocks(network)[0].named_modules()
    return sorted({n.rpartition(".")[2] for n, m in modules if isinstance(m, nn.Linear)})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Ignore deprecations in transformers that a user can do nothing about.

    peft uses one of the names, and those that replace the others are unknown to versions that
    robench supports.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        warnings.filterwarnings("ignore", "`gradient_checkpointing_.*able` is deprecated")
        yield
