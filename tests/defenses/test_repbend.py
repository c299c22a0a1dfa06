"""RepBend: closed forms, what moves at the start, and what training does (defenses 4.1 and 6)."""

from dataclasses import replace

import pytest
import torch

from robench.methods.registry import load_class, resolve
from robench.testing import quick, tiny, tiny_context
from robench.training.corpus import collate, draw_texts
from robench.training.losses import l2
from robench.training.modes import tuned_and_base

RepBend = load_class("defense", "repbend")
SOURCE = __import__(RepBend.__module__, fromlist=["Bending"])


def test_dissimilarity_of_three():
    """cos(a, b) = 0, cos(a, c) = 1, cos(b, c) = 0: the mean of 1 - cos is 2 / 3."""
    states = torch.tensor([[[1.0, 0], [0, 2], [3, 0]]])
    assert SOURCE.dissimilarity(states).item() == pytest.approx(2 / 3)
    assert SOURCE.dissimilarity(states[:, :1]).item() == 0


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_at_the_start_only_the_cosine_term_moves(gamma):
    from peft import LoraConfig, get_peft_model

    model = tiny()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
    adapter = get_peft_model(model.network, config)
    settings = quick(RepBend(gamma=gamma))
    goal = SOURCE.Bending(settings, replace(model, adapter=adapter), [1, 2], tiny_context())
    losses = goal.backward(1)
    assert losses["safe"] == losses["forget"] == 0
    assert losses["kl"] == pytest.approx(0, abs=1e-5)
    steepest = max(p.grad.abs().max().item() for p in adapter.parameters() if p.requires_grad)
    assert steepest > 1e-6 if gamma else steepest < 1e-6


def test_training_bends_harmful_states_and_spares_the_safe(tmp_path):
    model, ctx = tiny(), tiny_context()
    defense = replace(quick(RepBend(rate=1e-2, dropout=0.0)), steps=40, batch=8)
    with defense.applied(model, ctx, tmp_path / "cache") as target:
        goal = SOURCE.Bending(defense, target, [1, 2], ctx)
        moved = []
        for side in (goal.texts.harmful, goal.texts.harmless):
            batch = collate(draw_texts(side, 8, goal.rng))
            with torch.no_grad():
                tuned, base = tuned_and_base(target, batch, [2], batch.response)
            moved.append(l2(tuned, base).mean().item())
    assert moved[0] > 1.5 * moved[1]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_step_is_that_of_a_plain_loop():
    """Whole passes with all hidden states, every term spelled out, off B = 0."""
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cosine_similarity, kl_div

    model = tiny()
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapter = get_peft_model(model.network, config)
    s = RepBend(batch=4, micro=1, alpha=0.7, beta=0.2, gamma=0.4, epsilon=0.3, dropout=0.0)
    goal = SOURCE.Bending(s, replace(model, adapter=adapter), [1], tiny_context())
    state = goal.state()["rng"].clone()
    goal.backward(1)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    found = [p.grad.clone() for p in trained]
    adapter.zero_grad()
    goal.load({"rng": state})

    def both(batch):
        ids, mask = batch.ids, batch.all_text.long()
        tuned = model.network(ids, mask, output_hidden_states=True)
        with torch.no_grad(), adapter.disable_adapter():
            base = model.network(ids, mask, output_hidden_states=True)
        for p in trained:
            p.requires_grad_(True)
        return tuned, base

    total = 0
    safe = collate(
        draw_texts(goal.texts.refused, 2, goal.rng) + draw_texts(goal.texts.harmless, 2, goal.rng)
    )
    tuned, base = both(safe)
    # The last entry of the tuple is post-norm: with two blocks, layers 0 and 1 are raw, and the
    # raw last one comes from the model's own forward.
    whole, _ = goal.model.forward(safe.ids, safe.all_text, [2], safe.response)
    with torch.no_grad(), adapter.disable_adapter():
        bare, _ = goal.model.forward(safe.ids, safe.all_text, [2], safe.response)
    for p in trained:
        p.requires_grad_(True)
    terms = [(tuned.hidden_states[l] - base.hidden_states[l])[safe.response].norm(dim=-1)
             for l in (0, 1)]  # fmt: skip
    terms.append((whole[0] - bare[0]).norm(dim=-1))
    total = total + 0.7 * torch.cat(terms).mean()
    harmful = collate(draw_texts(goal.texts.harmful, 4, goal.rng))
    tuned, base = both(harmful)
    moved = (tuned.hidden_states[1] - base.hidden_states[1])[harmful.response].norm(dim=-1).mean()
    last = tuned.hidden_states[1][harmful.last_prompt_token]
    pairs = [1 - cosine_similarity(last[i], last[j], dim=0) for i in range(4) for j in range(4)
             if i != j]  # fmt: skip
    total = total - 0.2 * moved + 0.4 * torch.stack(pairs).mean()
    kept = collate(draw_texts(goal.texts.harmless, 4, goal.rng))
    tuned, base = both(kept)
    log_q = (tuned.logits / 2).log_softmax(-1)[kept.all_text]
    p = (base.logits / 2).softmax(-1)[kept.all_text]
    total = total + 0.3 * 4 * kl_div(log_q, p, reduction="sum") / 4  # temperature^2, four texts
    total.backward()
    for mine, parameter in zip(found, trained, strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_micro_batches_are_averaged_and_the_cosine_term_is_over_one_of_them(monkeypatch):
    """2 x 4 x 4 = 32 harmful and 32 safe texts per step, 8 of them at a time (released code)."""
    from peft import LoraConfig, get_peft_model

    paper = resolve("defense", "repbend:paper").instance
    assert paper.micro * paper.batch == 32 and paper.micro * paper.retain == 16
    assert paper.batch == resolve("defense", "repbend:demo").instance.batch == 8
    assert paper.clip == 1
    model = tiny()
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapter = get_peft_model(model.network, config)
    compared = []
    dissimilarity = SOURCE.dissimilarity
    monkeypatch.setattr(
        SOURCE, "dissimilarity", lambda x: compared.append(x.shape[1]) or dissimilarity(x)
    )
    gradients, losses = [], []
    for micro, calls in ((3, 1), (1, 3)):
        settings = RepBend(batch=2, retain=3, micro=micro, dropout=0.0)
        goal = SOURCE.Bending(settings, replace(model, adapter=adapter), [1], tiny_context())
        parts = [goal.backward(1) for _ in range(calls)]
        losses.append({name: sum(part[name] for part in parts) / calls for name in parts[0]})
        trained = [p for p in adapter.parameters() if p.requires_grad]
        gradients.append([p.grad / calls for p in trained])
        adapter.zero_grad()
    assert compared == [2] * 6
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for together, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"depths": (0.9, 0.5)}, {"dropout": -1}):
        with pytest.raises(ValueError):
            RepBend(**wrong)
