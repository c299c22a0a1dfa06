"""The oracles of defenses 6, fixture A, and closed forms derived in the comments."""

import math

import pytest
import torch

from robench.training import losses
from robench.training.losses import DISTANCES, centroid, kl_divergence, masked_mean, triplet_hinge

ROOT5, ROOT2 = math.sqrt(5), math.sqrt(2)


def states(*vectors) -> torch.Tensor:
    """(layers = 1, batch = 1, time, d)"""
    return torch.tensor(vectors, dtype=torch.float32)[None, None]


SAFE_TUNED, SAFE_BASE = states((1, 0), (0, 2)), states((1, 0), (0, 1))
HARM_TUNED, HARM_BASE = states((0, -1), (2, 1)), states((0, -1), (1, 0))
MASK = torch.ones(1, 2)


def safe(margin, distance, mask=MASK):
    middle = centroid(HARM_TUNED, MASK)[:, None, None]
    return triplet_hinge(SAFE_TUNED, SAFE_BASE, middle, mask, margin, distance, distance).item()


def unsafe(margin, distance, mask=MASK):
    middle = centroid(HARM_TUNED, MASK)[:, None, None]
    return triplet_hinge(HARM_TUNED, middle, HARM_BASE, mask, margin, distance, distance).item()


def test_centroid_of_fixture_a():
    assert centroid(HARM_TUNED, MASK).tolist() == [[1, 0]]
    assert centroid(HARM_TUNED, torch.tensor([[0, 1]])).tolist() == [[2, 1]]
    assert centroid(HARM_TUNED.flatten(1, 2), None).tolist() == [[1, 0]]


def test_hinges_of_fixture_a():
    assert safe(1, "l2") == pytest.approx(0.5)
    assert unsafe(1, "l2") == pytest.approx((1 + ROOT2 + 1) / 2)
    assert safe(0, "l2") == 0
    assert unsafe(0, "l2") == pytest.approx(ROOT2 / 2)
    assert safe(1, "cos") == pytest.approx(0.5)
    first, second = torch.tensor([[1, 0]]), torch.tensor([[0, 1]])
    assert [safe(1, "l2", first), safe(1, "l2", second)] == pytest.approx([1, 0])
    assert [unsafe(1, "l2", first), unsafe(1, "l2", second)] == pytest.approx([1 + ROOT2, 1])


def test_the_cosine_hinge_of_fixture_a():
    """(0, -1) to (1, 0): 1, to itself 0; (2, 1) to (1, 0) both times: 0. So [2, 1]."""
    middle = centroid(HARM_TUNED, MASK)[:, None, None]
    pull = DISTANCES["cos"](HARM_TUNED, middle) - DISTANCES["cos"](HARM_TUNED, HARM_BASE) + 1
    assert pull.flatten().tolist() == pytest.approx([2, 1])
    assert unsafe(1, "cos") == pytest.approx(1.5)


def test_distances():
    x, y = torch.tensor([3.0, 0.0]), torch.tensor([-1.0, 0.0])
    expected = {"l2": 4, "cos": 2, "mix": 4 + 10, "sqn": 0.3 * 4, "none": 0}  # opposite vectors
    assert {name: d(x, y).item() for name, d in DISTANCES.items()} == pytest.approx(expected)
    zero = torch.zeros(2)
    assert DISTANCES["cos"](x, zero).item() == 1
    assert DISTANCES["mix"](x, zero).item() == 13
    for name, d in DISTANCES.items():
        assert d(x, x).item() == pytest.approx(0, abs=1e-6), name
    a, b = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(DISTANCES["sqn"](a, b), 0.6 * DISTANCES["cos"](a, b))


def test_distances_are_taken_in_fp32():
    x = torch.full((4,), 300.0, dtype=torch.float16)
    assert DISTANCES["l2"](x, -x).item() == pytest.approx(1200)
    assert all(d(x, -x).dtype == torch.float32 for d in DISTANCES.values())


@pytest.mark.parametrize("distance", list(DISTANCES))
def test_gradients_where_states_are_equal_are_finite(distance):
    x = SAFE_BASE.clone().requires_grad_()
    DISTANCES[distance](x, SAFE_BASE).sum().add(0 * x.sum()).backward()
    assert x.grad.isfinite().all()


