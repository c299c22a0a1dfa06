"""Tiny models that say what a test wrote, for replies whose text must be known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from robench.model.chat import Chat
from robench.model.chat_model import ChatModel
from robench.model.loading import BUILT_IN, find_model

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ADDED = (
    "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>",
    "[THINK]", "[/THINK]", "<|channel|>", "<|message|>", "<|start|>", "<|return|>",
    "<|endoftext|>",
)  # fmt: skip


def chat_of(template: str, args: Mapping[str, Any] | None = None, eos: str = "<|end|>") -> Chat:
    """The organism's tokenizer with another template, and with tokens that templates write."""
    tokenizer = AutoTokenizer.from_pretrained(find_model(BUILT_IN).folder)
    tokenizer.add_special_tokens({"additional_special_tokens": list(ADDED)})
    tokenizer.eos_token = eos
    tokenizer.chat_template = template
    return Chat(tokenizer, template_args=args)


def speaking(chat: Chat, reply: str, **lengths: Any) -> ChatModel:
    """A model that says `reply` after any prompt whose last token is that of "Hello".

    The next token depends on the last one alone, so no token may occur twice; after the last one
    comes itself, again and again.
    """
    prompt = chat.encode([chat.render([{"role": "user", "content": "Hello"}])])[0]
    said = chat.tokenizer(reply, add_special_tokens=False)["input_ids"]
    chain = [prompt[-1], *said]
    assert len({*chain}) == len(chain), chat.decode([[token] for token in chain])
    size = len(chat.tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        head_dim=4,
        eos_token_id=chat.tokenizer.eos_token_id,
    )
    network = AutoModelForCausalLM.from_config(config)
    after = torch.arange(size)
    after[torch.tensor(chain)] = torch.tensor([*said, said[-1]])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        network.model.embed_tokens.weight.copy_(torch.eye(size))
        network.lm_head.weight[after, torch.arange(size)] = 1.0
    return ChatModel.of(network, chat, **lengths)


def saved(model: ChatModel, folder: Path) -> Path:
    """The model as a user's folder."""
    model.network.save_pretrained(folder)
    model.chat.tokenizer.save_pretrained(folder)
    return folder
