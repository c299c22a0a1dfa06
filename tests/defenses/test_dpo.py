"""DPO: the loss and its gradient against the closed form, the pairs, what it learns."""

import math
from dataclasses import replace

import pytest
import torch

from robench.errors import Failure
from robench.methods.registry import load_class
from robench.testing import quick, tiny, tiny_context
from robench.training import adapter_applied, collate, split_examples
from robench.types import Prompt, user

DPO = load_class("defense", "dpo")
module = __import__(DPO.__module__, fromlist=["x"])
QUICK = quick(DPO(rate=1e-2, dropout=0.0, harmless=0.5))


def test_the_loss_is_the_closed_form():
    margin = torch.tensor([0.0, 2.0, -3.0], requires_grad=True)
    loss = module.preference_loss(margin, beta=0.5)
    by_hand = [math.log(1 + math.exp(-0.5 * m)) for m in (0.0, 2.0, -3.0)]
    assert loss.item() == pytest.approx(sum(by_hand) / 3, abs=1e-6)
    loss.backward()
    weights = [-0.5 / (1 + math.exp(0.5 * m)) / 3 for m in (0.0, 2.0, -3.0)]
    assert margin.grad.tolist() == pytest.approx(weights, abs=1e-6)


def test_log_likelihoods_are_sums_over_the_replies_tokens():
    model, ctx = tiny(), tiny_context()
    pairs = module.tokenised_pairs(model, module.pairs_of(ctx.examples)[0][:3], 512)
    texts = [text for pair in pairs for text in pair]
    found = module.log_likelihoods(model, collate(texts))
    for text, value in zip(texts, found.tolist(), strict=True):
        ids = torch.tensor([text.prompt + text.reply])
        logs = model.network(ids).logits.log_softmax(-1)[0]
        start = len(text.prompt)
        by_hand = sum(logs[start + k - 1, token].item() for k, token in enumerate(text.reply))
        assert value == pytest.approx(by_hand, abs=1e-3)


def test_at_the_start_it_is_log_two_and_its_gradient_is_beta_over_two_of_the_margins(monkeypatch):
    model, ctx = tiny(), tiny_context()
    model.network.requires_grad_(True)
    settings = replace(QUICK, beta=0.3)
    objective = module.Preferring(settings, model, ctx)
    monkeypatch.setattr(module, "without_adapter", lambda model: torch.no_grad())  # it has none
    state = objective.rng.get_state()
    losses = objective.backward(1)
    assert losses == {"preference": pytest.approx(math.log(2), abs=1e-6), "preferred": 0.0}
    gradient = model.network.get_output_embeddings().weight.grad.clone()
    model.network.zero_grad()
    objective.rng.set_state(state)
    pairs = objective._draw()
    first, second = (
        module.log_likelihoods(model, collate([pair[side] for pair in pairs])) for side in (0, 1)
    )
    (-0.3 / 2 * (first - second).mean()).backward()
    expected = model.network.get_output_embeddings().weight.grad
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)


def test_the_pairs_prefer_refusals_of_harmful_and_answers_of_harmless_requests():
    ctx = tiny_context()
    split = split_examples(ctx.examples)
    harmful, harmless = module.pairs_of(ctx.examples)
    assert len(harmful) == len(split.harmful) and len(harmless) == len(split.harmless)
    for preferred, other in harmful:
        assert preferred.behavior.request == other.behavior.request
        assert (preferred.kind, other.kind) == ("refusal", "answer")
    for preferred, other in harmless:
        assert preferred.behavior == other.behavior
        assert (preferred.kind, other.kind) == ("answer", "refusal")
        assert other.reply in {e.reply for e in split.refused}


def test_what_has_no_pair_is_said():
    ctx = tiny_context()
    with pytest.raises(Failure, match="both an answer and a refusal"):
        module.pairs_of([e for e in ctx.examples if e.kind == "answer"])


def test_the_base_is_left_alone(assert_base_is_unchanged):
    assert_base_is_unchanged(QUICK)


def test_it_prefers_what_it_should_relative_to_the_base(tmp_path):
    model, ctx = tiny(), tiny_context()
    defense = replace(QUICK, steps=40, batch=8)
    cache = tmp_path / "cache"

    def margins(target):
        pairs = [pair[:6] for pair in module.pairs_of(ctx.examples)]
        return [
            (target.nll(prompts, [b.reply for _, b in side])
             - target.nll(prompts, [a.reply for a, _ in side]))
            for side in pairs
            for prompts in [[Prompt(user(a.behavior.request)) for a, _ in side]]
        ]  # fmt: skip

    before = margins(model)
    with defense.applied(model, ctx, cache) as target:
        after = margins(target)
    assert all((late > early).all() for early, late in zip(before, after, strict=True))
    with adapter_applied(model, cache) as target:
        assert torch.equal(margins(target)[0], after[0])


@pytest.mark.parametrize("wrong", [{"beta": 0.0}, {"harmless": 1.5}, {"batch": 0}, {"rate": 0.0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        DPO(**wrong)
