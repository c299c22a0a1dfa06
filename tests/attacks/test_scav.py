"""SCAV on the organism and on tiny models: what its probes measure at the edited states (7.6)."""

import sys
from dataclasses import dataclass, replace

import pytest
import torch

from robench import organism
from robench.judges.exact import Exact
from robench.methods.registry import load_class, resolve
from robench.model import perturbation_norms
from robench.testing import tiny, tiny_behaviors, tiny_context
from robench.types import LAST, PAD, REPLY, Context, Prompt, user

SCAV, SCAVRandom = load_class("attack", "scav"), load_class("attack", "scav_random")
SOURCE = sys.modules[SCAV.__module__]
DEV = [b for b in organism.behaviors("dev") if b.harmful][:8]


@pytest.fixture(scope="module")
def probes(organism_model):
    """The probes of the organism, fitted once."""
    ctx = context()
    list(SCAV(p0=(1e-3,)).run(organism_model, DEV[:1], ctx))
    return ctx.memory["scav"]


def context() -> Context:
    return Context(references=organism.references(), tune=organism.tune()[:8], judge=Exact())


def fitted(attack, model=None, ctx=None):
    attempts = list(attack.run(model or tiny(), tiny_behaviors(2), ctx or tiny_context()))
    return attempts[0]


@dataclass(frozen=True)
class Meter:
    """Records the layer's own probe's probabilities of the states after the edits before it."""

    layer: int
    weight: torch.Tensor
    bias: float
    roles: tuple[int, ...]
    seen: list

    def __call__(self, h, role):
        probability = torch.sigmoid(h.double() @ self.weight + self.bias)
        self.seen.append(probability[torch.stack([role == r for r in self.roles]).any(0)])
        return h


def measured(model, probes, edits, layers) -> torch.Tensor:
    """The probabilities at the layers' hooks, wherever the edits act, over whole replies."""
    seen: list[torch.Tensor] = []
    meters = tuple(
        Meter(l, probes["weight"][l], float(probes["bias"][l]), edits[0].roles, seen)
        for l in layers
    )
    model.generate([Prompt(user(b.request), edits=(*edits, *meters)) for b in DEV[:4]])
    return torch.cat(seen)


@pytest.mark.parametrize("positions", ["last", "each", "all"])
def test_every_active_layer_measures_at_most_p0_for_every_token(organism_model, probes, positions):
    ctx, p0 = context(), 1e-3
    ctx.memory["scav"] = probes
    edits = fitted(SCAV(p0=(p0,), positions=positions), organism_model, ctx).prompt.edits
    layers = [edit.layer for edit in edits]
    assert len(layers) >= 3
    probabilities = measured(organism_model, probes, edits, layers)
    assert len(probabilities) > (100 if positions != "last" else 10)
    assert probabilities.max() <= p0 * 1.001  # fp32
    idle = [replace(edit, p0=1 - 1e-12) for edit in edits]
    assert measured(organism_model, probes, idle, layers).max() > p0


def test_a_probe_that_is_one_layer_off_does_not_reach_p0(organism_model, probes):
    """The published code: probe l acts on the output of block l + 1."""
    ctx, p0 = context(), 1e-3
    ctx.memory["scav"] = probes
    edits = fitted(SCAV(p0=(p0,)), organism_model, ctx).prompt.edits
    depth = organism_model.depth
    off = [replace(edit, layer=edit.layer + 1) for edit in edits if edit.layer < depth]
    probabilities = measured(organism_model, probes, off, [edit.layer for edit in off])
    assert probabilities.max() > 2 * p0


def test_layers_must_be_more_accurate_than_p1():
    accuracy = torch.tensor([1.0, 0.5, 0.9, 0.95, 1.0], dtype=torch.float64)
    assert SOURCE.active_layers(accuracy, 0.9) == [3, 4]  # strictly, and never the embedding
    assert SOURCE.active_layers(accuracy, 0.95) == [4]
    assert SOURCE.active_layers(accuracy.clamp(max=0.9), 0.9) == [2]  # none: the first of the best


def test_attempts_are_tagged_if_no_probe_was_accurate_enough():
    ctx = tiny_context()
    fitted(SCAV(), ctx=ctx)
    ctx.memory["scav"]["accuracy"] = torch.tensor([0.5, 0.7, 0.8], dtype=torch.float64)
    for p1, tag, layers in ((0.8, "below-p1", [2]), (0.7, "", [2]), (0.6, "", [1, 2])):
        attempt = fitted(SCAV(p1=p1), ctx=ctx)
        assert attempt.tag == tag
        assert [edit.layer for edit in attempt.prompt.edits] == layers


def test_the_accuracy_is_of_the_references_that_were_held_out(probes):
    right = probes["accuracy"] * 30  # a quarter of 60 + 60
    assert (right - right.round()).abs().max() < 1e-9
    assert probes["accuracy"][0] == 0.5  # the embedding of the template's last token
    assert probes["accuracy"][3:].min() > 0.9
    assert all(probes[name].dtype == torch.float64 for name in ("weight", "bias", "accuracy"))


