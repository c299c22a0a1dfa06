"""LoRA adapters as peft folders: trained once on an Objective, applied to a model, removed.

The undefended model is never a second copy: it is the same weights with the adapter off.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from robench.texts.training_texts import fingerprint
from robench.training.applying import adapter_applied, one_line, without_deprecations
from robench.training.linear_maps import LinearMaps
from robench.training.loop import Cost, train_loop
from robench.types import Context, Defense, Objective

RECORD = "robench_defense.yaml"
CARD = "README.md"


@dataclass(frozen=True)
class Recipe:
    """Size, place and learning rate of an adapter.

    layers:        the adapter is on every linear map of decoder blocks 1..layers, those of experts
                   included (`LinearMaps`)
    rate:          AdamW's learning rate
    rank, alpha, dropout: LoRA's; with experts there is no dropout, as peft has none for them
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

        maps = LinearMaps.of(self.model.network, self.recipe.layers)
        purpose = self._purpose()
        checkpoint = cache.with_name(f"{cache.name}.checkpoint.safetensors")
        network = self.model.network
        with torch.random.fork_rng():
            torch.manual_seed(self.ctx.seed)
            with without_deprecations():
                adapter = get_peft_model(network, self._lora_config(maps))
            try:
                with _checkpointed(network, self.recipe.checkpointing):
                    adapter.train()
                    curves, cost, notes = self._fit(adapter, checkpoint, digest(purpose))
                trained = get_peft_model_state_dict(adapter, save_embedding_layers=False)
                config = adapter.peft_config["default"]
            except torch.OutOfMemoryError as error:
                raise Failure(
                    f"training ran out of memory: {one_line(error)}; set the defense's field "
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
            "linear_weights": maps.record(self.recipe.dropout),
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

    def _lora_config(self, maps: LinearMaps) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.recipe.rank,
            lora_alpha=self.recipe.alpha,
            lora_dropout=0.0 if maps.parameters else self.recipe.dropout,
            bias="none",
            task_type="CAUSAL_LM",
            target_modules=list(maps.modules),
            target_parameters=list(maps.parameters) or None,
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
            *_card_lines(record["linear_weights"]),
            "`robench run --defenses adapter:FOLDER` measures how well it holds.",
            "",
        ]
    )


def _card_notes(notes: Mapping[str, Any]) -> list[str]:
    """The notes of a training as lines of the card: warnings first, then its figures by name."""
    lines = [f"**Note:** {warning}." for warning in notes.get("warnings", ())]
    figures = [f"- {name}: {value}" for name, value in _figures(notes) if name != "warnings"]
    return [line for part in (lines, figures) for line in (*part, "") if part]


def _card_lines(reached: Mapping[str, Any]) -> list[str]:
    """What the adapter does not reach as lines of the card; none if it reaches everything."""
    lines = [f"**Note:** {reached[key]}." for key in ("note", "dropout") if key in reached]
    return [part for line in lines for part in (line, "")]


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
        with without_deprecations():
            network.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if enabled:
            with without_deprecations():
                network.gradient_checkpointing_disable()
