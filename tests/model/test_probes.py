"""Probes against scikit-learn, the closed form against its definition (7.6, 39 to 41)."""

import itertools
import math

import numpy as np
import pytest
import torch

from robench.model.probes import fit_probes, perturbation, perturbation_norms


def random(*shape, seed: int = 0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


W, B = random(16, seed=1), 0.3
STATES = 3 * random(50, 16, seed=2)


def probability(states, w=W, b=B):
    return torch.sigmoid(states.double() @ w + b)


@pytest.mark.parametrize("p0", [0.5, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)]
)
def test_the_shift_lands_on_p0(dtype, tolerance, p0):
    """States in bf16 are shifted in fp32; what the hook then rounds is off by a few percent."""
    states, w = STATES.to(dtype), W.to(dtype).double()
    shift = perturbation(states, w, B, p0)
    assert shift.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    moved = shift.abs().sum(1) > 0
    assert moved.any()
    after = probability((states + shift)[moved], w)
    assert ((after - p0).abs() < tolerance).all()
    rounded = probability((states + shift).to(dtype)[moved], w)
    assert (rounded / p0 - 1).abs().mean() < 0.05
    cosine = torch.nn.functional.cosine_similarity(shift[moved].double(), -w, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine), atol=1e-6, rtol=0)


def test_no_point_of_the_constraint_is_closer():
    states, p0 = STATES[:5], 1e-3
    length = perturbation_norms(states, W, B, p0)
    torch.testing.assert_close(perturbation(states, W, B, p0).norm(dim=1), length)
    tries = random(2000, 1, 16, seed=3)
    shorter = 0.999 * length[:, None] * tries / tries.norm(dim=2, keepdim=True)
    moved = length > 0
    assert moved.any()
    assert (probability(states + shorter)[:, moved] > p0).all()


def test_rows_at_or_below_p0_stay_bit_for_bit():
    p0 = 0.5
    shift = perturbation(STATES, W, B, p0)
    below = probability(STATES) <= p0
    assert below.any() and not below.all()
    assert torch.equal((STATES + shift)[below], STATES[below])
    assert (shift[~below].norm(dim=1) > 0).all()
    axis = torch.tensor([[0.0, 1.0], [-0.5, 1.0]])  # at p0 exactly, and below it
    assert torch.equal(perturbation(axis, torch.tensor([2.0, 0.0]), 0.0, 0.5).abs(), 0 * axis)


def test_scaling_the_probe_scales_the_logit_of_p0():
    """(cw, cb) at P0 is (w, b) at sigmoid(logit(P0) / c), and not at P0."""
    c, p0 = 3.0, 1e-3
    scaled = perturbation(STATES, c * W, c * B, p0)
    equal = 1 / (1 + math.exp(-math.log(p0 / (1 - p0)) / c))
    torch.testing.assert_close(scaled, perturbation(STATES, W, B, equal))
    assert not torch.allclose(scaled, perturbation(STATES, W, B, p0))


def test_rotating_the_space_rotates_the_shift():
    rotation = torch.linalg.qr(random(16, 16, seed=4)).Q
    turned = perturbation(STATES @ rotation.T, rotation @ W, B, 1e-3)
    torch.testing.assert_close(turned, perturbation(STATES, W, B, 1e-3) @ rotation.T)


def test_a_larger_p0_takes_a_shorter_shift():
    grid = [perturbation_norms(STATES, W, B, p0) for p0 in (1e-4, 1e-3, 1e-2, 5e-2)]
    for longer, shorter in itertools.pairwise(grid):
        assert (longer >= shorter).all() and (longer > shorter).any()


def test_rows_do_not_depend_on_each_other():
    together = perturbation(STATES, W, B, 1e-3)
    alone = torch.cat([perturbation(row[None], W, B, 1e-3) for row in STATES])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


def planted(n: int = 80, d: int = 12):
    """States (n, 3, d): layer 0 constant, layer 1 noise, layer 2 separable but badly scaled."""
    harmful = torch.arange(n) % 2 == 0
    states = random(n, 3, d, seed=5)
    states[:, 0] = 1.7
    states[:, 2, 3] += 6 * harmful
    states[:, 2] = states[:, 2] * torch.logspace(-3, 3, d) + 100
    held_out = torch.arange(n) >= 3 * n // 4
    return states, harmful, held_out


@pytest.mark.parametrize("standardised", [True, False])
def test_the_folded_probe_predicts_what_scikit_learn_predicts(standardised):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    states, harmful, held_out = planted()
    probes = fit_probes(states, harmful, held_out, standardised)
    for layer in range(3):
        x, y = states[:, layer].numpy(), harmful.numpy()
        scaler = StandardScaler() if standardised else "passthrough"
        model = make_pipeline(scaler, LogisticRegression(max_iter=10_000))
        model.fit(x[~held_out], y[~held_out])
        predicted = probability(states[:, layer], probes.weight[layer], probes.bias[layer]).numpy()
        np.testing.assert_allclose(predicted, model.predict_proba(x)[:, 1], atol=1e-9)
        accuracy = model.score(x[held_out], y[held_out])
        assert probes.accuracy[layer].item() == pytest.approx(accuracy)


def test_a_raw_probe_is_that_of_saga():
    """SCAV's code fits with saga; the two solvers agree on a well-conditioned problem."""
    from sklearn.linear_model import LogisticRegression

    states, harmful, held_out = planted()
    probes = fit_probes(states, harmful, held_out, standardised=False)
    x, y = states[:, 1].numpy(), harmful.numpy()
    saga = LogisticRegression(solver="saga", C=1.0, max_iter=10_000, tol=1e-8, random_state=0)
    saga.fit(x[~held_out], y[~held_out])
    np.testing.assert_allclose(probes.weight[1].numpy(), saga.coef_[0], atol=1e-3)
    assert probes.bias[1].item() == pytest.approx(saga.intercept_[0], abs=1e-3)


def test_accuracy_is_that_of_rows_the_probe_has_not_seen():
    states, harmful, held_out = planted()
    assert fit_probes(states, harmful, held_out).accuracy.tolist()[::2] == [0.5, 1.0]
    wrong = torch.where(held_out, ~harmful, harmful)  # the labels of the held-out rows, flipped
    assert fit_probes(states, wrong, held_out).accuracy[2] == 0
    noise = fit_probes(
        random(60, 1, 200, seed=6), torch.arange(60) % 2 == 0, torch.arange(60) >= 30
    )
    assert 0.2 < noise.accuracy.item() < 0.8  # separable where it was fitted: d > n
