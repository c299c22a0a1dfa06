"""Circuit breakers: closed forms of the losses, and the properties of training (defenses 6)."""

import math
from dataclasses import replace

import pytest
import torch

from robench import organism
from robench.errors import Failure
from robench.methods.registry import load_class, resolve
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


def worn(model, defense, folder):
    return defense.applied(model, tiny_context(), folder / "cache")


def test_the_base_is_bit_for_bit_what_it_was(assert_base_is_unchanged):
    assert_base_is_unchanged(small())


def test_only_blocks_up_to_the_last_target_layer_wear_lora(tmp_path):
    model = tiny()
    plain = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    with worn(model, small(depths=(0.5,)), tmp_path):
        worn_by = [n for n, t in model.network.state_dict().items() if not torch.equal(t, plain[n])]
        assert worn_by and all(".layers.0." in name for name in worn_by)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_untrained_lora_is_the_base_and_reroutes_nothing():
    """B = 0: h' = h, L_RR = 1, L_ret = 0, and the gradient is exactly zero: hence `spread`."""
    from peft import LoraConfig, get_peft_model

    model = tiny()
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], lora_dropout=0.0)
    adapter = get_peft_model(model.network, config)
    target, defense = replace(model, adapter=adapter), small(spread=0.0)
    goal = SOURCE.Rerouting(defense, target, [1, 2], tiny_context())
    losses = goal.backward(1)
    assert losses["rerouting"] == pytest.approx(1, abs=1e-6)
    assert losses["retain"] == pytest.approx(0, abs=1e-6)
    trained = [p for p in adapter.parameters() if p.requires_grad]
    assert max(p.grad.abs().max().item() for p in trained) < 1e-5
    frozen = [p for p in adapter.parameters() if not p.requires_grad]
    assert all(p.grad is None for p in frozen)


def test_training_lowers_rerouting_and_spares_the_retain_text(tmp_path):
    model, ctx = tiny(), tiny_context()
    defense = small(steps=120, batch=8, spread=1e-2, blank=0.0)  # requests alone tell them apart
    with worn(model, defense, tmp_path) as target:
        goal = SOURCE.Rerouting(defense, target, [1, 2], ctx)
        circuit, kept = goal._circuit_batch(), goal._retain_batch()
        with torch.no_grad():
            tuned, base = tuned_and_base(target, circuit, [2], circuit.all_text)
            harmful, drift = cosine_similarity(tuned, base).mean(), l2(tuned, base).mean()
            tuned, base = tuned_and_base(target, kept, [2], kept.all_text)
            benign = l2(tuned, base).mean()
    assert harmful < 0.7
    assert benign < 0.8 * drift


def test_the_same_seed_gives_the_same_adapter_and_a_visit_loads_it(tmp_path):
    states = []
    for folder in ("one", "two", "one"):
        model = tiny()
        with worn(model, small(), tmp_path / folder) as target:
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
    with pytest.raises(Failure, match="rerouting is nan at step 1"), worn(model, small(), tmp_path):
        pass
    assert torch.equal(model.hidden(PROMPT), plain)
    assert not (tmp_path / "cache").exists()


