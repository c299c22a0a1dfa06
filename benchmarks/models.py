"""The models that benchmarks run on: by name, or random weights of a published shape.

python -m benchmarks.models 8b FOLDER [--device cuda]     the weights, for several benchmarks
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from robench import organism
from robench.model.chat_model import ChatModel
from robench.model.loading import find_model, load_model

# Llama 3.2 1B and Llama 3 8B, and one to try commands with; all with the organism's tokenizer
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "toy": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "tie_word_embeddings": True,
        "vocab_size": 2048,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    older_copy(args.folder, args.shape, args.device)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `load_from_arguments` reads."""
    parser.add_argument("--model", default="organism")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shape", choices=SHAPES, help="random weights in bf16 on CUDA")


def load_from_arguments(args: argparse.Namespace, max_new_tokens: int = 64) -> ChatModel:
    """The model that the arguments name; with --shape, sets the others in `args` accordingly."""
    with tempfile.TemporaryDirectory() as scratch:
        name = args.model
        if args.shape:
            folder = Path(scratch) / "model"
            older_copy(folder, args.shape)
            name, args.model = str(folder), f"Llama {args.shape}"
            args.device, args.dtype = "cuda", "bfloat16"
        return load_model(
            find_model(name), device=args.device, dtype=args.dtype, max_new_tokens=max_new_tokens
        )


def older_copy(folder: Path, shape: str | None, device: str = "cuda") -> None:
    """The organism, or random weights of a shape, in a form that transformers 4.47 and 5 load."""
    shutil.copytree(organism.FOLDER, folder)
    if shape:
        (folder / "model.safetensors").unlink()
        random_weights(folder, shape, device)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    settings["chat_template"] = (folder / "chat_template.jinja").read_text("utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    # nanoGCG removes the BOS that the template writes, and expects the tokenizer to add one
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    bos = {"id": "<s>", "ids": [config["bos_token_id"]], "tokens": ["<s>"]}
    whole = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": whole,
        "pair": [*whole, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": bos},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def random_weights(folder: Path, shape: str, device: str = "cuda") -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig

    organism_config = json.loads((folder / "config.json").read_text("utf-8"))
    config = LlamaConfig(
        **{"vocab_size": 128256, **SHAPES[shape]},
        num_key_value_heads=8,
        **{key: organism_config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    torch.manual_seed(0)
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder, max_shard_size="2GB")  # a shard at a time is on the CPU
    del network
    torch.cuda.empty_cache()  # other processes need the memory


if __name__ == "__main__":
    main()
