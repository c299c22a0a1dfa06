"""Modes of a model in training: what they switch off, and that they restore it."""

import pytest
import torch

from robench.testing import tiny
from robench.training.modes import evaluating, without_adapter
from robench.types import Prompt, user

PROMPT = [Prompt(user("Why?"))]


def state(model):
    return model.network.training, [p.requires_grad for p in model.network.parameters()]


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_has_no_gradients_or_those_of_all_but_the_adapter(with_lora, training):
    model = with_lora(tiny(), spread=0.1)
    model.network.train(training)
    before = state(model)
    with evaluating(model):
        assert not model.network.training and not torch.is_grad_enabled()
    assert state(model) == before and torch.is_grad_enabled()
    with evaluating(model, gradients=True):
        assert not model.network.training and torch.is_grad_enabled()
        assert not any(p.requires_grad for p in model.network.parameters())
    assert state(model) == before
    with pytest.raises(RuntimeError, match="fails"), evaluating(model, gradients=True):
        raise RuntimeError("it fails")
    assert state(model) == before


def test_without_the_adapter_the_states_are_the_base_models(with_lora):
    base = tiny().hidden(PROMPT)
    model = with_lora(tiny(), spread=0.1)
    before = state(model)
    tuned = model.hidden(PROMPT)
    with without_adapter(model):
        assert torch.equal(model.hidden(PROMPT), base)
        assert not torch.is_grad_enabled()
    assert torch.equal(model.hidden(PROMPT), tuned) and not torch.equal(tuned, base)
    assert state(model) == before
