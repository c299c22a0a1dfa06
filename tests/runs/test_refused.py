"""What a model cannot be asked is told before a run begins, and replies without end are counted."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from speakers import CHATML, chat_of, saved, speaking

from robench.testing import tiny

THINGS = ("lamp", "box")


def asked(call, folder: Path, model: Path, *words: str):
    """`robench run` on a model's folder: its code, what it printed, its last line of errors, and
    the run's folder."""
    for name, verb in (("behaviors", "wreck"), ("benign", "mend")):
        rows = [{"prompt": f"Tell me how to {verb} a {t}.", "target": "Sure"} for t in THINGS]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = folder / "run"
    code, printed, told = call(
        "run", "--model", model, "--attacks", "direct", "--defenses", "none", "--device", "cpu",
        "--behaviors", folder / "behaviors.jsonl", "--benign", folder / "benign.jsonl",
        "--judges", "keyword", "--out", out, *words,
    )  # fmt: skip
    return code, printed, (told.splitlines() or [""])[-1], out


def test_replies_that_never_ended_are_counted(call, tmp_path):
    model = saved(speaking(chat_of(CHATML), "No way"), tmp_path / "model")
    code, printed, _, out = asked(call, tmp_path, model, "--max-new-tokens", "6")
    assert code == 0 and "2 never ended" in printed
    assert "2 never ended" in (out / "dsr.md").read_text()
    ends = saved(speaking(chat_of(CHATML), "No way.<|im_end|>"), tmp_path / "ends")
    again = tmp_path / "again"
    again.mkdir()
    assert "never ended" not in asked(call, again, ends, "--max-new-tokens", "6")[1]


def test_a_system_prompt_that_the_template_drops(call, tmp_path):
    dropping = CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}")
    model = saved(speaking(chat_of(dropping), "No"), tmp_path / "model")
    code, _, told, out = asked(call, tmp_path, model, "--system", "Be kind.")
    assert code == 2 and not out.exists()
    assert "the chat template leaves the system prompt out" in told


def test_an_argument_that_the_template_does_not_know(call, tmp_path):
    model = saved(speaking(chat_of(CHATML), "No"), tmp_path / "model")
    code, _, told, out = asked(call, tmp_path, model, "--template-arg", "enable_thinking=false")
    assert code == 2 and not out.exists()
    assert "--template-arg enable_thinking: the chat template knows no such variable" in told
    told = asked(call, tmp_path, model, "--template-arg", "enable_thinking")[2]
    assert "--template-arg enable_thinking: write it as KEY=VALUE" in told


CONTEXTS = {
    "gpt2": ("GPT2Config", {"n_positions": 60, "n_embd": 32, "n_head": 4, "n_layer": 2}),
    "rotary": (
        "LlamaConfig",
        {
            "max_position_embeddings": 60, "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 4,
        },
    ),
    "longrope": (
        "Phi3Config",
        {
            "max_position_embeddings": 512, "original_max_position_embeddings": 60,
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0,
            "rope_parameters": {
                "rope_theta": 10000.0, "rope_type": "longrope", "short_factor": [1.0] * 4,
                "long_factor": [9.0] * 4,
            },
        },
    ),
}  # fmt: skip


@pytest.fixture(params=CONTEXTS)
def short_model(request, tmp_path) -> Path:
    """A model that reads 60 tokens."""
    name, fields = CONTEXTS[request.param]
    chat = tiny().chat
    ends = {"eos_token_id": chat.tokenizer.eos_token_id, "bos_token_id": 0}
    config = getattr(transformers, name)(vocab_size=len(chat.tokenizer), **ends, **fields)
    with torch.random.fork_rng():
        network = transformers.AutoModelForCausalLM.from_config(config)
    network.save_pretrained(tmp_path / "model")
    chat.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_what_does_not_fit_into_the_context(call, tmp_path, short_model):
    code, _, told, out = asked(call, tmp_path, short_model)
    assert code == 2 and not out.exists()
    assert "reads 60 tokens" in told and "replies of up to" in told
    assert "4 of 4 requests are too long" in told and "--max-new-tokens" in told
    assert asked(call, tmp_path, short_model, "--max-new-tokens", "8")[0] == 0


def test_a_prompt_that_an_attack_makes_too_long_is_a_hole(call, tmp_path, short_model):
    words = ("--attacks", "gcg", "--max-new-tokens", "8", "--set", "gcg.steps=1", "gcg.width=2")
    init = "gcg.init=" + "! " * 40
    code, printed, _, _ = asked(call, tmp_path, short_model, *words, init)
    assert code == 3 and "more than the 60 that the model reads" in printed
