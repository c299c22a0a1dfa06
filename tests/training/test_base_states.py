"""Base states: computed once or per batch they are the same, and so are trainings with them."""

from dataclasses import replace

import pytest
import torch
import yaml

from robench.methods.registry import load_class
from robench.testing import FAMILIES, quick, tiny, tiny_context
from robench.training import base_states, loop
from robench.training.adapters import RECORD
from robench.training.base_states import BaseStates
from robench.training.corpus import collate, tokenise
from robench.types import Prompt, user

MANY = 10**6
PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]
TRAINED = ("circuit_breaker", "es2")


@pytest.fixture
def in_training(with_lora):
    """A tiny model with a LoRA adapter whose B is not zero, and texts of all lengths."""

    def make(family="llama"):
        model = with_lora(tiny(family), ["down_proj"], init_lora_weights=False)
        return model, tokenise(model.chat, tiny_context().examples)

    return make


def test_the_states_are_those_of_a_plain_pass_of_the_base(in_training):
    model, texts = in_training()
    batch = collate([texts[i] for i in (5, 40, 5, 0)])
    plain = tiny().network(batch.ids, batch.all_text.long(), output_hidden_states=True)
    whole = [plain.hidden_states[layer][batch.all_text] for layer in (0, 1)]
    for draws in (0, MANY):
        states = BaseStates(model, texts, draws, [0, 1])(batch)
        torch.testing.assert_close(states, torch.stack(whole), atol=1e-5, rtol=0)
        assert model.network.training and not states.requires_grad
    assert any(p.requires_grad for p in model.adapter.parameters())
    tuned, _ = model.forward(batch.ids, batch.all_text, [0, 1])
    assert not torch.allclose(tuned[1], whole[1], atol=1e-3)


@pytest.mark.parametrize("draws", [0, MANY])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_computed_from_the_last_layers_states(family, draws, in_training):
    """Whatever a family computes after the last block: norms, soft caps."""
    model, texts = in_training(family)
    base = BaseStates(model, texts[:8], draws, [model.depth])
    batch = collate(texts[2:5])
    plain = tiny(family).network(batch.ids, batch.all_text.long()).logits[batch.all_text]
    torch.testing.assert_close(base.logits(batch), plain, atol=1e-5, rtol=0)


def test_a_texts_states_do_not_depend_on_its_batch(in_training):
    model, texts = in_training()
    base = BaseStates(model, texts, MANY, [1, 2])
    alone = base(collate(texts[3:4]))
    start, end = len(_ids(texts[:3])), len(_ids(texts[:4]))
    assert torch.equal(base(collate(texts))[:, start:end], alone)
    assert torch.equal(BaseStates(model, texts, MANY, [1, 2])(collate(texts[3:4])), alone)


def _ids(texts):
    return [token for text in texts for token in (*text.prompt, *text.reply)]


def test_they_are_computed_once_if_it_pays_within_the_budget(monkeypatch, in_training):
    model, texts = in_training()
    need = len(_ids(texts)) * 2 * model.width * 4  # tokens, layers, fp32
    batch = collate(texts[:4])

    def passes(draws, budget):
        """Tokens read before the training, and in a step."""
        monkeypatch.setattr(base_states, "BUDGET", budget)
        start = model.usage.forward_tokens
        base = BaseStates(model, texts, draws, [1, 2])
        before = model.usage.forward_tokens
        base(batch)
        return before - start, model.usage.forward_tokens - before

    before, in_step = passes(len(texts) + 1, need)
    assert before >= len(_ids(texts)) and in_step == 0
    assert passes(len(texts), need) == (0, batch.ids.numel())
    assert passes(len(texts) + 1, need - 1) == (0, batch.ids.numel())


def settings(name):
    made = replace(quick(load_class("defense", name)(rate=1e-3)), steps=8, batch=12)
    return replace(made, kappa=1.0) if name == "es2" else replace(made, spread=1e-2)


def train(defense, folder):
    with defense.applied(tiny(), tiny_context(), folder) as target:
        states = target.hidden(PROMPT)
    record = yaml.safe_load((folder / RECORD).read_text("utf-8"))
    return states, record, (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_is_the_same_with_and_without(name, tmp_path, monkeypatch, killed):
    """And an interrupted one, too, byte for byte, with dropout if a defense has it."""
    monkeypatch.setattr(loop, "EVERY", 3)
    states, record, expected = train(settings(name), tmp_path / "kept")
    with killed():
        train(settings(name), tmp_path / "killed")
    assert train(settings(name), tmp_path / "killed")[2] == expected
    monkeypatch.setattr(base_states, "BUDGET", 0)
    others, other, _ = train(settings(name), tmp_path / "anew")
    torch.testing.assert_close(states, others, atol=1e-5, rtol=0)
    for curve in record["curves"]:
        assert record["curves"][curve] == pytest.approx(other["curves"][curve], abs=1e-4), curve
    assert record["train_tflop"] < 0.95 * other["train_tflop"]