def goal_of(examples=None, **settings):
    """The Objective on an adapter whose B is off zero, and what one step does to its gradients."""
    from peft import LoraConfig, get_peft_model

    model = tiny()
    torch.manual_seed(0)
    adapter = get_peft_model(
        model.network,
        LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    target = replace(model, adapter=adapter)
    ctx = tiny_context()
    ctx = ctx if examples is None else replace(ctx, examples=examples)
    return SOURCE.Rerouting(small(**settings), target, [1, 2], ctx), adapter


def gradient(adapter) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in adapter.parameters() if p.requires_grad])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_schedule_weighs_the_gradients():
    """A step is c_s grad L_RR + c_r grad L_ret, computed here from the losses alone."""
    goal, adapter = goal_of(steps=10, batch=4, alpha=3.0)
    state = goal.state()["rng"].clone()
    goal.backward(4)
    found = gradient(adapter)
    adapter.zero_grad()
    goal.load({"rng": state})
    circuit = goal._circuit_batch()
    rerouting = SOURCE.rerouting_loss(
        *tuned_and_base(goal.model, circuit, [1, 2], circuit.all_text), None
    )
    kept = goal._retain_batch()
    retain = SOURCE.retain_loss(*tuned_and_base(goal.model, kept, [0, 1, 2], kept.all_text), None)
    (3 * (1 - 4 / 20) * rerouting + 3 * 4 / 20 * retain).backward()
    torch.testing.assert_close(found, gradient(adapter), atol=1e-6, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_padded_mean_counts_padding_as_zeros():
    """Over rows of 100 tokens: L_ret over real tokens times their share of the rows."""
    losses = {}
    for padded in (0, 100):
        goal, _ = goal_of(batch=4, padded=padded)
        losses[padded] = goal.backward(1)["retain"]
    goal, _ = goal_of(batch=4)
    goal._circuit_batch()
    kept = goal._retain_batch()
    share = kept.all_text.sum().item() / (4 * 100)
    assert losses[100] == pytest.approx(losses[0] * share, rel=1e-5)


def prompts_of(batch) -> list[tuple[int, ...]]:
    return [
        tuple(ids[: last.nonzero().item() + 1].tolist())
        for ids, last in zip(batch.ids, batch.last_prompt_token, strict=True)
    ]


def binomial(count: int, n: int, p: float) -> bool:
    """Whether the count is within four standard deviations."""
    return abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("blank", [0.0, 0.5])
def test_harmful_and_retain_texts_have_an_empty_user_turn_equally_often(blank):
    """Of harmful texts alone, it would teach that an empty user turn means to break."""
    goal, _ = goal_of(batch=16, blank=blank)
    empty = {tuple(text.prompt) for text in goal.harmful.blanked}
    assert len(empty) == 1
    for draw in (goal._circuit_batch, goal._retain_batch):
        count = sum(prompt in empty for _ in range(50) for prompt in prompts_of(draw()))
        assert binomial(count, 800, blank) or count == blank == 0
    for texts in goal.retain.values():
        assert {tuple(text.prompt) for text in texts.blanked} == empty
        assert [t.reply for t in texts.blanked] == [t.reply for t in texts.whole]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_retain_text_is_drawn_by_the_shares_of_its_kinds():
    settings = {"near_harmful": 0.45, "refusals": 0.15, "batch": 16}
    goal, _ = goal_of(organism.examples(), **settings)
    replies = {kind: {tuple(t.reply) for t in texts.all()} for kind, texts in goal.retain.items()}
    drawn = [tuple(text.reply) for _ in range(50) for text in goal._retain_batch().texts]
    for kind, share in (("harmless", 0.4), ("near_harmful", 0.45), ("refusals", 0.15)):
        assert binomial(sum(reply in replies[kind] for reply in drawn), 800, share), kind
    notes = goal.notes()
    assert notes["retain_shares"] == {"harmless": 0.4, "near_harmful": 0.45, "refusals": 0.15}
    assert "warnings" not in notes


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_kind_of_retain_text_that_is_not_given_is_recorded():
    answers = [e for e in organism.examples() if e.kind == "answer"]
    plain = [e for e in answers if e.behavior.category != "near-harmful"]
    goal, _ = goal_of(plain, near_harmful=0.45, refusals=0.15)
    notes = goal.notes()
    assert notes["retain_shares"] == {"harmless": 1}
    assert [warning[:28] for warning in notes["warnings"]] == [
        "no answers to requests that ", "no refusals of harmful reque",
    ]  # fmt: skip
    goal._retain_batch()
    with pytest.raises(Failure, match="no retain text of the kinds"):
        goal_of(plain, near_harmful=0.5, refusals=0.5)


def test_the_recipes_have_their_own_mix_and_switch():
    """10,001 UltraChat, 230 x 50 XSTest and, for Llama-3 alone, 4,000 refusals."""
    llama3 = resolve("defense", "circuit_breaker:paper").instance
    mistral = resolve("defense", "circuit_breaker:paper_mistral").instance
    assert (llama3.alpha, mistral.alpha) == (10, 5)
    assert (llama3.blank, mistral.blank) == (0.5, 0)
    assert (round(llama3.refusals, 3), mistral.refusals) == (0.157, 0)
    assert (round(llama3.near_harmful, 3), round(mistral.near_harmful, 3)) == (0.451, 0.535)
    assert llama3.clip == mistral.clip == 1


def test_settings_are_checked():
    for wrong in (
        {"steps": 0}, {"blank": 2.0}, {"depths": ()}, {"clip": -1.0},
        {"refusals": 0.6, "near_harmful": 0.6},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            CircuitBreaker(**wrong)
