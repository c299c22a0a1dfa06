"""How many tokens a model reads, and what the engine cannot read rightly: refused by name."""

from dataclasses import replace

import pytest
import torch
import transformers

from robench.errors import Failure, InputError
from robench.model.chat_model import ChatModel
from robench.model.limits import context_of, unsupported
from robench.testing import tiny
from robench.types import GAP, Prompt, user

SHORT, LONG = Prompt(user("Why?")), Prompt(user("Tell me how to wreck a lamp."))
ROTARY = {"rope_theta": 10000.0}
LONGROPE = {
    **ROTARY, "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [9.0] * 4,
}  # fmt: skip
PHI3 = {
    "max_position_embeddings": 512,
    "original_max_position_embeddings": 48,
    "rope_parameters": LONGROPE,
}
SHAPE = {"hidden_size": 32, "num_attention_heads": 4}
YARN = {**ROTARY, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def of(config: str, **fields) -> ChatModel:
    """A tiny random model of a configuration's class."""
    chat = tiny().chat
    shape = {
        "vocab_size": len(chat.tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 8, "initializer_range": 0.2, "eos_token_id": chat.tokenizer.eos_token_id,
        "pad_token_id": chat.tokenizer.pad_token_id, "bos_token_id": chat.tokenizer.bos_token_id,
    }  # fmt: skip
    made = getattr(transformers, config)(**{**shape, **fields})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(made)
    return ChatModel.of(network, chat, max_new_tokens=8)


@pytest.mark.parametrize(
    ("config", "fields", "tokens"),
    [
        ("GPT2Config", {"n_positions": 40}, 40),
        ("LlamaConfig", {"max_position_embeddings": 40}, 40),
        ("Phi3Config", {**PHI3, **SHAPE}, 48),
        ("Qwen2Config", {"max_position_embeddings": 64, "rope_parameters": YARN}, 256),
        ("BloomConfig", {}, None),
    ],
)
def test_the_context_stands_in_the_config(config, fields, tokens):
    found = context_of(getattr(transformers, config)(**fields))
    assert (found and found.tokens) == tokens


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ("GPT2Config", {"n_positions": 40, "n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("LlamaConfig", {"max_position_embeddings": 40}),
        ("Phi3Config", PHI3),
    ],
)
def test_what_is_too_long_is_refused_and_what_fits_is_not(config, fields):
    model = of(config, **fields)
    room = context_of(model.network.config).tokens - len(model._prompt_ids(LONG))
    fitting = replace(model, max_new_tokens=room)
    assert len(fitting.replies([SHORT, LONG])) == 2
    told = f"more than the {context_of(model.network.config).tokens} that the model reads"
    with pytest.raises(Failure, match=told):
        replace(model, max_new_tokens=room + 1).replies([SHORT, LONG])
    words = "a b c d e f g h " * 40
    for pass_ in (
        lambda: model.nll([SHORT], [words]),
        lambda: model.hidden([Prompt(user(words))]),
        lambda: model.forward(torch.zeros(1, 600, dtype=torch.long), torch.ones(1, 600), [1]),
    ):
        with pytest.raises(Failure, match=told):
            pass_()
    slots = model.slots([user(f"Hello{GAP}")], ["Sure"])
    with pytest.raises(Failure, match=told):
        slots.loss(torch.full((1, 1, 600), 20))
    with pytest.raises(Failure, match=told):
        slots.loss_of_embeddings(torch.zeros(1, 600, model.width))


def test_longrope_replies_are_those_of_transformers():
    """Also beside rows of other lengths, as none crosses the length where the angles change."""
    model = of("Phi3Config", **PHI3)
    model = replace(model, max_new_tokens=48 - len(model._prompt_ids(LONG)))
    for prompt, reply in zip((SHORT, LONG), model.replies([SHORT, LONG]), strict=True):
        ids = torch.tensor([model._prompt_ids(prompt)])
        new = model.network.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=model.max_new_tokens,
            do_sample=False, pad_token_id=0,
        )[0, ids.shape[1] :].tolist()  # fmt: skip
        assert reply.text == model.chat.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (
            "Gemma3nTextConfig",
            {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 5},
        ),
        ("Gemma4TextConfig", {}),
    ],
)
def test_embeddings_per_layer_are_refused_by_name(config, fields):
    made = getattr(transformers, config)(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=64, num_kv_shared_layers=0,
        layer_types=["sliding_attention"] * 4 + ["full_attention"], **fields,
    )  # fmt: skip
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(made)
    assert "embeddings for every layer by token ids" in unsupported(network)
    with pytest.raises(InputError, match=f"{type(network).__name__} looks up embeddings"):
        ChatModel.of(network, tiny().chat)
