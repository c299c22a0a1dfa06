"""Supervised fine-tuning: the loss by hand, the batches of its generator, its end."""

import math

import pytest
import torch

from robench.testing import tiny, tiny_context
from robench.training import FineTuning
from robench.training.corpus import collate, split_examples, tokenise


def goal(steps: int = 3) -> FineTuning:
    model, ctx = tiny(), tiny_context()
    model.network.requires_grad_(True)
    texts = tokenise(model.chat, split_examples(ctx.examples).harmless)
    return FineTuning(model, texts, batch=4, steps=steps, rng=ctx.rng("any"))


def test_the_loss_is_the_replies_cross_entropy():
    made = goal()
    state = made.rng.get_state()
    rows = torch.randint(len(made.texts), (4,), generator=made.rng).tolist()
    made.rng.set_state(state)
    found = made.backward(1)["answer"]
    batch = collate([made.texts[i] for i in rows])
    logits = made.model.network(batch.ids, batch.all_text.long()).logits.log_softmax(-1)
    total, count = 0.0, 0
    for row in range(4):
        for time in batch.response[row].nonzero().flatten().tolist():
            total -= logits[row, time - 1, batch.ids[row, time]].item()
            count += 1
    assert found == pytest.approx(total / count, abs=1e-5)
    assert math.isfinite(found)


def test_gradients_reach_the_weights():
    made = goal()
    made.backward(1)
    assert all(p.grad is not None for p in made.model.network.parameters())


def test_a_resumed_training_draws_the_same_batches():
    made, other = goal(), goal()
    made.backward(1)
    other.load({name: tensor.clone() for name, tensor in made.state().items()})
    assert made.backward(2) == other.backward(2)


def test_it_ends_after_its_steps():
    made = goal(steps=2)
    assert [made.done(step) for step in (0, 1, 2, 3)] == [False, False, True, True]
