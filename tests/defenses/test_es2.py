"""ES2: separation by hand, the figures, the stop, and the properties of training (defenses 6)."""

import math
from dataclasses import replace

import pytest
import torch
import yaml

from robench import organism
from robench.errors import Failure
from robench.methods.registry import load_class
from robench.testing import quick, tiny, tiny_context
from robench.training import loop
from robench.training.adapters import RECORD
from robench.training.corpus import collate
from robench.training.modes import without_adapter
from robench.types import Prompt, user

ES2 = load_class("defense", "es2")
SOURCE = __import__(ES2.__module__, fromlist=["separation"])
KAPPA = 0.1  # nats, which a tiny model reaches after some ten steps
PROMPT = [Prompt(user("Tell me how to wreck a lamp."))]


def small(**settings):
    return replace(quick(ES2(rate=1e-2, check=1, terminal="last")), **settings)


def worn(model, defense, folder):
    return defense.applied(model, tiny_context(), folder / "cache")


def record(folder):
    return yaml.safe_load((folder / "cache" / RECORD).read_text("utf-8"))


def untrained(model, **settings):
    """The Objective on a model with LoRA whose B is zero."""
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "v_proj", "down_proj"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter = get_peft_model(model.network, LoraConfig(r=4, target_modules=names))
    return SOURCE.Separating(small(**settings), replace(model, adapter=adapter), tiny_context())


def gradients(goal):
    return {n: p.grad.clone() for n, p in goal.parameters.items() if p.grad is not None}


def test_pairwise_by_hand():
    """From (0, 0) and (6, 0) to (3, 4) and (3, 0): 5, 3, 5, 3; unit vectors sum up over pairs."""
    harmful = torch.tensor([[0.0, 0.0], [6.0, 0.0]], requires_grad=True)
    harmless = torch.tensor([[3.0, 4.0], [3.0, 0.0]], requires_grad=True)
    value = SOURCE.separation(harmful, harmless, "pairwise")
    assert value.item() == pytest.approx((5 + 3 + 5 + 3) / 4)
    value.backward()
    # d/dx_i = mean over pairs of (x_i - y_j) / |x_i - y_j|, d/dy_j its negative
    expected = torch.tensor([[-0.6 - 1, -0.8], [0.6 + 1, -0.8]]) / 4
    torch.testing.assert_close(harmful.grad, expected)
    torch.testing.assert_close(harmless.grad, torch.tensor([[0.0, 1.6], [0.0, 0.0]]) / 4)


def test_centroid_by_hand():
    """Means (3, 0) and (3, 2): 2 apart, and every state of a side moves its mean alike."""
    harmful = torch.tensor([[0.0, 0.0], [6.0, 0.0]], requires_grad=True)
    value = SOURCE.separation(harmful, torch.tensor([[3.0, 4.0], [3.0, 0.0]]), "centroid")
    assert value.item() == pytest.approx(2)
    value.backward()
    torch.testing.assert_close(harmful.grad, torch.tensor([[0.0, -0.5], [0.0, -0.5]]))


def test_pairwise_against_a_plain_loop():
    rng = torch.Generator().manual_seed(0)
    harmful, harmless = torch.randn(5, 7, generator=rng), torch.randn(3, 7, generator=rng)
    pairs = [math.dist(h, s) for h in harmful.tolist() for s in harmless.tolist()]
    value = SOURCE.separation(harmful, harmless, "pairwise")
    assert value.item() == pytest.approx(sum(pairs) / 15, rel=1e-6)
    assert SOURCE.separation(harmful, harmless, "centroid").item() < value.item()


def test_equal_states_have_a_gradient_that_is_a_number():
    same = torch.ones(2, 3, requires_grad=True)
    for distance in ("pairwise", "centroid"):
        (gradient,) = torch.autograd.grad(SOURCE.separation(same, torch.ones(2, 3), distance), same)
        assert torch.equal(gradient, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="no distance 'cos'"):
        SOURCE.separation(same, same, "cos")


