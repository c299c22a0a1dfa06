"""The loop: the weights of a plain AdamW loop, interrupted or not; NaN ends it."""

import math

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from robench.errors import Failure
from robench.training import loop
from robench.training.loop import train_loop


class Regression:
    """Fits y = 3 x with noise and dropout, so that every generator matters."""

    def __init__(self, weight, steps=40, dies_at=0, nan_at=0):
        self.weight, self.steps, self.dies_at, self.nan_at = weight, steps, dies_at, nan_at
        self.rng = torch.Generator().manual_seed(1)
        self.seen = 0

    def backward(self, step):
        if step == self.dies_at:
            raise KeyboardInterrupt
        self.seen += 1
        x = torch.randn(8, generator=self.rng)
        loss = (nn.functional.dropout(x * self.weight, 0.2) - 3 * x).square().mean()
        loss.backward()
        return {"loss": math.nan if step == self.nan_at else loss.item()}

    def done(self, step):
        return step >= self.steps

    def state(self):
        return {"rng": self.rng.get_state(), "seen": torch.tensor(self.seen)}

    def load(self, state):
        self.rng.set_state(state["rng"])
        self.seen = int(state["seen"])

    def notes(self):
        return {}


def train(checkpoint, purpose="", **settings):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(1))
    objective = Regression(weight, **settings)
    curves, _ = train_loop(objective, {"weight": weight}, 0.1, checkpoint, purpose, loop.Cost)
    return weight.item(), curves, objective.seen


def test_it_is_adamw_without_decay(tmp_path):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(1))
    objective, optimizer = Regression(weight), torch.optim.AdamW([weight], lr=0.1, weight_decay=0)
    for step in range(1, 41):
        objective.backward(step)
        optimizer.step()
        optimizer.zero_grad()
    assert train(tmp_path / "c")[0] == weight.item()


@pytest.mark.parametrize("dies_at", [3, 8, 33])
def test_an_interrupted_training_ends_the_same(tmp_path, monkeypatch, dies_at):
    monkeypatch.setattr(loop, "EVERY", 5)
    expected = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "c", dies_at=dies_at)
    torch.rand(7)
    assert train(tmp_path / "c") == expected


def test_the_checkpoint_of_another_training_is_ignored(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "c", "one", dies_at=30)
    assert train(tmp_path / "c", "two") == train(tmp_path / "d", "two")


def test_nan_ends_it(tmp_path):
    with pytest.raises(Failure, match="loss is nan at step 7"):
        train(tmp_path / "c", nan_at=7)


def test_a_gradient_that_is_nan_is_never_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 5)

    class Broken(Regression):
        def backward(self, step):
            losses = super().backward(step)
            if step == 5:  # the step of the checkpoint: no later loss would show it
                self.weight.grad.fill_(math.nan)
            return losses

    weight = nn.Parameter(torch.zeros(1))
    objective = Broken(weight)
    with pytest.raises(Failure, match="weight is not finite"):
        train_loop(objective, {"weight": weight}, 0.1, tmp_path / "c", "", loop.Cost)
    assert not (tmp_path / "c").exists()


def test_the_cost_before_an_interruption_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "EVERY", 5)

    def run(**settings):
        weight = nn.Parameter(torch.zeros(1))
        cost = loop.Cost(2.0, 3.0)
        objective = Regression(weight, **settings)
        return train_loop(objective, {"weight": weight}, 0.1, tmp_path / "c", "", lambda: cost)[1]

    with pytest.raises(KeyboardInterrupt):
        run(dies_at=8)
    assert run() == (4.0, 6.0)


@pytest.mark.parametrize(("clip", "factor"), [(0.0, 1), (26.0, 1), (1.3, 0.1)])
def test_a_clipped_gradient_has_at_most_that_norm_over_all_parameters(tmp_path, clip, factor):
    """Gradients (3, 4) and (0, 12) of two parameters have norm 13 together."""
    gradients = {"first": torch.tensor([3.0, 4.0]), "second": torch.tensor([0.0, 12.0])}
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in gradients}
    stepped = {}

    class Constant(Regression):
        def backward(self, step):
            for name, parameter in parameters.items():
                parameter.grad = gradients[name].clone()
            return {"loss": 0.0}

    def observe(*_):
        stepped.update({name: p.grad.clone() for name, p in parameters.items()})

    observed = register_optimizer_step_pre_hook(observe)
    try:
        objective = Constant(parameters["first"], steps=1)
        train_loop(objective, parameters, 0.1, tmp_path / "c", "", loop.Cost, clip)
    finally:
        observed.remove()
    for name, gradient in gradients.items():
        torch.testing.assert_close(stepped[name], factor * gradient, rtol=1e-5, atol=0)
