"""The soft prompt's arithmetic, step by step (7.4)."""

import itertools

import pytest
import torch

from robench.registry import load
from robench.testing import tiny, tiny_behaviors, tiny_context
from robench.types import GAP, user

SoftPrompt = load("attack", "soft_prompt")


def run(n: int = 2, model=None, **settings):
    attack = SoftPrompt(**{"init": "!!!!", "snapshots": 1, **settings})
    return list(attack.run(model or tiny(), tiny_behaviors(n), tiny_context()))


def test_one_sign_step_moves_every_coordinate_by_alpha():
    model = tiny()
    start = model.embed(torch.tensor(model.encode("!!!!")))
    (attempt,) = run(1, model, steps=1, rate=0.01)
    moved = (attempt.prompt.soft - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), atol=1e-6, rtol=0)


def test_relative_steps_scale_with_the_embeddings():
    model = tiny()
    start = model.embed(torch.tensor(model.encode("!!!!")))
    (attempt,) = run(1, model, steps=1, rate=0.01, relative=True)
    rms = model.embedding.pow(2).mean().sqrt().item()
    assert (attempt.prompt.soft - start).abs().max().item() == pytest.approx(0.01 * rms, rel=1e-3)


def test_the_loss_falls():
    for attempt in run(2, steps=40, rate=0.01):
        assert attempt.trace[-1] < attempt.trace[0]


def test_rows_do_not_depend_on_each_other():
    together = run(3, steps=5, rate=0.01)
    model = tiny()
    for i, behavior in enumerate(tiny_behaviors(3)):
        attack = SoftPrompt(init="!!!!", snapshots=1, steps=5, rate=0.01)
        (alone,) = attack.run(model, [behavior], tiny_context())
        torch.testing.assert_close(alone.prompt.soft, together[i].prompt.soft, atol=1e-6, rtol=0)


def test_snapshots_are_copies_and_evenly_spaced():
    attempts = list(run(1, steps=12, rate=0.01, snapshots=4))
    assert [a.step for a in attempts] == [3, 6, 9, 12]
    assert [a.final for a in attempts] == [False, False, False, True]
    softs = [a.prompt.soft for a in attempts]
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(softs))


def test_a_bf16_model_keeps_an_fp32_master():
    """A step of 1e-4 on coordinates of magnitude 1 is lost in bf16; a hundred of them are not."""
    model = tiny()
    model.network.bfloat16()
    with torch.no_grad():
        model.network.get_input_embeddings().weight[model.encode("!")[0]] = 1.0
    (attempt,) = run(1, model, steps=100, rate=1e-4)
    assert attempt.prompt.soft.dtype == torch.float32
    drift = (attempt.prompt.soft - 1.0).abs()
    assert drift.max() > 5e-3


def test_start_at_a_known_prompt_has_its_loss():
    model, (behavior,) = tiny(), tiny_behaviors(1)
    (attempt,) = run(1, model, steps=1)
    slots = model.slots([user(f"{behavior.text}{GAP}")], [behavior.target])
    ids = torch.tensor(model.encode("!!!!"))
    assert attempt.trace[0] == pytest.approx(slots.loss(ids[None, None]).item(), abs=1e-5)


def test_parameters_stay_without_gradients():
    model = tiny()
    run(1, model, steps=3)
    assert all(p.grad is None and not p.requires_grad for p in model.network.parameters())
