"""Adapters: an interrupted training ends with the same bytes, the record has what was done."""

from dataclasses import replace

import pytest
import torch
import yaml

from robench.errors import Failure
from robench.methods.registry import load_class
from robench.model import folding
from robench.model.folding import FoldedAdapter, fold_adapter
from robench.model.hooks import blocks
from robench.testing import quick, tiny, tiny_context
from robench.training import FineTuning, applying, loop
from robench.training.adapters import CARD, RECORD, Recipe
from robench.training.corpus import split_examples, tokenise
from robench.types import Prompt, user

TRAINED = ["circuit_breaker", "repbend", "benign_lora"]
PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


def defense(name: str, **settings):
    return replace(quick(load_class("defense", name)(rate=1e-2)), **{"steps": 7, **settings})


def train(name, folder, model=None, **settings):
    ctx = tiny_context()
    with defense(name, **settings).applied(model or tiny(), ctx, folder / "cache"):
        pass
    return (folder / "cache" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", TRAINED)
def test_an_interrupted_training_ends_with_the_same_adapter(name, tmp_path, monkeypatch, killed):
    """With dropout: every generator has to be restored, too."""
    monkeypatch.setattr(loop, "EVERY", 2)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    expected = train(name, tmp_path / "whole")
    with killed(2):  # after step 4
        train(name, tmp_path / "killed")
    assert not (tmp_path / "killed" / "cache").exists()
    model = tiny()
    steps = []
    backward = type(objective_of(name, model)).backward
    monkeypatch.setattr(
        type(objective_of(name, model)),
        "backward",
        lambda self, step: steps.append(step) or backward(self, step),
    )
    assert train(name, tmp_path / "killed", model) == expected
    assert steps == [5, 6, 7]
    record = yaml.safe_load((tmp_path / "killed" / "cache" / RECORD).read_text())
    assert all(len(curve) == 7 for curve in record["curves"].values())
    assert [file.name for file in (tmp_path / "killed").iterdir()] == ["cache"]


def objective_of(name, model):
    source = __import__(load_class("defense", name).__module__, fromlist=["x"])
    settings, ctx = defense(name), tiny_context()
    if name == "circuit_breaker":
        return source.Rerouting(settings, model, [1, 2], ctx)
    if name == "repbend":
        return source.Bending(settings, model, [1, 2], ctx)
    texts = tokenise(model.chat, split_examples(ctx.examples).harmless)
    return FineTuning(model, texts, settings.batch, settings.steps, ctx.rng("benign_lora"))


@pytest.mark.parametrize("name", TRAINED)
def test_checkpointing_changes_only_memory(name, tmp_path):
    states = []
    for on in (False, True):
        folder = tmp_path / str(on)
        settings = {"dropout": 0.0, "checkpointing": on, "steps": 3}
        with defense(name, **settings).applied(tiny(), tiny_context(), folder) as target:
            states.append(target.hidden(PROMPT))
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)


def test_the_record_and_the_card_have_what_was_done(tmp_path):
    train("circuit_breaker", tmp_path)
    record = yaml.safe_load((tmp_path / "cache" / RECORD).read_text())
    assert record["defense"] == "CircuitBreaker" and record["seed"] == 0
    assert record["settings"]["steps"] == record["steps"] == 7
    shares = {"harmless": 0.714306, "refusals": 0.285694}  # no request that only looks harmful
    assert record["notes"]["layers"] == [1] and record["notes"]["retain_shares"] == shares
    assert len(record["notes"]["warnings"]) == 1
    assert len(record["train_data"]) == 64 and record["train_seconds"] > 0
    card = (tmp_path / "cache" / CARD).read_text()
    assert card.startswith("---\nbase_model:") and "library_name: peft" in card
    assert "| rerouting |" in card
    assert "**Note:** no answers to requests that only look harmful were given" in card
    assert "- layers: 1\n- retain_shares, harmless: 0.7143\n" in card


def test_only_the_adapter_gets_a_gradient(tmp_path):
    model = tiny()
    train("repbend", tmp_path, model)
    assert all(p.grad is None and not p.requires_grad for p in model.network.parameters())


