"""Control variates: unbiased, and without variance where theory says so."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, Progress

N, D, B = 30, 3, 4


def _data(seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, dtype=torch.float64, generator=g)
    y = (torch.rand(N, dtype=torch.float64, generator=g) < 0.5).double()
    return x, y


def logistic():
    def log_likelihood(theta, data):
        x, y = data
        logit = (x * theta).sum(-1)
        return y * logit - torch.nn.functional.softplus(logit)

    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(), log_likelihood, D, N, dtype=torch.float64
    )


def mean_model():
    """Quadratic energies with one Hessian: ``u_n = |x_n - theta|^2 / 2``."""
    return pvi.from_log_likelihood(
        lambda theta: -0.5 * theta.square().sum(),
        lambda theta, data: -0.5 * (data[0] - theta).square().sum(-1),
        D,
        N,
        dtype=torch.float64,
    )


def _every_batch(estimator, theta, data):
    """Estimates at ``theta`` from each datum alone, ``[N, D]``, and the full gradient."""
    state = estimator.init(theta, ParticleStreams(0))
    return _from_state(estimator, state, theta, data)


def _from_state(estimator, state, theta, data):
    singles = [
        estimator(state, theta, Batch(tuple(leaf[i : i + 1] for leaf in data)), ()).gradient
        for i in range(N)
    ]
    full = pvi.gradients.minibatch(estimator.potential)((), theta, Batch(data), ()).gradient
    return torch.stack(singles), full


@pytest.fixture
def theta():
    return torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("refresh", [None, 7])
def test_unbiased(refresh, theta):
    estimator = pvi.control_variate(logistic(), _data(), torch.zeros(D), refresh=refresh)
    singles, full = _every_batch(estimator, theta, _data())
    torch.testing.assert_close(singles.mean(0), full, rtol=1e-12, atol=1e-12)
    assert singles.std(0).min() > 1e-3


@pytest.mark.parametrize("refresh", [None, 7])
def test_no_variance_for_quadratic_energies_with_one_hessian(refresh, theta):
    estimator = pvi.control_variate(mean_model(), _data(), torch.zeros(D), refresh=refresh)
    singles, full = _every_batch(estimator, theta, _data())
    torch.testing.assert_close(singles, full.expand_as(singles), rtol=1e-10, atol=1e-10)


def test_the_potential_has_the_gradient_and_no_bias(theta):
    data = _data()
    estimator = pvi.control_variate(logistic(), data, torch.zeros(D))
    state = estimator.init(theta, ParticleStreams(0))
    one = Batch(tuple(leaf[:1] for leaf in data))
    width = 1e-5
    for d in range(D):
        away = width * torch.eye(D, dtype=torch.float64)[d]
        ahead, behind = (estimator(state, theta + s * away, one, ()).potential for s in (1, -1))
        slope = (ahead - behind) / (2 * width)
        exact = estimator(state, theta, one, ()).gradient[:, d]
        torch.testing.assert_close(slope, exact, rtol=1e-6, atol=1e-6)
    values = [
        estimator(state, theta, Batch(tuple(leaf[i : i + 1] for leaf in data)), ()).potential
        for i in range(N)
    ]
    full = pvi.gradients.minibatch(estimator.potential)((), theta, Batch(data), ()).potential
    torch.testing.assert_close(torch.stack(values).mean(0), full, rtol=1e-12, atol=1e-12)


def test_no_variance_at_the_centre(theta):
    estimator = pvi.control_variate(logistic(), _data(), refresh=3)
    singles, full = _every_batch(estimator, theta, _data())
    torch.testing.assert_close(singles, full.expand_as(singles), rtol=1e-10, atol=1e-10)


def test_variance_is_quadratic_in_the_distance(theta):
    estimator = pvi.control_variate(logistic(), _data(), theta[0])
    spread = []
    for distance in [0.02, 0.01, 0.005]:
        singles, _ = _every_batch(estimator, theta[:1] + distance, _data())
        spread.append(float(singles.var(0).sum()))
    ratios = [a / b for a, b in pairwise(spread)]
    assert ratios == pytest.approx([4, 4], rel=0.05)


def test_centres_follow_their_particles(theta):
    """After the m-th step the centre is the particle: no variance there; before, there was."""
    estimator = pvi.control_variate(logistic(), _data(), refresh=3)
    start = estimator.init(theta, ParticleStreams(0))
    moved = theta + torch.tensor([[0.5], [-1.0]])
    kept = estimator.record(start, moved, Progress(2, 0, 10))
    singles, _ = _from_state(estimator, kept, moved, _data())
    assert singles.std(0).min() > 1e-3
    fresh = estimator.record(kept, moved, Progress(3, 0, 10))
    singles, full = _from_state(estimator, fresh, moved, _data())
    torch.testing.assert_close(singles, full.expand_as(singles), rtol=1e-10, atol=1e-10)


def test_refreshed_every_step_is_the_full_gradient():
    """SVRG with m = 1 takes the steps of full-batch descent, whatever the minibatches."""
    potential, data = logistic(), _data()
    start = torch.ones(2, D, dtype=torch.float64)
    options = dict(step_size=0.05, initial=start, num_draws=20, progress=False)
    svrg = pvi.control_variate(potential, data, refresh=1)
    stochastic = pvi.sample(pvi.sgd(svrg), data, batch_size=B, **options)
    full = pvi.sample(pvi.sgd(potential), data, **options)
    torch.testing.assert_close(stochastic.particles, full.particles, rtol=1e-10, atol=1e-12)


def test_a_centre_or_a_refresh_is_needed():
    with pytest.raises(ValueError, match="refresh=m"):
        pvi.control_variate(logistic(), _data())
    with pytest.raises(ValueError, match="refresh must be an integer"):
        pvi.control_variate(logistic(), _data(), refresh=0)
    with pytest.raises(ValueError, match="one parameter vector"):
        pvi.control_variate(logistic(), _data(), torch.zeros(D + 1))
