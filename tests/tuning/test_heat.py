"""The heat of correlated gradient noise: its law, its estimate, its bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from particlevi.running.world import OneProcess
from particlevi.tuning.heat import bound, learn, no_heat, shifts
from tests.tuning.noisy import baoa_law

D = 6
TENSORS = {"weight": slice(0, 4), "bias": slice(4, 6)}


def random_spd(seed, low, high):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return q @ np.diag(np.geomspace(low, high, D)) @ q.T


NOISE = random_spd(2, 0.1, 30.0)


def known(covariance=NOISE):
    """``Heat`` of noise with that covariance."""
    values, vectors = np.linalg.eigh(covariance)
    diagonal = torch.tensor(np.diag(covariance).copy())
    return no_heat(torch.zeros(1, D))._replace(
        moving=diagonal,
        noise=diagonal,
        along=torch.tensor(values[::-1][:4].copy()),
        directions=torch.tensor(vectors.T[::-1][:4].copy()),
    )


def factor(h, friction):
    return h**2 / (4 * math.tanh(0.5 * friction * h))


@pytest.mark.parametrize("friction", [0.3, 2.0, 40.0])
def test_the_virial_of_all_parameters_is_heated_by_the_trace_whatever_the_curvature(friction):
    """To the order h^2, for a Hessian and a noise that do not commute."""
    hessian = random_spd(1, 0.5, 4.0)
    errors = []
    for h in (0.04, 0.02):
        law = baoa_law(hessian, NOISE, h, friction)[:D, :D]
        heat = np.trace(hessian @ law) / D - 1
        predicted = factor(h, friction) * np.trace(NOISE) / D
        errors.append(abs(heat / predicted - 1))
    assert errors[1] < 0.01
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("friction", [0.3, 2.0, 40.0])
def test_the_heat_along_every_direction_of_a_round_gaussian(friction):
    """Exactly ``k S 4 / (4 - h^2 l)``."""
    h, curvature = 0.3, 2.0
    law = baoa_law(curvature * np.eye(D), NOISE, h, friction)[:D, :D]
    expected = factor(h, friction) * 4 / (4 - h**2 * curvature) * NOISE
    np.testing.assert_allclose(curvature * law - np.eye(D), expected, rtol=1e-9, atol=1e-9)


def test_compensation_leaves_the_correlations():
    """To the order of h^2: what heats a direction is the noise that is left along it."""
    h, friction, curvature = 0.01, 2.0, 1.0
    taken = np.diag(NOISE)
    law = baoa_law(curvature * np.eye(D), NOISE, h, friction, taken)[:D, :D]
    found = {
        each.name: each.heat for each in shifts(known(), factor(h, friction), TENSORS, 1, True)
    }
    top = known().directions[0].numpy()
    assert top @ law @ top - 1 == pytest.approx(found["the top 1 noise direction"], rel=0.01)
    assert np.trace(law) / D - 1 == pytest.approx(0, abs=1e-4)
    assert found["all parameters"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("likelihood_sd", [math.inf, 0.2])
@pytest.mark.parametrize("compensated", [False, True])
@pytest.mark.parametrize("T", [0.5, 1.0])
def test_at_the_bound_the_worst_shift_is_the_tolerance(T, compensated, likelihood_sd):
    k = bound(known(), TENSORS, 0.1, T, compensated, likelihood_sd)
    found = shifts(known(), k, TENSORS, T, compensated, likelihood_sd)
    assert max(abs(each.shift) for each in found) == pytest.approx(0.1, rel=1e-6)


def test_noise_without_correlations_is_taken_out_up_to_half_of_the_temperature():
    diagonal = np.diag(np.array([1.0, 2, 3, 4, 5, 6]))
    assert bound(known(diagonal), TENSORS, 0.1, 1.0, True) == pytest.approx(0.5 / 6)
    assert bound(known(diagonal), TENSORS, 0.1, 1.0, False) < 0.1 / 6


def test_no_noise_no_bound():
    assert bound(no_heat(torch.zeros(1, D)), TENSORS, 0.1) == math.inf


def learnt(rounds, chains=16, spoilt=0):
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(torch.tensor(NOISE))
    heat = no_heat(torch.zeros(1, D))
    for _ in range(rounds):
        noise = torch.randn(chains, D, generator=generator, dtype=torch.float64) @ root.mT
        noise[:spoilt] = math.nan
        heat = learn(heat, noise, noise, OneProcess())
    return heat


@pytest.mark.parametrize("spoilt", [0, 5])
def test_the_top_direction_and_its_noise_are_found(spoilt):
    """Within five standard errors of a mean over the last 100 rounds or so; lost chains aside."""
    heat, true = learnt(200, spoilt=spoilt), known()
    assert abs(float(heat.directions[0] @ true.directions[0])) > 0.99
    slack = 5 * math.sqrt(2 / (100 * (16 - spoilt)))
    assert float(heat.along[0] / true.along[0]) == pytest.approx(1, abs=slack)
    ratio = heat.noise / true.noise
    assert float((ratio - 1).abs().max()) < slack


def test_chance_does_not_pass_for_noise_along_a_direction():
    """With round noise in many dimensions and few chains, no direction stands out."""
    generator = torch.Generator().manual_seed(1)
    heat = no_heat(torch.zeros(1, 200))
    for _ in range(40):
        noise = torch.randn(4, 200, generator=generator, dtype=torch.float64)
        heat = learn(heat, noise, noise, OneProcess())
    assert float((heat.along - 1).abs().max()) < 0.5