def shift(cls=SOURCE.Shift, **settings):
    given = {"weight": torch.linspace(-1, 1, 32), "bias": 0.2, "p0": 1e-2, "roles": (LAST, REPLY)}
    if cls is SOURCE.RandomShift:
        given["along"] = torch.eye(32)[5]
    return cls(**{"layer": 1, **given, **settings})


@pytest.mark.parametrize("cls", [SOURCE.Shift, SOURCE.RandomShift])
def test_rows_and_positions_are_shifted_alone(cls):
    h = 3 * torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    role = torch.tensor([[PAD, 1, 1, 1, LAST]] * 2 + [[REPLY] * 5] * 2)
    edit = shift(cls)
    moved = edit(h, role)
    for i in range(4):
        torch.testing.assert_close(edit(h[i : i + 1], role[i : i + 1])[0], moved[i])
    probability = torch.sigmoid(h @ edit.weight + edit.bias)
    acts = (role >= LAST) & (probability > edit.p0)
    assert acts.any() and (~acts & (role >= LAST)).any()
    assert torch.equal(moved[~acts], h[~acts])
    assert ((moved - h).norm(dim=2)[acts] > 0).all()


def test_random_shifts_are_as_long_along_another_direction():
    h = 3 * torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(0))
    role = torch.full((4, 5), LAST)
    scav, random = shift()(h, role) - h, shift(SOURCE.RandomShift)(h, role) - h
    torch.testing.assert_close(scav.norm(dim=2), random.norm(dim=2), atol=1e-5, rtol=0)
    assert (random[..., 5] > 0).any() and random[..., :5].abs().max() == 0
    settings = {"p0": (1e-3,), "p1": 1e-6}
    edits, same = (fitted(SCAVRandom(**settings)).prompt.edits for _ in range(2))
    assert all(torch.equal(a.along, b.along) for a, b in zip(edits, same, strict=True))
    assert [edit.along.norm().item() for edit in edits] == pytest.approx([1, 1])
    assert abs(edits[0].along @ edits[1].along) < 0.9
    other = fitted(SCAVRandom(**settings), ctx=tiny_context(1)).prompt.edits
    assert not torch.equal(other[0].along, edits[0].along)


@pytest.mark.parametrize("cls", [SCAV, SCAVRandom])
@pytest.mark.parametrize(("last", "p0"), [(0, 5e-2), (1, 1e-3), (2, 1e-4), (-1, 1e-4)])
def test_the_smallest_p0_of_equals_is_taken(cls, last, p0, preferring):
    ctx = tiny_context()
    ctx.judge = preferring(range(last + 1))
    attempt = fitted(cls(p0=(1e-4, 5e-2, 1e-3)), ctx=ctx)
    assert {edit.p0 for edit in attempt.prompt.edits} == {p0}
    chosen = {5e-2: 0, 1e-3: 1, 1e-4: 2}[p0]
    assert (attempt.tries, attempt.chosen, attempt.edge_of_grid) == (3, chosen, last == 0)


@pytest.mark.parametrize("layer", [1, 3, 6])
def test_a_probe_of_raw_states_takes_a_larger_shift(organism_model, layer):
    """The published probe is fitted on raw states; standardised ones take a fraction of it."""
    harmful, harmless = SOURCE.read_references(organism_model, context(), 80, False)
    norms = {}
    for kind in ("raw", "standardised"):
        probes = SOURCE.fit_layer_probes(harmful, harmless, kind)
        weight, bias = probes.weight[layer], float(probes.bias[layer])
        norms[kind] = perturbation_norms(harmful[:, layer].double(), weight, bias, 1e-3).mean()
    assert 1.5 < norms["raw"] / norms["standardised"] < 10
    assert SCAV().probe == SCAV(**SCAV.presets["paper"]).probe == "raw"


def test_settings_are_checked():
    for cls in (SCAV, SCAVRandom):
        for wrong in ({"p0": (0.0,)}, {"p0": (0.1, 1.0)}, {"p1": 1.0}, {"p1": 0.0}):
            with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be in \(0, 1\)"):
                cls(**wrong)
        with pytest.raises(ValueError, match="p0"):
            cls(p0=())
        with pytest.raises(ValueError, match="pairs"):
            cls(pairs=0)
    assert SCAVRandom.role == "control"
    assert vars(SCAV()) == vars(SCAVRandom())


def test_it_breaks_the_organism_and_random_directions_do_not(organism_model, count_broken):
    ctx, broken = context(), {}
    for name in ("scav", "scav_random"):
        attempts = list(resolve("attack", name).instance.run(organism_model, DEV, ctx))
        broken[name] = count_broken(organism_model, attempts)
    assert broken["scav"] >= 4
    assert broken["scav_random"] == 0
