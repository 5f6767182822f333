"""The stationary law of diagonal nets: quantiles, closed form, mode, collapse, and SGD itself."""

import numpy as np
import pytest

from particlevi.noise import DiagonalNet

LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.mark.parametrize(
    ("depth", "paths", "temperature", "expected"),
    [
        (1, 1, 0.05, [0.449, 0.717, 0.911, 1.118, 1.502]),
        (1, 1, 0.15, [0.032, 0.323, 0.672, 1.014, 1.609]),
        (2, 1, 0.05, [0.349, 0.615, 0.829, 1.065, 1.511]),
        (3, 1, 0.10, [0.106, 0.285, 0.532, 0.852, 1.403]),
        (2, 3, 0.05, [0.459, 0.698, 0.882, 1.087, 1.472]),
        (0, 1, 0.01, [0.834, 0.933, 1.000, 1.067, 1.166]),
    ],
)
def test_quantiles(depth, paths, temperature, expected):
    net = DiagonalNet.of_gaussian_data(1.0, 1.0, depth, paths)
    assert net.quantiles(LEVELS, temperature) == pytest.approx(expected, rel=0.025)


def test_closed_form_of_depth_one_is_the_integral():
    net, v = DiagonalNet.of_gaussian_data(1.0, 1.0), np.exp(np.linspace(-3, 2, 20_001))
    difference = net.log_density(v, 0.1) - net._integrated(v, 0.1)
    assert np.ptp(difference) < 1e-6


@pytest.mark.parametrize(
    ("temperature", "expected"), [(0.02, 0.94761), (0.05, 0.88641), (0.08, 0.83509)]
)
def test_mode(temperature, expected):
    net = DiagonalNet.of_gaussian_data(1.0, 1.0)
    assert net.mode(temperature) == pytest.approx(expected, abs=1e-5)
    v = np.linspace(0.5, 1.2, 70_001)
    assert v[net.log_density(v, temperature).argmax()] == pytest.approx(expected, abs=2e-5)


def test_mass_gathers_at_zero_towards_the_critical_temperature():
    net = DiagonalNet.of_gaussian_data(1.0, 1.0)
    assert net.critical_temperature == pytest.approx(1 / 3)
    medians = [net.quantiles(LEVELS, t)[2] for t in (0.05, 0.15, 0.25, 0.3)]
    assert medians == sorted(medians, reverse=True)
    assert medians[-1] < 1e-2
    with pytest.raises(ValueError, match="has collapsed"):
        net.quantiles(LEVELS, 0.34)
    with pytest.raises(ValueError, match="has collapsed"):
        net.mode(0.34)


def test_sgd_collapses_above_its_critical_rate():
    """``y = 0.1 x + e``: ``T_c = 0.098``; one datum a step, balanced weights."""
    rng = np.random.default_rng(0)
    net = DiagonalNet.of_gaussian_data(0.1, 1.0)
    assert net.critical_temperature == pytest.approx(0.1 / 1.02)
    medians = []
    for rate in (0.03, 0.2):
        u = np.full(400, 0.3)
        for _ in range(4000):
            x = rng.standard_normal(400)
            residual = u * u * x - (0.1 * x + rng.standard_normal(400))
            u = np.clip(u - 2 * rate * residual * x * u, -3, 3)
        medians.append(np.median(u * u))
    assert medians[0] > 1e-3
    assert medians[1] < 1e-10


def test_linear_regression_by_sgd():
    """Depth 0 at a rate of 0.01: quantiles of 2000 chains, within three standard errors."""
    rng = np.random.default_rng(1)
    net, v = DiagonalNet.of_gaussian_data(1.0, 1.0, depth=0), np.ones(4000)
    for _ in range(600):
        x = rng.standard_normal(4000)
        v = v - 2 * 0.01 * (v * x - (x + rng.standard_normal(4000))) * x
    expected = net.quantiles(LEVELS, 0.01)
    for level, value in zip(LEVELS, expected, strict=True):
        share = (v < value).mean()
        assert abs(share - level) < 3 * (level * (1 - level) / 4000) ** 0.5 + 0.005


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiagonalNet(2.0, 2.0, 2.0, 1.0, 1.0), "fitted exactly"),
        (lambda: DiagonalNet(2.0, 1.0, 2.0, -1.0, 1.0), "b1 must be"),
        (lambda: DiagonalNet.of_gaussian_data(1.0, 1.0, depth=-1), "at least 0"),
        (lambda: DiagonalNet.of_gaussian_data(1.0, 1.0, depth=2).mode(0.1), "depth 1"),
        (lambda: DiagonalNet.of_gaussian_data(0.1, 1.0).mode(0.09), "falls from v = 0 on"),
        (
            lambda: DiagonalNet.of_gaussian_data(1.0, 1.0).log_density(np.array([-1.0]), 0.1),
            "above 0",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
