"""Stochastic SVGD."""

from __future__ import annotations

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from tests.kernels.common import gaussian, points


def test_one_particle_is_sgld():
    target = gaussian([1.0, -2.0], [[2.0, 0.3], [0.3, 1.0]])
    start = points(1, 2)
    noise = points(1, 2, seed=1)
    ends = []
    for sampler in (pvi.repulsive_langevin(target, jitter=0.0), pvi.sgld(target)):
        controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.3)}
        state = sampler.init(start, ParticleStreams(0))
        _, masks = sampler.draw_noise(state, ParticleStreams(0))
        ends.append(sampler.step(state, None, (noise, masks), controls)[0].position)
    torch.testing.assert_close(ends[0], ends[1], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(
    ("num", "dim", "dtype", "tolerance"),
    [(5, 2, torch.float64, 1e-6), (200, 1, torch.float32, 1e-4)],
    ids=["few", "singular in float32"],
)
def test_the_noise_has_the_covariance_of_the_kernel(num, dim, dtype, tolerance):
    """The step is affine in the noise: its Jacobian J has J J' = 2 h T (K + jitter) / P."""
    target = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), dim, dtype=dtype)
    sampler = pvi.repulsive_langevin(target, pvi.kernels.rbf(1.3), jitter=1e-6)
    x = points(num, dim).to(dtype)
    state = sampler.init(x, ParticleStreams(0))
    noise, masks = sampler.draw_noise(state, ParticleStreams(0))
    controls = {
        "step_size": torch.tensor(0.1, dtype=dtype),
        "temperature": torch.tensor(0.7, dtype=dtype),
    }

    def move(noise):
        return sampler.step(state, None, (noise.view_as(x), masks), controls)[0].position.flatten()

    still = move(torch.zeros_like(noise))
    jacobian = torch.stack([move(e) - still for e in torch.eye(num * dim, dtype=dtype)], dim=1)
    matrix = pvi.kernels.rbf(1.3)(x.double(), x.double()) + 1e-6 * torch.eye(num)
    expected = 2 * 0.1 * 0.7 / num * torch.kron(matrix, torch.eye(dim, dtype=torch.float64))
    found = (jacobian @ jacobian.T).double()
    torch.testing.assert_close(found, expected, atol=tolerance * expected.max(), rtol=0)


def test_the_jitter_drifts_as_much_as_it_diffuses():
    """The metric (K + jitter) / P times the scores, so that the law is exact for any jitter."""
    target, x = gaussian([1.0, -2.0], [[2.0, 0.3], [0.3, 1.0]]), points(5, 2)
    controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(0.0)}
    ends = []
    for jitter in (0.0, 0.4):
        sampler = pvi.repulsive_langevin(target, pvi.kernels.rbf(1.3), jitter=jitter)
        state = sampler.init(x, ParticleStreams(0))
        noise = sampler.draw_noise(state, ParticleStreams(0))
        ends.append(sampler.step(state, None, noise, controls)[0].position)
    away = x - torch.tensor([1.0, -2.0], dtype=x.dtype)
    scores = -away @ torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=x.dtype)
    torch.testing.assert_close(ends[1] - ends[0], 0.1 * 0.4 / 5 * scores, atol=1e-9, rtol=1e-6)


def test_a_kernel_matrix_without_a_factor_is_no_noise_of_another_law():
    """Two particles in one place and no jitter: the run says so."""
    sampler = pvi.repulsive_langevin(gaussian([0.0], [[1.0]]), pvi.kernels.rbf(2.0), jitter=0.0)
    start = torch.zeros(3, 1, dtype=torch.float64)
    with pytest.raises(pvi.DivergenceError):
        pvi.sample(sampler, step_size=0.1, initial=start, num_draws=1, progress=False)


def test_the_product_of_targets_is_stationary():
    """The generator applied to a test function has mean 0 under independent exact draws.

    E[drift . grad f + (h T / P) sum_ij K_ij div_i grad_j f] = 0 with f = sum_i |x_i|^2 over
    20 000 exact draws of 4 particles: a z-test that sees a factor in any of the three terms.
    """
    torch.manual_seed(0)
    num, dim, b, temperature = 4, 2, 2.0, 0.7
    x = torch.randn(20_000, num, dim, dtype=torch.float64) * temperature**0.5
    kernel = pvi.kernels.rbf(b)

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
    sampler = pvi.repulsive_langevin(gaussian([0.0, 0.0], torch.eye(2)), pvi.kernels.rbf(2.0))
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
    state = sampler.init(points(6, 2), ParticleStreams(0))
    controls = {"step_size": torch.tensor(0.1), "temperature": torch.tensor(1.0)}
    after, _ = sampler.step(state, None, sampler.draw_noise(state, ParticleStreams(0)), controls)
    assert torch.equal(after.memory.bandwidth, state.memory.bandwidth)
    assert torch.equal(state.memory.bandwidth, pvi.kernels.rbf().width(points(6, 2)))


def test_a_kernel_without_bandwidth_is_refused():
    with pytest.raises(TypeError, match="have a bandwidth"):
        pvi.repulsive_langevin(gaussian([0.0], [[1.0]]), pvi.kernels.linear())


def test_the_lengths_of_attraction_and_repulsion_are_told_of_every_particle():
    kernel, streams, x = pvi.kernels.rbf(1.3), ParticleStreams(0), points(5, 3)
    sampler = pvi.repulsive_langevin(gaussian(torch.zeros(3), torch.eye(3)), kernel, jitter=0.0)
    state = sampler.init(x.clone(), streams)
    controls = {"step_size": x.new_tensor(0.1), "temperature": x.new_tensor(1.0)}
    _, info = sampler.step(state, None, sampler.draw_noise(state, streams), controls)
    for told, part in zip(info[1:], kernel.direction(x, -x), strict=True):
        torch.testing.assert_close(told, part.square().sum(1).sqrt())
