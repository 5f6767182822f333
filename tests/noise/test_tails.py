"""The tail index: calibration, what fakes tails, and the error bars."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import particlevi as pvi


def stable(alpha, size, rng):
    """Symmetric alpha-stable numbers (Chambers, Mallows and Stuck, 1976)."""
    u, w = rng.uniform(-math.pi / 2, math.pi / 2, size), rng.exponential(size=size)
    if alpha == 1:
        return np.tan(u)
    tail = (np.cos((1 - alpha) * u) / w) ** ((1 - alpha) / alpha)
    return np.sin(alpha * u) / np.cos(u) ** (1 / alpha) * tail


@pytest.mark.parametrize("alpha", [2.0, 1.8, 1.5, 1.2, 1.0])
@pytest.mark.parametrize("block_size", [1000, 10])
def test_calibration(alpha, block_size):
    """Within three standard errors of the truth; the error bar comes from the blocks."""
    x = stable(alpha, 10**6, np.random.default_rng(int(10 * alpha)))
    found = pvi.noise.tail_index(x, block_size=block_size, confidence=0.997, num_null=0)
    assert found.interval[0] < alpha < found.interval[1]
    assert found.alpha == pytest.approx(alpha, abs=0.07 if block_size == 1000 else 0.02)


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_scales_alone_fake_tails_when_coordinates_are_pooled(spread):
    """Gaussian coordinates: ``1/(1/2 + s^2/log m)`` pooled, 2 per coordinate."""
    rng = np.random.default_rng(3)
    scales = np.exp(spread * stats.norm.ppf((np.arange(1000) + 0.5) / 1000))
    x = rng.standard_normal((1000, 1000)) * rng.permutation(scales)
    found = pvi.noise.tail_index(x, num_null=0)
    assert found.pooled == pytest.approx(1 / (0.5 + spread**2 / math.log(1000)), rel=0.02)
    assert found.alpha == pytest.approx(2, abs=0.03)


@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_lognormal_scales_within_a_percent(spread):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 20_000)) * np.exp(spread * rng.standard_normal((200, 20_000)))
    from particlevi.noise.tails import _inverse

    found = 1 / _inverse(x.reshape(-1, 1), 1000)[0].mean()
    assert found == pytest.approx(1 / (0.5 + spread**2 / math.log(1000)), rel=0.01)


def test_no_coordinate_fakes_a_tail_by_its_scale():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((400, 300)) * np.exp(rng.standard_normal(300))
    found = pvi.noise.tail_index(x, num_null=19)
    assert found.alpha == pytest.approx(2, abs=0.06)
    assert found.pooled < 1.7
    low, high = found.pooled_null.min(), found.pooled_null.max()
    assert low - 0.05 < found.pooled < high + 0.05
    assert found.standardised > 1.9


def test_alpha_does_not_depend_on_scales():
    rng = np.random.default_rng(6)
    x = rng.standard_t(2, (200, 50))
    scaled = x * np.exp(3 * rng.standard_normal(50))
    first, second = (pvi.noise.tail_index(v, num_null=0).alpha for v in (x, scaled))
    assert first == pytest.approx(second, rel=1e-12)


def test_an_offset_is_taken_off():
    x = np.random.default_rng(7).standard_normal(10**5) + 0.1
    raw, centred = (
        pvi.noise.tail_index(x, block_size=1000, center=c, num_null=0).alpha for c in (False, True)
    )
    assert raw == pytest.approx(1.34, abs=0.05)
    assert centred == pytest.approx(2, abs=0.25)


def test_student_t_differs_from_gaussian_noise():
    x = np.random.default_rng(8).standard_t(3, (500, 30))
    found = pvi.noise.tail_index(x, num_null=39)
    assert found.p_value == pytest.approx(1 / 40)
    assert found.interval[1] < 2
    assert found.hill < found.hill_null.min()


def correlated(rng, size=200):
    root = np.linalg.cholesky(0.3 + 0.7 * np.eye(10))
    return rng.standard_normal((size, 10)) @ root.T


def test_p_values_of_gaussian_noise_are_uniform():
    rng = np.random.default_rng(9)
    p = [pvi.noise.tail_index(correlated(rng), num_null=39, seed=i).p_value for i in range(150)]
    assert stats.kstest(p, "uniform").pvalue > 0.001


@pytest.mark.slow
def test_level_is_five_percent_within_two():
    rng = np.random.default_rng(10)
    p = [pvi.noise.tail_index(correlated(rng), num_null=39, seed=i).p_value for i in range(1000)]
    assert abs(np.mean(np.array(p) <= 0.05) - 0.05) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [1.5, 1.0])
def test_intervals_cover(alpha):
    rng = np.random.default_rng(11)
    hits = 0
    for seed in range(600):
        x = stable(alpha, (500, 5), rng)
        low, high = pvi.noise.tail_index(x, num_null=0, seed=seed).interval
        hits += low < alpha < high
    assert abs(hits / 600 - 0.95) < 0.03


def test_hill_is_the_maximum_likelihood_estimate_of_scipy():
    x = np.random.default_rng(12).pareto(1.5, 5000) + 1
    ordered = np.sort(x)
    threshold = ordered[-501]
    shape, _, _ = stats.pareto.fit(ordered[-500:], floc=0, fscale=threshold)
    assert pvi.noise.hill(x, 0.1) == pytest.approx(shape, rel=1e-9)


def test_a_prime_number_of_samples():
    x = stable(1.5, (997, 20), np.random.default_rng(13))
    found = pvi.noise.tail_index(x, num_null=0)
    assert found.block_size == 31
    assert found.alpha == pytest.approx(1.5, abs=0.1)


def test_dead_coordinates_are_left_out_and_counted():
    rng = np.random.default_rng(14)
    x = rng.standard_normal((400, 6))
    x[:, 0] = 0.0
    x[:, 1] *= rng.random(400) < 0.3
    found = pvi.noise.tail_index(x, num_null=0)
    assert found.num_dropped == 2
    assert found.per_coordinate.shape == (4,)


def test_of_a_net_what_pooling_says_is_said_of_gaussian_noise_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3))
    x = torch.randn(400, 6)
    y = torch.randint(3, (400,))
    noise = pvi.noise.measure(net, (x, y), nn.functional.cross_entropy, batch_size=100)
    found = noise.tail_index(400, num_null=19)
    assert found.alpha == pytest.approx(2, abs=0.1)
    low, high = found.pooled_null.min(), found.pooled_null.max()
    assert abs(found.pooled - 2) > 0.2
    assert low < found.pooled < high
    assert "pooled" in str(found)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.zeros((1, 3)), {}, "at least 50"),
        (np.zeros((60, 3)), {}, "constant in all 3"),
        (np.eye(60)[:, :3], {}, "same value in half"),
        (np.full((60, 3), np.inf), {}, "must be finite"),
        (np.arange(60.0), {"block_size": 40}, "at most 30"),
        (np.arange(60.0), {"block_size": 1}, "at least 2"),
        (np.arange(60.0), {"num_null": 5}, "at least 19"),
    ],
)
def test_bad_samples(samples, options, message):
    with pytest.raises(ValueError, match=message):
        pvi.noise.tail_index(samples, **options)


def test_hill_needs_a_tail():
    with pytest.raises(ValueError, match="at least 2"):
        pvi.noise.hill(np.arange(10.0), 0.1)
    with pytest.raises(ValueError, match="begins at zero"):
        pvi.noise.hill(np.zeros(100), 0.1)
