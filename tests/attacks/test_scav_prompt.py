"""SCAV by prompt: the fitness in closed form, and as the trace of the final prompt."""

import pytest
import torch

from robench.methods.registry import load_class
from robench.testing import tiny, tiny_behaviors, tiny_context
from robench.types import Context, Prompt, user

SCAVPrompt = load_class("attack", "scav_prompt")
SOURCE = __import__(SCAVPrompt.__module__, fromlist=["fitness"])
QUICK = {"steps": 2, "population": 6, "every": 1, "mutation": 0.5}


def test_fitness_closed_form():
    """sigmoid(0) * |(3, 4)| = 2.5; a state that did not move costs nothing."""
    origin = torch.zeros(2, 2)
    states = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    weight, bias = torch.tensor([4.0, -3.0]), torch.tensor(0.0)
    assert SOURCE.fitness(states, origin, weight, bias).tolist() == pytest.approx([2.5, 0.0])
    surer = SOURCE.fitness(states, origin, weight, torch.tensor(2.0))
    assert surer[0].item() == pytest.approx(5 / (1 + torch.tensor(-2.0).exp().item()))


def test_the_trace_is_the_fitness_of_the_final_prompt():
    model, behaviors, ctx = tiny(), tiny_behaviors(2), tiny_context()
    attempts = [a for a in SCAVPrompt(**QUICK).run(model, behaviors, ctx) if a.final]
    probe = ctx.memory["scav_prompt"]
    for attempt in attempts:
        both = model.hidden([attempt.prompt, Prompt(user(attempt.behavior.request))])[:, -1]
        fitness = SOURCE.fitness(both[:1], both[1:], probe["weight"], probe["bias"])
        assert attempt.trace[-1] == pytest.approx(fitness.item(), rel=1e-3, abs=1e-4)
        assert attempt.behavior.request in attempt.prompt.messages[0]["content"]


def test_targets_are_not_used():
    model, behaviors = tiny(), tiny_behaviors(1)
    attack = SCAVPrompt(**QUICK)
    (plain,) = [a.prompt for a in attack.run(model, behaviors, tiny_context()) if a.final]
    other = [type(behaviors[0])(behaviors[0].id, behaviors[0].text, target="No")]
    (same,) = [a.prompt for a in attack.run(model, other, tiny_context()) if a.final]
    assert plain.messages == same.messages


def test_too_few_references_are_reported():
    with pytest.raises(RuntimeError, match="--reference"):
        list(SCAVPrompt(**QUICK).run(tiny(), tiny_behaviors(1), Context()))