def test_units_of_distance_by_hand():
    """Norms 3, 5, 4 and 0; spreads: 1 and 1 around (4, 0), 2 and 2 around (0, 2)."""
    harmful = torch.tensor([[3.0, 0.0], [5.0, 0.0]], requires_grad=True)
    harmless = torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    units = {u: SOURCE.unit_length(harmful, harmless, u) for u in ("norm", "spread", "constant")}
    assert units["norm"].item() == pytest.approx((3 + 5 + 4 + 0) / 4)
    assert units["spread"].item() == pytest.approx(((1 + 1 + 4 + 4) / 4) ** 0.5)
    assert units["constant"].item() == 1
    (gradient,) = torch.autograd.grad(units["norm"], harmful)
    torch.testing.assert_close(gradient, torch.tensor([[0.25, 0.0], [0.25, 0.0]]))
    with pytest.raises(ValueError, match="no unit 'mile'"):
        SOURCE.unit_length(harmful, harmless, "mile")


@pytest.mark.parametrize(
    ("unit", "counts"), [("norm", False), ("spread", False), ("constant", True)]
)
def test_scaling_the_states_separates_them_in_a_constant_unit_alone(unit, counts):
    """Along the ray through the states the gradient of D / u is zero, but for a constant u."""
    rng = torch.Generator().manual_seed(0)
    harmful, harmless = torch.randn(5, 7, generator=rng), torch.randn(3, 7, generator=rng) + 2
    scale = torch.ones((), requires_grad=True)
    x, y = scale * harmful, scale * harmless
    distance = SOURCE.separation(x, y, "pairwise") / SOURCE.unit_length(x, y, unit)
    (gradient,) = torch.autograd.grad(distance, scale)
    assert (abs(gradient.item()) > 1e-3) == counts


def test_the_plateau_ends_where_accuracy_falls_or_norms_jump():
    accuracy, norms = [0.5, 0.96, 1.0, 0.97, 0.9, 1.0], [1.0, 5.0, 6.0, 8.0, 8.0, 30.0]
    assert SOURCE.plateau_end(accuracy, norms, 1, 0.95, 1.5) == 3  # the accuracy falls at 4
    assert SOURCE.plateau_end(accuracy, norms, 1, 0.9, 1.5) == 4  # the norm jumps at 5
    assert SOURCE.plateau_end(accuracy, norms, 1, 0.9, 9.0) == 5
    assert SOURCE.plateau_end(accuracy[:3], norms, 1, 0.9, 9.0) == 2  # the cap
    assert SOURCE.plateau_end(accuracy, norms, 1, 0.95, 1.1) == 1


def test_a_relative_perturbation_that_falls_is_warned_of():
    start = {
        "emergence": {"relative_perturbation": 0.1},
        "terminal": {"relative_perturbation": 0.485},
    }
    grown = {"relative_perturbation": 0.235, "norm_ratio": 3.0}
    shrunk = {"relative_perturbation": 0.111, "norm_ratio": 4.8}
    (warning,) = SOURCE.falling_perturbations(start, {"emergence": grown, "terminal": shrunk})
    assert warning.startswith(
        "at the terminal layer the relative perturbation fell from 0.485 to 0.111, while norms "
        "grew by 4.80"
    )
    steady = {layer: {**values, "norm_ratio": 1.0} for layer, values in start.items()}
    assert not SOURCE.falling_perturbations(start, steady)


def test_emergence_is_where_the_accuracy_stays():
    accuracy = [0.5, 0.96, 0.9, 0.95, 1.0, 0.97]
    assert SOURCE.emergence(accuracy, 0.95, 1) == 3
    assert SOURCE.emergence(accuracy, 0.9, 1) == 1
    assert SOURCE.emergence(accuracy, 0.9, 4) == 4
    assert SOURCE.emergence(accuracy, 0.98, 1) == 4  # it does not stay: the most accurate


def clouds(gap: float, n: int = 60, seed: int = 0):
    """States (2 n, 4) of two classes `gap` apart along the first axis; which are harmful, held."""
    states = torch.randn(2 * n, 4, generator=torch.Generator().manual_seed(seed)) + 3
    labels, held = torch.arange(2 * n) < n, torch.arange(2 * n) % 3 == 0
    states[labels, 0] += gap
    return states, labels, held