def test_folded_and_peft_adapters_are_the_same_model(tmp_path, monkeypatch):
    """On, off for a while, and removed: the states are peft's, the base's bit for bit."""
    model, method = tiny(), defense("circuit_breaker")
    plain, parameters = model.hidden(PROMPT), list(model.network.parameters())
    states = {}
    for folded in (True, False):
        with monkeypatch.context() as patched:
            if not folded:
                patched.setattr(applying, "fold_adapter", lambda adapter: None)
            with method.applied(model, tiny_context(), tmp_path / "cache") as target:
                assert isinstance(target.adapter, FoldedAdapter) is folded
                states[folded] = target.hidden(PROMPT)
                assert torch.equal(target.undefended().hidden(PROMPT), plain)
                assert torch.equal(target.hidden(PROMPT), states[folded])
        assert torch.equal(model.hidden(PROMPT), plain)
        pairs = zip(model.network.parameters(), parameters, strict=True)
        assert all(a is b for a, b in pairs)
    torch.testing.assert_close(states[True], states[False], atol=1e-5, rtol=1e-5)
    assert (states[True] - plain).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")
@pytest.mark.parametrize("special", [{"use_dora": True}, {"lora_bias": True},
                                     {"modules_to_save": ["lm_head"]},
                                     {"targets": ["embed_tokens"]}])  # fmt: skip
def test_what_is_more_than_low_rank_products_is_not_folded(special, with_lora):
    settings = {"targets": ["q_proj"], **special}
    adapter = with_lora(tiny(), **settings).adapter
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    assert fold_adapter(adapter) is None
    after = adapter.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_large_weights_are_not_folded(monkeypatch, with_lora):
    adapter = with_lora(tiny()).adapter
    monkeypatch.setattr(folding, "BUDGET", 100)
    assert fold_adapter(adapter) is None
    monkeypatch.undo()
    assert fold_adapter(adapter) is not None


def test_sixteen_bit_weights_are_not_folded(with_lora):
    model = tiny()
    model.network.bfloat16()
    assert fold_adapter(with_lora(model).adapter) is None


def test_the_undefended_view_enables_no_gradients_of_the_adapter(tmp_path, monkeypatch):
    """peft's own switch would enable them: attacks would then keep the graph of LoRA weights."""
    monkeypatch.setattr(applying, "fold_adapter", lambda adapter: None)
    with defense("circuit_breaker").applied(tiny(), tiny_context(), tmp_path / "cache") as target:
        target.undefended().hidden(PROMPT)
        assert not any(p.requires_grad for p in target.adapter.parameters())


def test_another_base_model_does_not_continue_a_training(tmp_path, monkeypatch, killed):
    monkeypatch.setattr(loop, "EVERY", 2)
    with killed():
        train("benign_lora", tmp_path, replace(tiny(), identity="one"))
    interrupted = train("benign_lora", tmp_path, replace(tiny(seed=1), identity="two"))
    (tmp_path / "whole").mkdir()
    assert interrupted == train("benign_lora", tmp_path / "whole", tiny(seed=1))


def test_checkpointing_recomputes_blocks(tmp_path):
    counts = []
    for on in (False, True):
        model, passes = tiny(), []
        handle = blocks(model.network)[0].mlp.register_forward_pre_hook(
            lambda *_, passes=passes: passes.append(torch.is_grad_enabled())
        )
        train("benign_lora", tmp_path / str(on), model, checkpointing=on, steps=2)
        handle.remove()
        counts.append(sum(passes))
    assert counts == [2, 4]


def test_running_out_of_memory_is_reported_with_the_fix(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(objective_of("benign_lora", tiny())), "backward", full)
    with pytest.raises(Failure, match="`checkpointing`"):
        train("benign_lora", tmp_path)


def test_a_recipe_is_read_from_a_defenses_fields():
    settings = {"rank": 3, "lora_alpha": 5, "dropout": 0.2, "spread": 0.1, "clip": 2.0}
    made = load_class("defense", "circuit_breaker")(**settings)
    assert Recipe.of(made, 4) == Recipe(4, 1e-4, 3, 5, 0.2, 0.1, True, 2.0)
    plain = load_class("defense", "es2")(rate=0.5)  # without dropout, spread and clip
    assert Recipe.of(plain, 2) == Recipe(2, 0.5)
