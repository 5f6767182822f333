"""SGD on ``l = (u w x - y)^2``: a law that is known in closed form and is far from Gaussian.

Reference: Ziyin, Li and Ueda, "Law of balance and stationary distribution of stochastic gradient
descent", 2023.
"""

import numpy as np
import pytest
import torch
from scipy.integrate import cumulative_trapezoid

import particlevi as pvi
from particlevi import sgdvi

N, ETA = 4000, 0.01
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return x, x + e


def log_density(v, data, noise_level):
    """Of ``v = u w > 0``, up to a constant; ``noise_level`` is ``eta / b``."""
    x, y = (leaf.numpy() for leaf in data)
    xx, xy = x * x, x * y
    a1, a3, a2 = xx.var(), xy.var(), np.mean(xx * xy) - xx.mean() * xy.mean()
    b1, b2, t = xx.mean(), xy.mean(), noise_level
    root = np.sqrt(a1 * a3 - a2**2)
    q = a1 * v**2 - 2 * a2 * v + a3
    return (
        (b2 / (2 * a3 * t) - 1.5) * np.log(v)
        - (1 + b2 / (4 * a3 * t)) * np.log(q)
        - (a3 * b1 - a2 * b2) / (2 * t * a3 * root) * np.arctan((a1 * v - a2) / root)
    )


@pytest.fixture(scope="module")
def products(data):
    """``v`` of 4000 runs, ``[P, T, 1]``."""
    potential = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(-1),
        lambda theta, batch: -((theta.prod(-1, keepdim=True) * batch[0] - batch[1]) ** 2),
        num_params=2,
        num_data=N,
        vectorized=True,
        dtype=torch.float64,
    )
    draws = pvi.sample(
        pvi.sgd(potential),
        data,
        step_size=ETA / N,
        batch_size=1,
        initial=torch.ones(4000, 2),
        num_warmup=1000,
        num_draws=8,
        thin=80,
        progress=False,
    )
    assert not draws.diverged
    return draws.particles.prod(-1, keepdim=True)


def test_quantiles_are_those_of_the_closed_form(products, data):
    v = np.linspace(1e-3, 6, 20001)
    density = np.exp(log_density(v, data, ETA) - log_density(1.0, data, ETA))
    mass = cumulative_trapezoid(density, v, initial=0)
    wanted = np.interp(LEVELS, mass / mass[-1], v)
    found = np.quantile(products.numpy(), LEVELS)
    assert np.abs(found / wanted - 1).max() < 0.025


def test_score_matching_recovers_its_potential(products, data):
    t = pvi.noise.scalings(ETA, 1).chaudhari_soatto
    phi = sgdvi.fit_potential(products, t, num_centers=40)
    low, high = np.quantile(products.numpy(), (0.025, 0.975))
    v = np.linspace(low, high, 101)
    error = phi(torch.from_numpy(v)[:, None]).numpy() / t + log_density(v, data, ETA)
    error -= error.mean()
    # In units of the temperature, where the potential spans about 2 over this region.
    assert np.sqrt(np.mean(error**2)) < 0.1
    # The loss alone, as potential of the naive law exp(-f / t), is far off.
    loss = [float(((s * data[0] - data[1]) ** 2).mean()) for s in v]
    naive = np.array(loss) / t + log_density(v, data, ETA)
    naive -= naive.mean()
    assert np.sqrt(np.mean(naive**2)) > 1
