"""Stationary laws on Gaussians: each sampler's own step against its closed form, to 1e-10."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.samplers.psgld import Memory as PreconditionerMemory
from tests.stationarity.laws import (
    NoisyGradient,
    affine_step,
    of_hessian,
    order,
    quadratic,
    random_hessian,
    spectral_radius,
    stationary,
)

TEMPERATURES = [0.25, 1.0, 4.0]
NOISES = [0.0, 1.5]
TARGETS = {
    "one": np.array([[2.0]]),
    "two": np.linalg.inv(np.array([[1.0, 0.9], [0.9, 1.0]])),
    "five": random_hessian(5, 0.3, 6.0, seed=3),
}


@pytest.fixture(params=list(TARGETS))
def hessian(request):
    return TARGETS[request.param]


def covariance(sampler, h, varying=()):
    size = sampler.potential.num_params
    return stationary(affine_step(sampler, h, varying)).covariance[:size, :size]


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
@pytest.mark.parametrize("h", [0.01, 0.1, 0.18])
def test_sgld(hessian, h, s, T):
    found = covariance(pvi.sgld(NoisyGradient(quadratic(hessian), s), temperature=T), h)
    close(found, of_hessian(hessian, lambda lam: (2 * T + h * s**2) / (lam * (2 - h * lam))))


@pytest.mark.parametrize("s, expected", [(0.0, 0.625), (1.5, 0.765625)])
def test_sgld_numbers(s, expected):
    close(covariance(pvi.sgld(NoisyGradient(quadratic([[2.0]]), s)), 0.2), [[expected]])


def baoa_variance(h, lam, friction, T, s):
    c = math.exp(-friction * h)
    gradient_noise = h**2 * s**2 * (1 + c) / (lam * (1 - c) * (4 - h**2 * lam))
    return T / lam + gradient_noise


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
@pytest.mark.parametrize("h, friction", [(0.05, 1.0), (0.3, 1.0), (0.4, 5.0)])
def test_sghmc(hessian, h, friction, s, T):
    sampler = pvi.sghmc(NoisyGradient(quadratic(hessian), s), friction=friction, temperature=T)
    found = covariance(sampler, h, ("momentum",))
    close(found, of_hessian(hessian, lambda lam: baoa_variance(h, lam, friction, T, s)))


def test_sghmc_numbers():
    found = covariance(pvi.sghmc(NoisyGradient(quadratic([[2.0]]), 1.5)), 0.3, ("momentum",))
    assert found.item() == pytest.approx(0.678025, abs=5e-7)


@pytest.mark.parametrize("T", TEMPERATURES)
def test_sghmc_momenta(hessian, T):
    h, size = 0.3, len(hessian)
    law = stationary(affine_step(pvi.sghmc(quadratic(hessian), temperature=T), h, ("momentum",)))
    close(law.covariance[size:, size:], T * np.eye(size))
    close(law.covariance[:size, size:], 0.5 * T * h * np.eye(size))


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("h, friction", [(0.1, 1.0), (0.3, 2.0)])
def test_sghmc_compensated(hessian, h, friction, T):
    s, size = 1.5 * math.sqrt(T), len(hessian)
    target = NoisyGradient(quadratic(hessian), s)
    sampler = pvi.sghmc(target, friction, temperature=T, gradient_noise=s**2)
    law = stationary(affine_step(sampler, h, ("momentum",)))
    c = math.exp(-friction * h)

    def left(lam):
        return T / lam + h**4 * s**2 * (1 + c) / (4 * (1 - c) * (4 - h**2 * lam))

    close(law.covariance[:size, :size], of_hessian(hessian, left))
    kinetic = np.trace(law.covariance[size:, size:]) / size
    assert kinetic == pytest.approx(T - 0.5 * h**2 * s**2, abs=0.3 * h**2 * s**2)


def test_sghmc_compensation_per_parameter():
    curvature, s2, h = np.array([1.0, 2.0, 4.0]), 1.5**2, 0.1
    target = NoisyGradient(quadratic(np.diag(curvature)), 1.5)
    known = torch.tensor([s2, 0.0, s2], dtype=torch.float64)
    found = np.diag(covariance(pvi.sghmc(target, gradient_noise=known), h, ("momentum",)))
    c = math.exp(-h)
    compensated = 1 / curvature + h**4 * s2 * (1 + c) / (4 * (1 - c) * (4 - h**2 * curvature))
    plain = baoa_variance(h, curvature, 1.0, 1.0, 1.5)
    np.testing.assert_allclose(found, np.where(known > 0, compensated, plain), rtol=1e-10)


def test_sghmc_compensation_is_clipped_at_zero(hessian):
    """Noise beyond what can be taken back: nothing is injected, the gradient's own noise stays."""
    h, s = 0.3, 20.0
    sampler = pvi.sghmc(NoisyGradient(quadratic(hessian), s), gradient_noise=s**2)
    found = covariance(sampler, h, ("momentum",))
    close(found, of_hessian(hessian, lambda lam: baoa_variance(h, lam, 1.0, 0.0, s)))


