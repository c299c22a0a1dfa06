"""Linear probes on hidden states, and the smallest shift that changes a probe's verdict.

The probe of a layer gives a state e the probability P(e) = sigmoid(w . e + b) of being harmful.
Layers are 0..L, l the raw output of decoder block l, as everywhere.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Probes(NamedTuple):
    """A probe per layer, in fp64: weight (layers, d), bias and held-out accuracy (layers,)."""

    weight: Tensor
    bias: Tensor
    accuracy: Tensor


def fit_probes(
    states: Tensor, harmful: Tensor, held_out: Tensor, standardised: bool = True
) -> Probes:
    """Fit a probe per layer by logistic regression with L2 (C = 1).

    A probe that is fitted on standardised states has the standardisation folded into w and b: it
    reads raw states, too. The penalty makes the two different probes: it is on the weight of each
    coordinate in units of that coordinate's deviation, or in the states' own.

    Args:
        states: (n, layers, d).
        harmful: (n,) bool, the labels; the rows of the fit must have both.
        held_out: (n,) bool, the rows that are left out of the fit, for the accuracy.
        standardised: whether the fit is on standardised states.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rows, labels = states.double().cpu().numpy(), harmful.cpu().numpy()
    fitted, unseen = (~held_out).cpu().numpy(), held_out.cpu().numpy()
    weights, biases, accuracies = [], [], []
    for layer in range(rows.shape[1]):
        x = rows[:, layer]
        scaler = StandardScaler().fit(x[fitted])
        mean, scale = (scaler.mean_, scaler.scale_) if standardised else (0.0, 1.0)
        regression = LogisticRegression(max_iter=10_000)
        regression.fit((x[fitted] - mean) / scale, labels[fitted])
        weight = regression.coef_[0] / scale
        bias = float(regression.intercept_[0] - (weight * mean).sum())
        predicted = x[unseen] @ weight + bias > 0
        weights.append(torch.from_numpy(weight))
        biases.append(bias)
        accuracies.append(float((predicted == labels[unseen]).mean()))
    columns = (torch.tensor(column, dtype=torch.float64) for column in (biases, accuracies))
    return Probes(torch.stack(weights), *columns)


def perturbation(states: Tensor, w: Tensor, b: float | Tensor, p0: float) -> Tensor:
    """The smallest shift (n, d) after which sigmoid(w . e + b) <= p0; zero where it already is.

        shift = -|eps| w / |w|,   |eps| = max(0, w . e + b - logit(p0)) / |w|

    Args:
        states: (n, d); computed in their precision, but at least in fp32.
        w: (d,), not zero.
        b: the probe's bias.
        p0: the probability to reach, in (0, 1).
    """
    norm = perturbation_norms(states, w, b, p0)
    w = w.to(norm)
    return -norm[:, None] * (w / w.norm())


def perturbation_norms(states: Tensor, w: Tensor, b: float | Tensor, p0: float) -> Tensor:
    """The norm |eps| (n,) of each state's `perturbation`."""
    e = states.to(torch.promote_types(states.dtype, torch.float32))
    w = w.to(e)
    return (e @ w + b - math.log(p0 / (1 - p0))).clamp(min=0) / w.norm()
