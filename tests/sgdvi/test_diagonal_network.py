"""SGD on ``l = (u w x - y)^2``: a law that is known in closed form and is far from Gaussian.

Reference: Ziyin, Li and Ueda, "Law of balance and stationary distribution of stochastic gradient
descent", 2023.
"""

import numpy as np
import pytest
import torch

import particlevi as pvi
from particlevi import sgdvi

N, ETA = 4000, 0.01
LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x, e = torch.randn(2, N, generator=generator, dtype=torch.float64)
    return x, x + e


@pytest.fixture(scope="module")
def law(data):
    """The closed form for the moments of these data."""
    x, y = (leaf.numpy() for leaf in data)
    covariance = np.cov(x * x, x * y, bias=True)
    return pvi.noise.DiagonalNet(
        a1=covariance[0, 0],
        a2=covariance[0, 1],
        a3=covariance[1, 1],
        b1=(x * x).mean(),
        b2=(x * y).mean(),
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


def test_quantiles_are_those_of_the_closed_form(products, law):
    wanted = law.quantiles(LEVELS, ETA)
    found = np.quantile(products.numpy(), LEVELS)
    assert np.abs(found / wanted - 1).max() < 0.025


def test_score_matching_recovers_its_potential(products, data, law):
    t = pvi.noise.scalings(ETA, 1).chaudhari_soatto
    phi = sgdvi.fit_potential(products, t, num_centers=40)
    low, high = np.quantile(products.numpy(), (0.025, 0.975))
    v = np.linspace(low, high, 101)
    error = phi(torch.from_numpy(v)[:, None]).numpy() / t + law.log_density(v, ETA)
    error -= error.mean()
    # In units of the temperature, where the potential spans about 2 over this region.
    assert np.sqrt(np.mean(error**2)) < 0.1
    # The loss alone, as potential of the naive law exp(-f / t), is far off.
    loss = [float(((s * data[0] - data[1]) ** 2).mean()) for s in v]
    naive = np.array(loss) / t + law.log_density(v, ETA)
    naive -= naive.mean()
    assert np.sqrt(np.mean(naive**2)) > 1
