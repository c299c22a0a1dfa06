"""GGUF files of tiny models, written with llama.cpp's package, as its own converter would."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from robench.model.chat_model import ChatModel

CONTROL, NORMAL = 3, 1  # kinds of tokens


def write_gguf(
    path: Path,
    model: ChatModel,
    *,
    architecture: str = "llama",
    split: str = "gpt-2",
    quantisation: str = "F32",
    template: bool = True,
    tensors: dict[str, np.ndarray] | None = None,
    **settings: Any,
) -> Path:
    """Write a model.

    Args:
        split: how its vocabulary splits text, by llama.cpp's name.
        quantisation: of the matrices.
        template: whether its chat template is written.
        tensors: that are added.
        settings: further ones, with `__` for a dot.
    """
    path.parent.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    _write_shape(writer, model.network.config)
    _write_tokenizer(writer, model.chat.tokenizer, split, template, model.network.config.vocab_size)
    for key, value in settings.items():
        key = key.replace("__", ".")
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, weight in _tensors(model.network, architecture):
        exact = weight.ndim == 1 or kind == gguf.GGMLQuantizationType.F32
        if exact:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)
    for name, weight in (tensors or {}).items():
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    writer.add_vocab_size(config.vocab_size)


def _write_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Any, split: str, template: bool, vocab: int
) -> None:
    """The vocabulary, filled up to that of the model, its merges and special tokens."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = {token["content"] for token in state["added_tokens"] if token["special"]}
    kinds = [CONTROL if token in special else NORMAL for token in tokens]
    padding = [f"[PAD{number}]" for number in range(len(tokens), vocab)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tokens, *padding])
    writer.add_token_types([*kinds, *(gguf.TokenType.UNUSED for _ in padding)])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(tokenizer.chat_template)


def _tensors(network: Any, architecture: str) -> Any:
    """Names and values as llama.cpp has them; its llama pairs the rotary halves differently."""
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, network.config.num_hidden_layers)
    config = network.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in network.named_parameters():
        module, _, suffix = name.rpartition(".")
        weight = parameter.detach().float().numpy()
        count = heads.get(module.rpartition(".")[2])
        if architecture == "llama" and count:
            halves = weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:])
            weight = halves.swapaxes(1, 2).reshape(weight.shape)
        yield f"{names.get_name(module)}.{suffix}", np.ascontiguousarray(weight)
