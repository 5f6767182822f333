"""Scores against scikit-learn, closed forms and brute force."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from particlevi.diagnostics import calibration


@pytest.fixture
def classified():
    g = torch.Generator().manual_seed(0)
    probs = torch.softmax(2 * torch.randn(400, 3, generator=g, dtype=torch.float64), -1)
    targets = torch.multinomial(probs, 1, generator=g).flatten()
    return probs, targets


def test_nll(classified):
    probs, targets = classified
    assert calibration.nll(probs, targets) == pytest.approx(log_loss(targets, probs), rel=1e-12)


def test_brier(classified):
    probs, targets = classified
    onehot = np.eye(3)[targets.numpy()]
    expected = ((probs.numpy() - onehot) ** 2).sum(1).mean()
    assert calibration.brier(probs, targets) == pytest.approx(expected, rel=1e-12)
    assert calibration.brier(torch.eye(3), torch.tensor([0, 1, 2])) == 0
    assert calibration.brier(torch.eye(3), torch.tensor([1, 2, 0])) == 2


def test_calibration_error(classified):
    probs, targets = classified
    confidence = probs.max(1).values.numpy()
    hit = (probs.argmax(1) == targets).double().numpy()
    expected = 0.0
    for part in np.array_split(np.argsort(confidence, kind="stable"), 15):
        expected += len(part) / 400 * abs(hit[part].mean() - confidence[part].mean())
    found = calibration.calibration_error(probs, targets, binning="mass")
    assert found == pytest.approx(expected, rel=1e-12)
    assert expected < 0.08
    overconfident = torch.softmax(5 * probs.log(), -1)
    assert calibration.calibration_error(overconfident, targets) > 2 * expected


def test_calibration_error_of_equal_width(classified):
    probs, targets = classified
    confidence = probs.max(1).values.numpy()
    hit = (probs.argmax(1) == targets).double().numpy()
    expected = 0.0
    for low, high in itertools.pairwise(np.linspace(0, 1, 16)):
        part = (confidence > low) & (confidence <= high)
        if part.any():
            expected += part.sum() / 400 * abs(hit[part].mean() - confidence[part].mean())
    found = calibration.calibration_error(probs, targets)
    assert found == pytest.approx(expected, rel=1e-6)


def test_crps_by_brute_force():
    g = torch.Generator().manual_seed(0)
    draws, targets = torch.randn(7, 5, generator=g), torch.randn(5, generator=g)
    a, y = draws.double().numpy(), targets.double().numpy()
    pairs = np.abs(a[:, None] - a[None]).sum((0, 1)) / (7 * 6)
    expected = (np.abs(a - y).mean(0) - 0.5 * pairs).mean()
    assert calibration.crps(draws, targets) == pytest.approx(expected, rel=1e-12)


def test_crps_of_a_normal():
    """``s [z (2 Phi(z) - 1) + 2 phi(z) - 1/sqrt(pi)]`` in expectation over draws."""
    g = torch.Generator().manual_seed(0)
    y, s = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64), 1.7
    draws = s * torch.randn(200_000, 3, generator=g, dtype=torch.float64)
    z = y / s
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = s * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - math.pi**-0.5)
    assert calibration.crps(draws, y) == pytest.approx(float(exact.mean()), abs=0.01)


def test_coverage_counts_the_ends():
    low, high = torch.zeros(4), torch.ones(4)
    share, error = calibration.coverage(low, high, torch.tensor([0.0, 1.0, 1.1, 0.5]))
    assert (share, error) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)))


def test_loo_of_a_conjugate_model():
    """Exact leave-one-out densities of a normal mean with a flat prior."""
    n, chains, length = 30, 4, 1000
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, generator=g, dtype=torch.float64)
    theta = x.mean() + torch.randn(chains, length, generator=g, dtype=torch.float64) / n**0.5
    log_likelihood = torch.distributions.Normal(theta.unsqueeze(-1), 1.0).log_prob(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = calibration.loo(log_likelihood)
    rest = (x.sum() - x) / (n - 1)
    exact = torch.distributions.Normal(rest, (1 + 1 / (n - 1)) ** 0.5).log_prob(x).sum()
    total = getattr(found, "elpd_loo", None) or found.elpd
    assert float(total) == pytest.approx(float(exact), abs=0.05)


def test_bad_input():
    good = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
    with pytest.raises(ValueError, match=r"probs must be \[N, C\]"):
        calibration.nll(good[0], torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="each row with the sum 1"):
        calibration.brier(2 * good, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="class numbers in 0"):
        calibration.calibration_error(good, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="S at least 2"):
        calibration.crps(torch.zeros(1, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="one shape"):
        calibration.coverage(torch.zeros(3), torch.zeros(2), torch.zeros(3))