@pytest.mark.parametrize("T", [0.0, 0.25, 4.0])
def test_sghmc_first_momenta_are_at_the_temperature(T):
    target, start = quadratic(TARGETS["five"]), torch.zeros(1000, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    momentum = pvi.sghmc(target, temperature=T).init(start, generator).memory.momentum
    z = (momentum.square().sum() - T * momentum.numel()) / math.sqrt(2 * momentum.numel())
    assert abs(z) <= 5 * T


def sgd_variance(h, lam, m, s):
    return h * s**2 * (1 + m) / (lam * (1 - m) * (2 * (1 + m) - h * lam))


@pytest.mark.parametrize("h", [0.01, 0.1])
@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("s", [0.3, 1.5])
def test_sgd(hessian, h, m, s):
    sampler = pvi.sgd(NoisyGradient(quadratic(hessian), s), momentum=m)
    found = covariance(sampler, h, ("velocity",))
    close(found, of_hessian(hessian, lambda lam: sgd_variance(h, lam, m, s)))


def frozen_psgld(hessian, second_moment, h, s, T):
    size = len(hessian)
    v = torch.as_tensor(second_moment, dtype=torch.float64).view(1, size)
    sampler = pvi.psgld(
        NoisyGradient(quadratic(hessian), s), temperature=T, regularisation=0.1, freeze=True
    )
    memory = PreconditionerMemory(v, torch.tensor(0.99, dtype=torch.float64))
    step = affine_step(sampler, h, memory=memory, warmed_up=True)
    return stationary(step).covariance, 1 / (0.1 + np.sqrt(np.asarray(second_moment)))


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
def test_psgld_frozen_is_sgld_with_a_step_per_coordinate(s, T):
    curvature, h = np.array([0.5, 2.0, 4.0]), 0.05
    found, g = frozen_psgld(np.diag(curvature), [0.04, 1.0, 0.3], h, s, T)
    expected = (2 * T + h * g * s**2) / (curvature * (2 - h * g * curvature))
    close(found, np.diag(expected))


@pytest.mark.parametrize("T", TEMPERATURES)
def test_psgld_frozen_correlated(T):
    hessian, h = TARGETS["five"], 0.03
    found, g = frozen_psgld(hessian, [0.04, 1.0, 0.3, 2.0, 0.0], h, 0.0, T)
    root = np.diag(np.sqrt(g))
    turned = root @ hessian @ root
    inner = of_hessian(turned, lambda lam: 2 * T / (lam * (2 - h * lam)))
    close(found, root @ inner @ root)


def make(name, target, T):
    """Each tempered sampler with its varying memory, for tests that hold for all of them."""
    return {
        "sgld": lambda: (pvi.sgld(target, temperature=T), ()),
        "sghmc": lambda: (pvi.sghmc(target, temperature=T), ("momentum",)),
    }[name]()


NAMES = ["sgld", "sghmc"]


@pytest.mark.parametrize("name", NAMES)
def test_mean_is_exact(name, hessian):
    center = np.linspace(-1.0, 3.0, len(hessian))
    sampler, varying = make(name, NoisyGradient(quadratic(hessian, center), 0.7), 1.0)
    mean = stationary(affine_step(sampler, 0.1, varying)).mean
    np.testing.assert_allclose(mean[: len(hessian)], center, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_variance_is_linear_in_temperature(name, hessian):
    unit = covariance(*_split(make(name, quadratic(hessian), 1.0)))
    for T in [0.01, 0.1, 0.5, 2.0, 4.0]:
        close(covariance(*_split(make(name, quadratic(hessian), T))), T * unit)


def _split(made):
    sampler, varying = made
    return sampler, 0.1, varying


BIAS_ORDERS = {("sgld", 0.0): 1, ("sgld", 1.5): 1, ("sghmc", 1.5): 1}


@pytest.mark.parametrize("name, s", list(BIAS_ORDERS))
def test_order_of_the_bias(name, s):
    hessian = TARGETS["five"]
    exact = np.linalg.inv(hessian)
    errors = []
    for h in [0.02, 0.01, 0.005]:
        sampler, varying = make(name, NoisyGradient(quadratic(hessian), s), 1.0)
        errors.append(np.abs(covariance(sampler, h, varying) - exact).max())
    assert order(errors) == pytest.approx([BIAS_ORDERS[name, s]] * 2, abs=0.06)


STABILITY = [("sgld", 2.0, 1), ("sghmc", 4.0, 2)]


@pytest.mark.parametrize("name, bound, power", STABILITY)
def test_stability_bound_is_sharp(name, bound, power):
    lam = 3.0
    limit = (bound / lam) ** (1 / power)
    sampler, varying = make(name, quadratic([[lam]]), 1.0)
    assert spectral_radius(affine_step(sampler, 0.999 * limit, varying)) < 1
    assert spectral_radius(affine_step(sampler, 1.001 * limit, varying)) > 1


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_sgd_stability_bound_is_sharp(m):
    limit = 2 * (1 + m) / 3.0
    sampler = pvi.sgd(quadratic([[3.0]]), momentum=m)
    assert spectral_radius(affine_step(sampler, 0.999 * limit, ("velocity",))) < 1
    assert spectral_radius(affine_step(sampler, 1.001 * limit, ("velocity",))) > 1