def test_the_live_centroid_has_a_gradient_of_its_own():
    """One token a = (1, 0), two harmful ones (0, 1), (0, 3): c = (0, 2), |a - c| = sqrt 5.

    d/dc = (c - a) / |a - c| = (-1, 2) / sqrt 5, and a harmful token gets half of it.
    """
    harmful = states((0, 1), (0, 3)).requires_grad_()
    middle = centroid(harmful, MASK)[:, None, None]
    losses.l2(states((1, 0)), middle).sum().backward()
    expected = torch.tensor([-1, 2]) / ROOT5 / 2
    torch.testing.assert_close(harmful.grad[0, 0], expected.expand(2, 2))
    assert not centroid(harmful.detach(), MASK).requires_grad


def test_rerouting_and_forgetting_come_out_of_the_hinge():
    generator = torch.Generator().manual_seed(1)
    tuned, base = torch.randn(2, 3, 2, 5, 8, generator=generator)
    mask = torch.rand(2, 5, generator=generator) > 0.3
    rerouting = masked_mean(losses.cosine_similarity(tuned, base).relu(), mask)
    hinge = triplet_hinge(tuned, tuned, base, mask, 1, "none", "cos")
    torch.testing.assert_close(hinge, rerouting)
    forgetting = -masked_mean(losses.l2(tuned, base), mask)
    hinge = triplet_hinge(tuned, tuned, base, mask, 1000, "none", "l2")
    torch.testing.assert_close(hinge - 1000, forgetting, atol=1e-3, rtol=0)


def test_masked_tokens_do_not_count():
    values = torch.tensor([[[1.0, 2.0, 9.0]]])
    assert masked_mean(values, torch.tensor([[1, 1, 0]])).item() == 1.5
    assert masked_mean(values, torch.zeros(1, 3)).item() == 0
    other = HARM_TUNED.clone()
    other[0, 0, 1] = 99
    first = torch.tensor([[1, 0]])
    for which in (HARM_TUNED, other):
        assert centroid(which, first).tolist() == [[0, -1]]


def plain_kl(p_logits, q_logits, temperature):
    p, q = (torch.softmax(x.double() / temperature, -1) for x in (p_logits, q_logits))
    return (p * (p / q).log()).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("direction", ["base||tuned", "tuned||base"])
def test_kl_of_two_coins(temperature, direction):
    """Logits (log 3, 0) and (0, 0): at t = 1 P = (3/4, 1/4) and (1/2, 1/2).

    KL(P || Q) = 3/4 log 3/2 + 1/4 log 1/2; KL(Q || P) = 1/2 log 2/3 + 1/2 log 2.
    """
    base, tuned = torch.tensor([[[math.log(3), 0.0]]]), torch.zeros(1, 1, 2)
    kl = kl_divergence(base, tuned, torch.ones(1, 1), temperature, direction, "mean").item()
    pair = (base, tuned) if direction == "base||tuned" else (tuned, base)
    assert kl == pytest.approx(temperature**2 * plain_kl(*pair, temperature).item(), abs=1e-6)
    if temperature == 1:
        forward = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        backward = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
        assert kl == pytest.approx(forward if direction == "base||tuned" else backward)


def test_kl_in_chunks_is_the_whole_and_so_is_its_gradient(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    base, tuned = torch.randn(2, 3, 7, 11, generator=generator)
    mask = torch.rand(3, 7, generator=generator) > 0.4
    expected = plain_kl(base, tuned, 2.0)[mask]
    gradients = []
    for chunk in (4, 512):
        monkeypatch.setattr(losses, "KL_CHUNK", chunk)
        leaf = tuned.clone().requires_grad_()
        mean = kl_divergence(base, leaf, mask, 2.0)
        mean.backward()
        gradients.append(leaf.grad)
        assert mean.item() == pytest.approx(4 * expected.mean().item(), abs=1e-5)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=0)
    assert (gradients[0][~mask] == 0).all()
    whole = kl_divergence(base, tuned, mask, 2.0, reduction="batchmean").item()
    assert whole == pytest.approx(4 * expected.sum().item() / 3, rel=1e-5)


def test_unknown_options_of_the_kl_are_rejected():
    logits = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match="direction"):
        kl_divergence(logits, logits, None, direction="both")
    with pytest.raises(ValueError, match="reduction"):
        kl_divergence(logits, logits, None, reduction="sum")
