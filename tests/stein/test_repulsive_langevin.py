"""Stochastic SVGD."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from tests.stein.common import gaussian, points


def test_one_particle_is_sgld():
    target = gaussian([1.0, -2.0], [[2.0, 0.3], [0.3, 1.0]])
    start = points(1, 2)
    noise = points(1, 2, seed=1)
    ends = []
    for sampler in (pvi.repulsive_langevin(target, jitter=0.0), pvi.sgld(target)):
        controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.3)}
        state = sampler.init(start, torch.Generator().manual_seed(0))
        _, masks = sampler.draw_noise(state, torch.Generator().manual_seed(0))
        ends.append(sampler.step(state, None, (noise, masks), controls)[0].position)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-12, rtol=1e-12)


def test_the_noise_has_the_covariance_of_the_kernel():
    """The step is affine in the noise: its Jacobian J has J J' = 2 h T (K + jitter) / P."""
    target = gaussian([0.0, 0.0], torch.eye(2))
    sampler = pvi.repulsive_langevin(target, pvi.rbf(1.3), jitter=1e-3)
    x = points(5, 2)
    state = sampler.init(x, torch.Generator().manual_seed(0))
    _, masks = sampler.draw_noise(state, torch.Generator().manual_seed(0))
    h, temperature = torch.tensor(0.1), torch.tensor(0.7)
    controls = {"step_size": h, "temperature": temperature}

    def move(noise):
        return sampler.step(state, None, (noise.view(5, 2), masks), controls)[0].position.flatten()

    zero = torch.zeros(10, dtype=x.dtype)
    jacobian = torch.stack([move(e) - move(zero) for e in torch.eye(10, dtype=x.dtype)], dim=1)
    matrix = pvi.rbf(1.3)(x, x) + 1e-3 * torch.eye(5)
    expected = 2 * 0.1 * 0.7 / 5 * torch.kron(matrix, torch.eye(2, dtype=x.dtype))
    torch.testing.assert_close(jacobian @ jacobian.T, expected, atol=1e-8, rtol=1e-6)


def test_the_product_of_targets_is_stationary():
    """The generator applied to a test function has mean 0 under independent exact draws.

    E[drift . grad f + (h T / P) sum_ij K_ij div_i grad_j f] = 0 with f = sum_i |x_i|^2 over
    20 000 exact draws of 4 particles: a z-test that sees a factor in any of the three terms.
    """
    torch.manual_seed(0)
    num, dim, b, temperature = 4, 2, 2.0, 0.7
    x = torch.randn(20_000, num, dim, dtype=torch.float64) * temperature**0.5
    kernel = pvi.rbf(b)

    def drift(points):
        attraction, repulsion = kernel.direction(points, -points)
        return attraction + temperature * repulsion

    moved = torch.stack([drift(draw) for draw in x])
    values = (2 * x * moved).sum((1, 2)) + 2 * temperature / num * num * dim
    z = values.mean() / (values.std() / len(values) ** 0.5)
    assert abs(z) < 5
    wrong = values - temperature * dim
    assert abs(wrong.mean() / (wrong.std() / len(values) ** 0.5)) > 20


@pytest.mark.slow
def test_the_variance_does_not_collapse():
    """Pooled E z^2 of 6 particles on N(0, I_2), exp(-r^2/2), the paper's step 0.01 on the sum."""
    sampler = pvi.repulsive_langevin(gaussian([0.0, 0.0], torch.eye(2)), pvi.rbf(2.0))
    draws = pvi.sample(
        sampler,
        step_size=0.06,
        num_particles=6,
        num_warmup=2000,
        num_draws=60_000,
        progress=False,
    )
    assert float(draws.particles.square().mean()) == pytest.approx(1.0, rel=0.03)


def test_the_bandwidth_stays_where_it_was():
    sampler = pvi.repulsive_langevin(gaussian([0.0, 0.0], torch.eye(2)))
    state = sampler.init(points(6, 2), torch.Generator().manual_seed(0))
    controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.0)}
    after, _ = sampler.step(
        state, None, sampler.draw_noise(state, torch.Generator().manual_seed(0)), controls
    )
    assert torch.equal(after.memory.bandwidth, state.memory.bandwidth)
    assert torch.equal(state.memory.bandwidth, pvi.rbf().width(points(6, 2)))


def test_a_kernel_without_bandwidth_is_refused():
    with pytest.raises(TypeError, match="with a bandwidth"):
        pvi.repulsive_langevin(gaussian([0.0], [[1.0]]), pvi.linear())
