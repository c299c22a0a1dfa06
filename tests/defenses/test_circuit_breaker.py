"""Circuit breakers: closed forms of the losses, and the properties of training (defenses 6)."""

import math
from dataclasses import replace

import pytest
import torch

from robench.errors import Failure
from robench.methods.registry import load_class
from robench.testing import quick, tiny, tiny_context
from robench.training.adapters import CARD, RECORD
from robench.training.losses import cosine_similarity, l2
from robench.training.modes import tuned_and_base
from robench.types import Prompt, user

CircuitBreaker = load_class("defense", "circuit_breaker")
SOURCE = __import__(CircuitBreaker.__module__, fromlist=["rerouting_loss"])
PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


def states(*vectors) -> torch.Tensor:
    """(layers = 1, batch = 1, time, d)"""
    return torch.tensor(vectors, dtype=torch.float32)[None, None]


def test_schedule_counts_from_one_and_ends_half_way():
    first, last = SOURCE.schedule(10, 1, 150), SOURCE.schedule(10, 150, 150)
    assert first == pytest.approx((10 * (1 - 1 / 300), 10 / 300))
    assert last == pytest.approx((5, 5))


def test_rerouting_loss_closed_form():
    """cos = 1, -1 and 1/sqrt(2): ReLU keeps 1, 0 and 0.7071; the mask drops the last."""
    tuned = states((2, 0), (0, -3), (1, 1)).requires_grad_()
    base = states((1, 0), (0, 1), (1, 0))
    everything, two = torch.ones(1, 3), torch.tensor([[1, 1, 0]])
    loss = SOURCE.rerouting_loss(tuned, base, everything)
    assert loss.item() == pytest.approx((1 + 0 + math.sqrt(0.5)) / 3)
    assert SOURCE.rerouting_loss(tuned, base, two).item() == pytest.approx(0.5)
    (gradient,) = torch.autograd.grad(loss, tuned)
    # at cos = 1 and below 0 the gradient is zero; d cos / dh' at (1, 1) is (1, -1) / (2 sqrt 2)
    expected = states((0, 0), (0, 0), (math.sqrt(0.125), -math.sqrt(0.125))) / 3
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=0)


def test_retain_loss_closed_form():
    tuned, base = states((3, 4), (1, 1)).requires_grad_(), states((0, 0), (1, 1))
    loss = SOURCE.retain_loss(tuned, base, torch.ones(1, 2))
    assert loss.item() == pytest.approx(2.5)
    (gradient,) = torch.autograd.grad(loss, tuned)  # zero, not NaN, where h' = h
    torch.testing.assert_close(gradient, states((0.3, 0.4), (0, 0)))


def small(**settings):
    return replace(quick(CircuitBreaker(rate=1e-2, dropout=0.0, padded=0)), **settings)


def applied(model, defense, folder):
    return defense.applied(model, tiny_context(), folder / "cache")


def test_the_base_is_bit_for_bit_what_it_was(assert_base_is_unchanged):
    assert_base_is_unchanged(small())


def test_only_blocks_up_to_the_last_target_layer_have_lora(tmp_path):
    model = tiny()
    plain = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with applied(model, small(depths=(0.5,)), tmp_path):
        changed = [n for n, t in model.network.state_dict().items() if not torch.equal(t, plain[n])]
        assert changed and all(".layers.0." in name for name in changed)


