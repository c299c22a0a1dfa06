"""A causal language model that answers a raw prompt, no chat template, with its next token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robench.errors import InputError
from robench.model.fitness import refuse_adapters
from robench.model.limits import context_of
from robench.model.loading import folder_of

if TYPE_CHECKING:
    from torch import Tensor

    from robench.model.batching import Chunks

_EDGE = 2**20  # bytes hashed at either end of a weights file


@dataclass(frozen=True)
class Classifier:
    """The model and its tokenizer in memory."""

    network: Any
    tokenizer: Any
    chunks: Chunks

    @classmethod
    def load(cls, model: str, revision: str, device: str) -> Classifier:
        """A folder or a hub id, full weights or a LoRA adapter; bf16 on CUDA, else fp32.

        Raises:
            InputError: no such model, or its files cannot be loaded.
        """
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        from robench.model.batching import Chunks

        folder = located(model, revision)
        if any(folder.glob("model*.safetensors")):  # an adapter alone names its base model
            refuse_adapters(f"judge model {model}", folder)
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            # Eager attention: fused kernels have given zero logits for whole left-padded batches.
            network = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, attn_implementation="eager"
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise InputError(
                f"judge model {model} cannot be loaded: {reason[0]} "
                "(a gated model needs its licence accepted and HF_TOKEN set)"
            ) from error
        finally:
            if bars:
                logging.enable_progress_bar()
        network = network.to(device).eval().requires_grad_(False)
        weight = network.get_input_embeddings().weight
        return cls(network, tokenizer, Chunks(weight.device, len(weight[0])))

    def clip(self, reply: str, tokens: int, end: bool = False, special: bool = False) -> str:
        """At most `tokens` of a reply in this tokenizer, its BOS counted.

        Args:
            end: whether the end of a longer reply is kept, not its beginning.
            special: whether special tokens, the BOS that was put in front too, stay as text.
        """
        self.tokenizer.truncation_side = "left" if end else "right"
        ids = self.tokenizer(reply, max_length=tokens, truncation=True)["input_ids"]
        return str(self.tokenizer.decode(ids, skip_special_tokens=not special))

    def read(self, prompts: Sequence[str], score: Callable[[Tensor], list[float]]) -> list[float]:
        """`score` of the next token's logits (batch, vocab; fp32), in the order of the prompts.

        Left-padded batches in order of length. NaN for a prompt longer than the context.
        """
        import torch

        from robench.model.batching import pad_left

        rows = [self.tokenizer(prompt)["input_ids"] for prompt in prompts]
        context = context_of(self.network.config)
        most = context.tokens if context else torch.inf
        order = [i for i in range(len(rows)) if len(rows[i]) <= most]
        order.sort(key=lambda i: -len(rows[i]))
        scores = [float("nan")] * len(rows)

        def work(part: slice) -> list[float]:
            padded, mask = pad_left([torch.tensor(rows[i])[:, None] for i in order[part]])
            device = self.network.get_input_embeddings().weight.device
            with torch.no_grad():
                logits = self.network(
                    input_ids=padded[:, :, 0].to(device),
                    attention_mask=mask.to(device),
                    position_ids=(mask.long().cumsum(1) - 1).clamp(min=0).to(device),
                    use_cache=False,
                    logits_to_keep=1,
                ).logits
            return score(logits[:, -1].float())

        longest = len(rows[order[0]]) if order else 0
        for part, result in self.chunks.map(work, len(order), longest):
            for i, value in zip(order[part], result, strict=True):
                scores[i] = value
        return scores


def located(model: str, revision: str = "") -> Path:
    """The folder of a judge's model: a local one, or the hub's, downloaded if need be.

    Raises:
        InputError: no such folder or hub id, or the hub cannot be reached.
    """
    try:
        return folder_of(f"{model}@{revision}" if revision else model)
    except InputError as error:
        raise InputError(f"judge model: {error}") from error


def commit(model: str, revision: str = "") -> str:
    """The hub's commit of a judge's model, or a hash of a local folder's configuration and weights.

    Raises:
        InputError: as for `located`.
    """
    folder = located(model, revision)
    if re.fullmatch("[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots":
        return folder.name
    files = sorted({*folder.glob("*config.json"), *folder.glob("*.safetensors")})
    if not files:
        raise InputError(f"judge model {model}: no configuration and weights in {folder}")
    state = sha256()
    for file in files:
        size = file.stat().st_size
        state.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            state.update(stream.read(_EDGE))
            stream.seek(max(0, size - _EDGE))
            state.update(stream.read())
    return state.hexdigest()
