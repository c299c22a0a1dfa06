"""RepBend: closed forms, what moves at the start, and what training does (defenses 4.1 and 6)."""

from dataclasses import replace

import pytest
import torch

from robench.methods.registry import load_class
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


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_at_the_start_only_the_cosine_term_moves(gamma, with_lora):
    target, settings = with_lora(tiny()), quick(RepBend(gamma=gamma))
    adapter = target.adapter
    goal = SOURCE.Bending(settings, target, [1, 2], tiny_context())
    losses = goal.backward(1)
    assert losses["safe"] == losses["forget"] == 0
    assert losses["kl"] == pytest.approx(0, abs=1e-5)
    steepest = max(p.grad.abs().max().item() for p in adapter.parameters() if p.requires_grad)
    assert steepest > 1e-6 if gamma else steepest < 1e-6


def test_training_moves_harmful_states_more_than_safe_ones(tmp_path):
    model, ctx = tiny(), tiny_context()
    defense = replace(quick(RepBend(rate=1e-2, dropout=0.0)), steps=40, batch=8)
    with defense.applied(model, ctx, tmp_path / "cache") as target:
        goal = SOURCE.Bending(defense, target, [1, 2], ctx)
        moved = []
        for texts in (goal.texts.harmful, goal.texts.harmless):
            batch = collate(draw_texts(texts, 8, goal.rng))
            with torch.no_grad():
                tuned, base = tuned_and_base(target, batch, [2], batch.response)
            moved.append(l2(tuned, base).mean().item())
    assert moved[0] > 1.5 * moved[1]


def test_a_step_is_that_of_a_plain_loop(with_lora):
    """Whole passes with all hidden states, every term written out, with B not zero."""
    from torch.nn.functional import cosine_similarity, kl_div

    model = tiny()
    target = with_lora(model, init_lora_weights=False)
    adapter = target.adapter
    s = RepBend(batch=4, alpha=0.7, beta=0.2, gamma=0.4, epsilon=0.3, dropout=0.0)
    goal = SOURCE.Bending(s, target, [1], tiny_context())
    state = goal.state()["rng"].clone()
    goal.backward(1)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    of_step = [p.grad.clone() for p in trained]
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
        undefended, _ = goal.model.forward(safe.ids, safe.all_text, [2], safe.response)
    for p in trained:
        p.requires_grad_(True)
    terms = [(tuned.hidden_states[l] - base.hidden_states[l])[safe.response].norm(dim=-1)
             for l in (0, 1)]  # fmt: skip
    terms.append((whole[0] - undefended[0]).norm(dim=-1))
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
    for mine, parameter in zip(of_step, trained, strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-3)


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"depths": (0.9, 0.5)}, {"dropout": -1}):
        with pytest.raises(ValueError):
            RepBend(**wrong)
