"""Stationary laws on Gaussians: each sampler's own step against its closed form, to 1e-10."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi.potentials.layout import Layout
from particlevi.samplers.psghmc import Memory as MassMemory
from particlevi.samplers.psgld import Memory as PreconditionerMemory
from particlevi.streams import ParticleStreams
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


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("h", [0.01, 0.1])
def test_sgld_compensated(hessian, h, T):
    target = NoisyGradient(quadratic(hessian), 1.5)
    found = covariance(pvi.sgld(target, temperature=T, gradient_noise=2.25), h)
    close(found, of_hessian(hessian, lambda lam: 2 * T / (lam * (2 - h * lam))))


def test_sgld_compensation_is_clipped_at_zero(hessian):
    h, s = 0.1, 10.0
    target = NoisyGradient(quadratic(hessian), s)
    found = covariance(pvi.sgld(target, gradient_noise=s**2), h)
    close(found, of_hessian(hessian, lambda lam: h * s**2 / (lam * (2 - h * lam))))


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
@pytest.mark.parametrize("h", [0.01, 0.1, 0.18])
def test_leimkuhler_matthews(hessian, h, s, T):
    target = NoisyGradient(quadratic(hessian), s)
    found = covariance(pvi.leimkuhler_matthews(target, temperature=T), h, ("noise",))
    close(found, of_hessian(hessian, lambda lam: T / lam + h * s**2 / (lam * (2 - h * lam))))


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


def euler_variance(integrator, h, lam, friction, q):
    a, e = friction * h, h**2
    if integrator == "symplectic":
        return q * (2 - a) / (a * e * lam * (4 - 2 * a - e * lam))
    return q * (2 - a + e * lam) / (e * lam * (a - e * lam) * (4 - 2 * a + e * lam))


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s, known", [(0.0, 0.0), (1.5, 0.0), (1.5, 1.5)])
@pytest.mark.parametrize("integrator", ["symplectic", "explicit"])
@pytest.mark.parametrize("h, friction", [(0.03, 2.0), (0.1, 3.0)])
def test_sghmc_euler_forms(hessian, h, friction, integrator, s, known, T):
    target = NoisyGradient(quadratic(hessian), s)
    sampler = pvi.sghmc(target, friction, T, gradient_noise=known**2, integrator=integrator)
    law = stationary(affine_step(sampler, h, ("momentum",)))
    q = 2 * friction * h**3 * T + h**4 * (s**2 - known**2)
    size = len(hessian)
    expected = of_hessian(hessian, lambda lam: euler_variance(integrator, h, lam, friction, q))
    close(law.covariance[:size, :size], expected)
    if integrator == "symplectic":
        a, e = friction * h, h**2
        momentum = of_hessian(hessian, lambda lam: 2 * q / (a * e * (4 - 2 * a - e * lam)))
        close(law.covariance[size:, size:], momentum)


@pytest.mark.parametrize(
    "integrator, s, expected",
    [
        ("symplectic", 0.0, 0.505319),
        ("symplectic", 1.5, 0.619016),
        ("explicit", 0.0, 0.842014),
        ("explicit", 1.5, 1.031467),
    ],
)
def test_sghmc_euler_numbers(integrator, s, expected):
    h = math.sqrt(0.02)
    target = NoisyGradient(quadratic([[2.0]]), s)
    sampler = pvi.sghmc(target, friction=0.1 / h, integrator=integrator)
    law = stationary(affine_step(sampler, h, ("momentum",)))
    assert law.covariance[0, 0] == pytest.approx(expected, abs=5e-7)
    if integrator == "symplectic" and s == 0:
        assert h**2 * law.covariance[1, 1] == pytest.approx(0.0212766, abs=5e-8)


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_symplectic_momenta_of_the_deep_learning_form(beta, T):
    """``m' = beta m - h grad U + sqrt(2 (1 - beta) T) R``.

    As h falls at a fixed beta, positions are right and momenta at ``2 T / (1 + beta)``.
    """
    h = 1e-4
    sampler = pvi.sghmc(quadratic([[2.0]]), (1 - beta) / h, T, integrator="symplectic")
    law = stationary(affine_step(sampler, h, ("momentum",)))
    assert law.covariance[0, 0] == pytest.approx(T / 2, rel=1e-6)
    assert law.covariance[1, 1] == pytest.approx(2 * T / (1 + beta), rel=1e-6)


FIGURE_3A = [  # diagonal and off-diagonal covariance under SGLD, then under SGHMC
    (1.4972, 0.4972, 0.4500, 1.0138, 0.8991, 0.00735),
    (1.1660, 0.8088, 0.1286, 1.0047, 0.8999, 0.00239),
    (1.0976, 0.8618, 0.0679, 1.0016, 0.9000, 0.00083),
    (1.0663, 0.8809, 0.0427, 1.0006, 0.9000, 0.00029),
    (1.0480, 0.8896, 0.0292, 1.0002, 0.9000, 0.00011),
]


@pytest.mark.parametrize("row", range(5))
def test_figure_3a_of_the_sghmc_paper(row):
    """Chen, Fox and Guestrin, 2014: gradient noise N(0, I), compensated, five settings each."""
    exact = np.array([[1.0, 0.9], [0.9, 1.0]])
    target = NoisyGradient(quadratic(np.linalg.inv(exact)), 1.0)
    first = covariance(pvi.sgld(target, gradient_noise=1.0), 0.18 * 0.8**row)
    h = math.sqrt(0.05 * 0.36**row)
    friction = 0.05 * 0.6**row / h
    sampler = pvi.sghmc(target, friction, gradient_noise=1.0, integrator="symplectic")
    second = covariance(sampler, h, ("momentum",))
    expected = FIGURE_3A[row]
    found = []
    for law in (first, second):
        found += [law[0, 0], law[0, 1], np.abs(law - exact).mean()]
    np.testing.assert_allclose(found[:5], expected[:5], atol=5.1e-5)
    assert found[5] == pytest.approx(expected[5], abs=5.1e-6)


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
@pytest.mark.parametrize("h, friction", [(0.05, 1.0), (0.3, 1.0), (0.4, 5.0)])
def test_baoab(hessian, h, friction, s, T):
    sampler = pvi.baoab(NoisyGradient(quadratic(hessian), s), friction, temperature=T)
    law, size = stationary(affine_step(sampler, h, ("momentum", "gradient"))), len(hessian)
    expected = of_hessian(hessian, lambda lam: baoa_variance(h, lam, friction, T, s))
    close(law.covariance[:size, :size], expected)
    if s == 0:
        momenta = law.covariance[size : 2 * size, size : 2 * size]
        close(momenta, of_hessian(hessian, lambda lam: T * (1 - h**2 * lam / 4)))
        np.testing.assert_allclose(law.covariance[:size, size : 2 * size], 0, atol=1e-10)


def test_baoab_numbers():
    sampler = pvi.baoab(quadratic([[2.0]]))
    law = stationary(affine_step(sampler, 0.3, ("momentum", "gradient")))
    assert np.diag(law.covariance)[:2] == pytest.approx([0.5, 0.955], rel=1e-10)


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("s", NOISES)
@pytest.mark.parametrize("h, friction", [(0.05, 1.0), (0.3, 1.0), (0.4, 5.0)])
def test_obabo(hessian, h, friction, s, T):
    sampler = pvi.obabo(NoisyGradient(quadratic(hessian), s), friction, temperature=T)
    law, size = stationary(affine_step(sampler, h, ("momentum", "gradient"))), len(hessian)
    c2 = math.exp(-friction * h)

    def variance(lam):
        noise = h**2 * s**2 * (1 + c2) / (lam * (1 - c2) * (4 - h**2 * lam))
        return T / lam / (1 - h**2 * lam / 4) + noise

    close(law.covariance[:size, :size], of_hessian(hessian, variance))
    momentum = T + h**2 * s**2 * c2 / (2 * (1 - c2))
    close(law.covariance[size : 2 * size, size : 2 * size], momentum * np.eye(size))


def test_obabo_numbers():
    found = covariance(pvi.obabo(quadratic([[2.0]])), 0.3, ("momentum", "gradient"))
    assert found.item() == pytest.approx(0.523560, abs=5e-7)


@pytest.mark.parametrize("T", TEMPERATURES)
@pytest.mark.parametrize("h", [0.1, 0.5])
def test_psghmc_is_exact_whatever_the_masses(h, T):
    """Two tensors with masses 1 and 9, and a Hessian that couples them."""
    hessian = TARGETS["five"]
    target = replace(quadratic(hessian), layout=Layout({"a": (2,), "b": (3,)}))
    sampler = pvi.psghmc(target, friction=2.0, temperature=T)
    mass = torch.tensor([[1.0, 9.0]], dtype=torch.float64)
    blank = torch.zeros(1, 5, dtype=torch.float64)
    memory = MassMemory(blank, mass, mass, torch.tensor(0.99, dtype=torch.float64))
    step = affine_step(sampler, h, ("momentum",), memory)
    law = stationary(step).covariance
    close(law[:5, :5], T * np.linalg.inv(hessian))
    close(law[5:, 5:], T * np.eye(5))
    root = np.diag([1, 1, 1 / 3, 1 / 3, 1 / 3])
    limit = 2 / math.sqrt(np.linalg.eigvalsh(root @ hessian @ root).max())
    for factor, stable in [(0.999, True), (1.001, False)]:
        radius = spectral_radius(affine_step(sampler, factor * limit, ("momentum",), memory))
        assert (radius < 1) == stable


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
    streams = ParticleStreams(0)
    momentum = pvi.sghmc(target, temperature=T).init(start, streams).memory.momentum
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


CACHED = ("momentum", "gradient")
TEMPERED = {
    "sgld": (pvi.sgld, {}, ()),
    "leimkuhler_matthews": (pvi.leimkuhler_matthews, {}, ("noise",)),
    "sghmc": (pvi.sghmc, {}, ("momentum",)),
    "symplectic": (pvi.sghmc, {"integrator": "symplectic"}, ("momentum",)),
    "explicit": (pvi.sghmc, {"integrator": "explicit", "friction": 2.0}, ("momentum",)),
    "baoab": (pvi.baoab, {}, CACHED),
    "obabo": (pvi.obabo, {}, CACHED),
    "psghmc": (pvi.psghmc, {}, ("momentum",)),
}
NAMES = list(TEMPERED)


def make(name, target, T):
    """Each tempered sampler with its varying memory, for tests that hold for all of them."""
    factory, options, varying = TEMPERED[name]
    return factory(target, temperature=T, **options), varying


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


BIAS_ORDERS = {
    ("sgld", 0.0): 1,
    ("sgld", 1.5): 1,
    ("leimkuhler_matthews", 1.5): 1,
    ("sghmc", 1.5): 1,
    ("symplectic", 0.0): 2,
    ("explicit", 0.0): 1,
    ("baoab", 1.5): 1,
    ("obabo", 0.0): 2,
    ("obabo", 1.5): 1,
}


@pytest.mark.parametrize("name, s", list(BIAS_ORDERS))
def test_order_of_the_bias(name, s):
    hessian = TARGETS["five"]
    exact = np.linalg.inv(hessian)
    errors = []
    for h in [0.004, 0.002, 0.001]:
        sampler, varying = make(name, NoisyGradient(quadratic(hessian), s), 1.0)
        errors.append(np.abs(covariance(sampler, h, varying) - exact).max())
    assert order(errors) == pytest.approx([BIAS_ORDERS[name, s]] * 2, abs=0.05)


STABILITY = {
    "sgld": (2.0, 1),
    "leimkuhler_matthews": (2.0, 1),
    "sghmc": (4.0, 2),
    "baoab": (4.0, 2),
    "obabo": (4.0, 2),
    "psghmc": (4.0, 2),
}


@pytest.mark.parametrize("name", list(STABILITY))
def test_stability_bound_is_sharp(name):
    lam = 3.0
    bound, power = STABILITY[name]
    limit = (bound / lam) ** (1 / power)
    sampler, varying = make(name, quadratic([[lam]]), 1.0)
    assert name == "psghmc" or sampler.max_step_size(lam) == pytest.approx(limit, rel=1e-12)
    assert spectral_radius(affine_step(sampler, 0.999 * limit, varying)) < 1
    assert spectral_radius(affine_step(sampler, 1.001 * limit, varying)) > 1


@pytest.mark.parametrize(
    "integrator, friction, limit",
    [
        ("symplectic", 1.0, (math.sqrt(13.0) - 1) / 3),
        ("symplectic", 4.0, (math.sqrt(28.0) - 4) / 3),
        ("explicit", 1.0, 1 / 3),
        ("explicit", 4.0, (4 - math.sqrt(4.0)) / 3),
    ],
)
def test_stability_of_the_euler_forms(integrator, friction, limit):
    """Symplectic: h^2 l + 2 f h < 4. Explicit: h l < f and 2 f h < 4 + h^2 l. Here l = 3."""
    sampler = pvi.sghmc(quadratic([[3.0]]), friction, integrator=integrator)
    assert sampler.max_step_size(3.0) == pytest.approx(limit, rel=1e-12)
    assert spectral_radius(affine_step(sampler, 0.999 * limit, ("momentum",))) < 1
    assert spectral_radius(affine_step(sampler, 1.001 * limit, ("momentum",))) > 1


@pytest.mark.parametrize("m", [0.0, 0.5, 0.9])
def test_sgd_stability_bound_is_sharp(m):
    limit = 2 * (1 + m) / 3.0
    sampler = pvi.sgd(quadratic([[3.0]]), momentum=m)
    assert sampler.max_step_size(3.0) == pytest.approx(limit, rel=1e-12)
    assert spectral_radius(affine_step(sampler, 0.999 * limit, ("velocity",))) < 1
    assert spectral_radius(affine_step(sampler, 1.001 * limit, ("velocity",))) > 1