def test_untrained_lora_is_the_base_and_reroutes_nothing(with_lora):
    """B = 0: h' = h, L_RR = 1, L_ret = 0, and the gradient is exactly zero: hence `spread`."""
    target, defense = with_lora(tiny()), small(spread=0.0)
    adapter = target.adapter
    goal = SOURCE.Rerouting(defense, target, [1, 2], tiny_context())
    losses = goal.backward(1)
    assert losses["rerouting"] == pytest.approx(1, abs=1e-6)
    assert losses["retain"] == pytest.approx(0, abs=1e-6)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    assert max(p.grad.abs().max().item() for p in trained) < 1e-5
    frozen = [p for p in adapter.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_training_lowers_rerouting_more_than_it_moves_the_retain_text(tmp_path):
    model, ctx = tiny(), tiny_context()
    defense = small(steps=60, batch=8, spread=1e-2)
    with applied(model, defense, tmp_path) as target:
        goal = SOURCE.Rerouting(defense, target, [1, 2], ctx)
        circuit, kept = goal._circuit_batch(), goal._retain_batch()
        with torch.no_grad():
            tuned, base = tuned_and_base(target, circuit, [2], circuit.all_text)
            harmful, drift = cosine_similarity(tuned, base).mean(), l2(tuned, base).mean()
            tuned, base = tuned_and_base(target, kept, [2], kept.all_text)
            benign = l2(tuned, base).mean()
    assert harmful < 0.7
    assert benign < 0.8 * drift


def test_the_same_seed_gives_the_same_adapter_which_is_then_loaded(tmp_path):
    states = []
    for folder in ("one", "two", "one"):
        model = tiny()
        with applied(model, small(), tmp_path / folder) as target:
            states.append(target.hidden(PROMPT))
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])
    files = {file.name for file in (tmp_path / "one" / "cache").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", RECORD, CARD} == files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in files)


def test_a_nan_loss_stops_training_and_leaves_the_base(tmp_path, monkeypatch):
    model = tiny()
    plain = model.hidden(PROMPT)
    nan = torch.tensor(math.nan, requires_grad=True)
    monkeypatch.setattr(SOURCE, "rerouting_loss", lambda *_: nan * 1)
    with (
        pytest.raises(Failure, match="rerouting is nan at step 1"),
        applied(model, small(), tmp_path),
    ):
        pass
    assert torch.equal(model.hidden(PROMPT), plain)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def objective(with_lora):
    """The Objective of a defense with these settings, on an adapter whose B is not zero."""

    def make(**settings):
        target = with_lora(tiny(), init_lora_weights=False)
        return SOURCE.Rerouting(small(**settings), target, [1, 2], tiny_context())

    return make


def gradient(adapter) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in adapter.parameters() if p.requires_grad])


def test_the_schedule_weighs_the_gradients(objective):
    """A step is c_s grad L_RR + c_r grad L_ret, computed here from the losses."""
    goal = objective(steps=10, batch=4, alpha=3.0)
    adapter = goal.model.adapter
    state = goal.state()["rng"].clone()
    goal.backward(4)
    of_step = gradient(adapter)
    adapter.zero_grad()
    goal.load({"rng": state})
    circuit = goal._circuit_batch()
    rerouting = SOURCE.rerouting_loss(
        *tuned_and_base(goal.model, circuit, [1, 2], circuit.all_text), None
    )
    kept = goal._retain_batch()
    retain = SOURCE.retain_loss(*tuned_and_base(goal.model, kept, [0, 1, 2], kept.all_text), None)
    (3 * (1 - 4 / 20) * rerouting + 3 * 4 / 20 * retain).backward()
    torch.testing.assert_close(of_step, gradient(adapter), atol=1e-6, rtol=1e-4)


def test_the_padded_mean_counts_padding_as_zeros(objective):
    """Over rows of 100 tokens: L_ret over real tokens times their share of the rows."""
    losses = {}
    for padded in (0, 100):
        losses[padded] = objective(batch=4, padded=padded).backward(1)["retain"]
    goal = objective(batch=4)
    goal._circuit_batch()
    kept = goal._retain_batch()
    share = kept.all_text.sum().item() / (4 * 100)
    assert losses[100] == pytest.approx(losses[0] * share, rel=1e-5)


def test_shares_of_blanked_answers_and_of_refusals(objective):
    goal = objective(batch=16, blank=0.5, refusals=0.25)
    blanked = {tuple(text.prompt) for text in goal.blanked}
    assert len(blanked) == 1
    empty = 0
    for _ in range(50):
        batch = goal._circuit_batch()
        prompts = [
            tuple(ids[: last.nonzero().item() + 1].tolist())
            for ids, last in zip(batch.ids, batch.last_prompt_token, strict=True)
        ]
        empty += sum(prompt in blanked for prompt in prompts)
    assert abs(empty - 400) < 4 * (800 * 0.25) ** 0.5  # four standard deviations
    refused = {tuple(text.reply) for text in goal.texts.refused}
    batch = goal._retain_batch()
    rows = zip(batch.ids, batch.response, strict=True)
    replies = [tuple(ids[response].tolist()) for ids, response in rows]
    assert sum(reply in refused for reply in replies) == 4


def test_settings_are_checked():
    for wrong in ({"steps": 0}, {"blank": 2.0}, {"depths": ()}):
        with pytest.raises(ValueError):
            CircuitBreaker(**wrong)
