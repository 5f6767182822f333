"""The conjugate mean model: minibatch noise through the whole chain of potential and batches.

``x_i ~ N(theta, 1)``, prior ``N(0, t2)``: the curvature is ``N + 1/t2`` and the noise of the
minibatch gradient ``s^2 = (N^2/B) S^2`` with replacement, ``(N - B)/(N - 1)`` of it without, where
``S^2`` is the variance of the data.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch
from tests.stationarity.laws import controls_of

T2 = 10.0


def data_with_variance(size, variance):
    x = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return 0.3 + (x - x.mean()) / x.std(correction=0) * math.sqrt(variance)


def conjugate(size):
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(-1) / T2,
        lambda theta, x: -0.5 * (x - theta).square(),
        num_params=1,
        num_data=size,
        vectorized=True,
        dtype=torch.float64,
    )


def predicted(size, batch_size, variance, h, T, replacement):
    curvature = size + 1 / T2
    noise = size**2 / batch_size * variance
    if not replacement:
        noise *= (size - batch_size) / (size - 1)
    return (2 * T + h * noise) / (curvature * (2 - h * curvature))


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("T", [0.25, 1.0, 4.0])
def test_all_minibatches_enumerated(replacement, T):
    """Every possible batch of 2 out of 5 at once gives the step's exact mean and variance."""
    size, batch_size, h = 5, 2, 0.05
    x = data_with_variance(size, 0.7)
    if replacement:
        index = torch.tensor(list(itertools.product(range(size), repeat=batch_size)))
    else:
        index = torch.tensor(list(itertools.permutations(range(size), batch_size)))
    sampler = pvi.sgld(conjugate(size), temperature=T)
    streams = ParticleStreams(0)

    def after(start, noise):
        state = sampler.init(torch.full((len(index), 1), start, dtype=torch.float64), streams)
        xi = torch.full_like(state.position, noise)
        batch = Batch(x[index], per_particle=True)
        moved, _ = sampler.step(state, batch, (xi, ()), controls_of(sampler, h))
        return moved.position

    at_zero, at_one, noisy = after(0.0, 0.0), after(1.0, 0.0), after(0.0, 1.0)
    slope = float((at_one - at_zero).mean())
    variance = float(at_zero.var(correction=0)) + float((noisy - at_zero).mean()) ** 2
    found = variance / (1 - slope**2)
    assert found == pytest.approx(predicted(size, batch_size, 0.7, h, T, replacement), rel=1e-10)
    center = float(at_zero.mean()) / (1 - slope)
    assert center == pytest.approx(float(x.sum()) / (size + 1 / T2), rel=1e-10)


@pytest.mark.parametrize(
    "size, batch_size, variance, h, batching, particles",
    [(1000, 50, 0.93556, 2e-4, "replacement", 1500), (100, 20, 1.0, 2e-3, "subset", 300)],
)
def test_through_sample(size, batch_size, variance, h, batching, particles):
    x = data_with_variance(size, variance)
    draws = pvi.sample(
        pvi.sgld(conjugate(size)),
        data=x,
        step_size=h,
        batch_size=batch_size,
        batching=batching,
        initial=torch.full((particles, 1), float(x.mean()), dtype=torch.float64),
        num_warmup=60,
        num_draws=100,
        thin=8,
        progress=False,
    ).particles
    expected = predicted(size, batch_size, variance, h, 1.0, batching == "replacement")
    if batching == "replacement":
        assert expected == pytest.approx(0.0031898, abs=5e-8)
    found = float(draws.var())
    lag = (1 - h * (size + 1 / T2)) ** 16
    error = expected * math.sqrt(2 / draws.numel() * (1 + lag) / (1 - lag))
    assert abs(found - expected) < 5 * error
    assert found == pytest.approx(expected, rel=0.02)