def test_figures_by_their_definitions():
    states, labels, held = clouds(4.0)
    found = SOURCE.measures(states, labels, held, 2.0)
    harmful, harmless = states[labels & held].double(), states[~labels & held].double()
    across = harmful.mean(0) - harmless.mean(0)
    inside = [side @ across / across.norm() for side in (harmful, harmless)]
    variance = sum(side.var(correction=0) for side in inside) / 2
    assert found["margin"] == pytest.approx(float(across.norm() / variance.sqrt()), rel=1e-5)
    norms = states[held].double().norm(dim=1)
    assert found["norm_ratio"] == pytest.approx(float(norms.mean()) / 2, rel=1e-5)
    cosine = harmful.mean(0) @ harmless.mean(0) / harmful.mean(0).norm() / harmless.mean(0).norm()
    assert found["centroid_cosine"] == pytest.approx(float(cosine), rel=1e-5)
    assert found["probe_accuracy"] > 0.9


def test_scaling_is_no_separation_and_distance_is():
    states, labels, held = clouds(4.0)
    plain, scaled = (SOURCE.measures(k * states, labels, held, 1.0) for k in (1, 50))
    far = SOURCE.measures(clouds(8.0)[0], labels, held, 1.0)
    for name in ("margin", "centroid_cosine", "probe_accuracy", "relative_perturbation"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-4)
    assert scaled["norm_ratio"] == pytest.approx(50 * plain["norm_ratio"], rel=1e-5)
    assert scaled["perturbation"] == pytest.approx(50 * plain["perturbation"], rel=1e-4)
    assert far["margin"] > 1.5 * plain["margin"]
    assert far["perturbation"] > 1.2 * plain["perturbation"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_at_the_start_the_kl_is_zero_and_the_separation_moves():
    """B = 0: D is near D^0, KL exactly 0, and the gradient is the separation's alone (7)."""
    model = tiny()
    goal = untrained(model, kl_weight=0.0, batch=8)
    losses = goal.backward(1)
    assert losses["kl"] == 0
    assert losses["separation"] == pytest.approx(1, abs=0.2)
    alone = gradients(goal)
    assert max(grad.abs().max() for grad in alone.values()) > 1e-4
    assert all(p.grad is None for p in goal.model.adapter.parameters() if not p.requires_grad)
    goal.model.adapter.zero_grad()
    goal.rng.set_state(untrained(tiny(), batch=8).rng.get_state())
    goal.settings = replace(goal.settings, kl_weight=100.0)
    goal.backward(1)
    for name, grad in gradients(goal).items():
        torch.testing.assert_close(grad, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.parametrize("unit", ["norm", "constant"])
def test_the_step_is_the_gradient_of_the_formula(unit):
    """Against the formula on logits and states of plain forward passes, away from B = 0."""
    model = tiny()
    goal = untrained(model, batch=3, kl_weight=2.0, unit=unit)
    with torch.no_grad():
        for name, p in goal.parameters.items():
            if "lora_B" in name:
                p.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    before = goal.rng.get_state()
    losses = goal.backward(1)
    found = gradients(goal)
    goal.rng.set_state(before)
    goal.model.adapter.zero_grad()
    harmful = SOURCE.draw_texts(goal.harmful, 3, goal.rng)
    harmless = SOURCE.draw_texts(goal.harmless, 3, goal.rng)

    def read(text, whole):
        ids = torch.tensor([text.prompt + text.reply * whole])
        out = model.network(ids, output_hidden_states=True)
        return out.hidden_states, out.logits[0].log_softmax(-1), len(text.prompt) - 1

    total, tokens, states = 0.0, 0, []
    for text in harmless:
        hidden, tuned, last = read(text, True)
        with without_adapter(goal.model):
            _, base, _ = read(text, True)
        total = total + (tuned.exp() * (tuned - base)).sum()
        tokens += len(tuned)
        states.append((hidden, last))
    # the tuple's last state is behind the final norm: the layer below stands for S here
    assert losses["kl"] == pytest.approx((total / tokens).item(), rel=1e-4)
    goal.layers, goal.initial_distance = [1], goal.initial_distance[:1]
    goal.rng.set_state(before)
    losses = goal.backward(1)
    found = gradients(goal)
    goal.model.adapter.zero_grad()
    away = [read(text, False) for text in harmful]
    pairs = [(h[1][0, at] - s[1][0, last]).norm() for h, _, at in away for s, last in states]
    apart = torch.stack(pairs).mean() / goal.initial_distance[0]
    if unit == "norm":
        norms = [h[1][0, at].norm() for h, _, at in away] + [s[1][0, at].norm() for s, at in states]
        apart = apart / torch.stack(norms).mean()
    assert losses["separation"] == pytest.approx(apart.item(), rel=1e-4)
    (2 * total / tokens - apart).backward()
    for name, grad in gradients(goal).items():
        torch.testing.assert_close(grad, found[name], atol=1e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")
def test_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        model = tiny()
        if checkpointing:
            model.network.gradient_checkpointing_enable({"use_reentrant": False})
        goal = untrained(model, batch=4)
        goal.model.adapter.train()
        goal.backward(1)
        found.append(gradients(goal))
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_padding_moves_neither_states_nor_loss(monkeypatch):
    """Padding on the left instead of the right (5)."""
    values = []
    for side in ("right", "left"):
        monkeypatch.setattr(SOURCE, "collate", lambda texts, side=side: collate(texts, side))
        values.append(untrained(tiny(), batch=6).backward(1)["separation"])
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_the_base_is_bit_for_bit_what_it_was(assert_base_is_unchanged):
    assert_base_is_unchanged(small(kappa=math.inf))


def test_kappa_zero_stops_at_the_first_kl_and_returns_the_base(tmp_path):
    model = tiny()
    plain = model.hidden(PROMPT)
    with worn(model, small(kappa=0.0, steps=20), tmp_path) as target:
        assert torch.equal(target.hidden(PROMPT), plain)
    found = record(tmp_path)
    assert found["steps"] == 1
    assert found["notes"]["kept_step"] == 0
    assert found["notes"]["end"] == found["notes"]["start"]


def test_kappa_infinite_separates_without_bound_and_the_perturbation_grows(tmp_path):
    with worn(
        tiny(), small(kappa=math.inf, kl_weight=0.0, steps=24, batch=4, unit="constant"), tmp_path
    ):
        pass
    found = record(tmp_path)
    curve, notes = found["curves"]["separation"], found["notes"]
    assert found["steps"] == notes["kept_step"] == 24
    assert curve[0] < 1.5 < 3 < curve[12] < curve[-1]
    for layer in notes["start"]:
        assert notes["end"][layer]["perturbation"] > 2 * notes["start"][layer]["perturbation"]


def test_kappa_ends_training_and_the_weights_before_are_kept(tmp_path):
    """The kept weights are those of a training that was told to take that many steps."""
    settings = {"batch": 4, "kl_weight": 0.1, "unit": "constant", "rate": 3e-3}
    with worn(tiny(), small(kappa=KAPPA, steps=60, **settings), tmp_path / "stopped") as target:
        stopped = target.hidden(PROMPT)
    found = record(tmp_path / "stopped")
    kept = found["notes"]["kept_step"]
    assert found["notes"]["held_kl"] > KAPPA >= found["curves"]["held_kl"][-1]
    assert 0 < kept == found["steps"] - 1 < 59
    with worn(tiny(), small(kappa=math.inf, steps=kept, **settings), tmp_path / "told") as target:
        assert torch.equal(target.hidden(PROMPT), stopped)


@pytest.mark.parametrize("dies_at", [4, 7])
def test_a_killed_training_ends_as_if_it_had_not_been(tmp_path, monkeypatch, dies_at):
    """The snapshot too: kappa passes after the death, and the weights kept are from before."""
    monkeypatch.setattr(loop, "EVERY", 3)
    defense = small(rate=3e-3, kappa=KAPPA, steps=30, batch=4, kl_weight=0.1, unit="constant")
    with worn(tiny(), defense, tmp_path / "whole") as target:
        expected = target.hidden(PROMPT)
    backward = SOURCE.Separating.backward

    def dying(self, step):
        if step == dies_at:
            raise KeyboardInterrupt
        return backward(self, step)

    monkeypatch.setattr(SOURCE.Separating, "backward", dying)
    with pytest.raises(KeyboardInterrupt), worn(tiny(), defense, tmp_path / "killed"):
        pass
    monkeypatch.setattr(SOURCE.Separating, "backward", backward)
    with worn(tiny(), defense, tmp_path / "killed") as target:
        assert torch.equal(target.hidden(PROMPT), expected)
    whole, killed = record(tmp_path / "whole"), record(tmp_path / "killed")
    assert dies_at < whole["steps"] < 30
    assert whole["notes"] == killed["notes"]
    assert whole["curves"] == killed["curves"]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_held_out_queries_are_neither_trained_on_nor_repeated():
    examples = organism.examples()
    context = replace(tiny_context(), examples=examples + examples)
    goal = SOURCE.Separating(small(), untrained(tiny()).model, context)
    for held, seen, n in (
        (goal.held_harmful, goal.harmful, 200),
        (goal.held_harmless, goal.harmless, 200),
    ):
        prompts = [tuple(text.prompt) for text in held + seen]
        assert len(set(prompts)) == len(prompts) == n
        assert len(held) == n // 5
    assert not any(text.reply for text in goal.held_harmful + goal.harmful)
    assert all(text.reply for text in goal.held_harmless + goal.harmless)


def test_too_few_queries_are_told(tmp_path):
    examples = tiny_context().examples
    answers = [e for e in examples if e.kind == "answer"]
    few = [e for e in answers if e.behavior.harmful][:3]
    few += [e for e in answers if not e.behavior.harmful]
    context = replace(tiny_context(), examples=few)
    with (
        pytest.raises(Failure, match="at least 4 harmful queries"),
        small().applied(tiny(), context, tmp_path / "cache"),
    ):
        pass


def test_a_kl_that_is_no_number_is_not_below_kappa(tmp_path, monkeypatch):
    monkeypatch.setattr(SOURCE, "kl_divergence", lambda *_, **__: torch.tensor(math.nan))
    with pytest.raises(Failure, match="held_kl is nan"), worn(tiny(), small(), tmp_path):
        pass
    assert not (tmp_path / "cache").exists()


def test_settings_are_checked():
    for wrong in (
        {"steps": 0},
        {"held": 1.0},
        {"kappa": math.nan},
        {"floor": 2},
        {"check": 0},
        {"cap": 2},
    ):
        with pytest.raises(ValueError):
            ES2(**wrong)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_the_kl_is_that_of_all_held_out_text_and_is_measured_every_few_steps(tmp_path):
    settings = {"kappa": math.inf, "steps": 7, "batch": 3, "check": 3}
    with worn(tiny(), small(**settings), tmp_path) as target:
        held_out = untrained(tiny(), **settings).held_harmless
        text = collate(held_out)
        assert len(held_out) > 3
        with torch.no_grad():
            _, tuned = target.forward(text.ids, text.all_text, logits=True)
            with without_adapter(target):
                _, base = target.forward(text.ids, text.all_text, logits=True)
        p, q = tuned.log_softmax(-1), base.log_softmax(-1)
        expected = (p.exp() * (p - q)).sum(-1).mean().item()
    found = record(tmp_path)
    assert found["notes"]["kept_kl"] == pytest.approx(expected, rel=1e-4)
    curve = found["curves"]["held_kl"]
    assert curve[0] == curve[1] == curve[2] == 0 < curve[3] == curve[4] == curve[5] < curve[6]
    assert found["notes"]["kept_step"] == 7


def test_the_terminal_layer_is_an_intermediate_one_and_no_adapter_is_above_its_cap(tmp_path):
    from safetensors import safe_open

    for terminal, depth in (("plateau", 1), ("last", 2)):
        settings = {"terminal": terminal, "cap": 0.5, "growth": 9.0, "steps": 2}
        with worn(tiny(), small(**settings), tmp_path / terminal):
            pass
        notes = record(tmp_path / terminal)["notes"]
        assert (notes["terminal"], notes["terminal_choice"]) == (depth, terminal)
        file = tmp_path / terminal / "cache" / "adapter_model.safetensors"
        with safe_open(file, framework="pt") as weights:
            names = "".join(weights.keys())
        assert (".layers.1." in names) == (depth == 2) and ".layers.0." in names
