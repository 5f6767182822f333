"""Weights of ``msgd``: their laws by linear algebra, and what the loss makes of them."""

from itertools import combinations, permutations, product

import pytest
import torch
from torch import nn

import particlevi as pvi
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

F64 = torch.float64
N, D = 8, 3
G = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=F64) + 0.5
C = torch.cov(G.T, correction=0)
F = G.T @ G / N
ALL_DATA = ["sgd", "fisher", "cov", "bernoulli", "sparse_fisher", "sparse_cov", "none"]


class Fixed:
    """Streams whose numbers are given, so that every outcome can be gone through."""

    def __init__(self, normal=None, uniform=None):
        self.rows = {"normal": normal, "uniform": uniform}

    def normal(self, shape, dtype=F64):
        assert self.rows["normal"].shape == shape
        return self.rows["normal"].to(dtype)

    def uniform(self, shape, dtype=F64):
        assert self.rows["uniform"].shape == shape
        return self.rows["uniform"].to(dtype)


def linear(num_data=N):
    """The loss of datum k is ``g_k . theta``, so that the noise does not depend on theta."""
    return pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, g: -(g @ theta),
        num_params=D,
        num_data=num_data,
        dtype=F64,
    )


def gradients(estimator, streams, count, data=G):
    """Estimates of the gradient of the mean loss, ``[P, D]``, one per particle."""
    theta = torch.zeros(count, D, dtype=F64)
    state = estimator.init(theta, streams)
    noise = estimator.draw_noise(state, streams)
    found = estimator(state, theta, Batch(data), noise)
    return found.gradient / estimator.num_data


def gaussian_covariance(estimator, uniform=None, data=G):
    """The covariance of what is linear in N normal numbers: unit vectors give its matrix."""
    n = estimator.num_data
    rows = gradients(estimator, Fixed(torch.eye(n, dtype=F64), uniform), n, data)
    shifted = rows - data.mean(0)
    return shifted.T @ shifted


def close(found, expected):
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12), (found, expected)


def test_sgd_by_all_subsets():
    b = 3
    subsets = list(combinations(range(N), b))
    uniform = torch.ones(len(subsets), N, dtype=F64)
    for row, subset in zip(uniform, subsets, strict=True):
        row[list(subset)] = 0.0
    found = gradients(pvi.msgd(linear(), "sgd", b), Fixed(uniform=uniform), len(subsets))
    close(found.mean(0), G.mean(0))
    close(torch.cov(found.T, correction=0), C / b * (N - b) / (N - 1))


def test_bernoulli_by_all_outcomes():
    b = 3
    kept = torch.tensor(list(product([0, 1], repeat=N)), dtype=F64)
    uniform = torch.where(kept == 1, b / N - 0.01, b / N + 0.01)
    found = gradients(pvi.msgd(linear(), "bernoulli", b), Fixed(uniform=uniform), len(kept))
    share = ((b / N) ** kept.sum(1)) * ((1 - b / N) ** (N - kept.sum(1)))
    mean = share @ found
    close(mean, G.mean(0))
    shifted = found - mean
    close(shifted.T @ (share[:, None] * shifted), F / b * (1 - b / N))


def test_fisher_and_cov_from_the_matrix_of_their_weights():
    b = 3
    close(gaussian_covariance(pvi.msgd(linear(), "fisher", b)), F / b)
    close(gaussian_covariance(pvi.msgd(linear(), "cov", b)), C / b)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [("sparse_fisher", F / 2), ("sparse_cov", C / 2 * (3 - 1) / 3 * N / (N - 1))],
)
def test_sparse_forms_over_all_subsets(noise, expected):
    estimator = pvi.msgd(linear(), noise, 2, subset_size=3)
    subsets = list(combinations(range(N), 3))
    total = torch.zeros(D, D, dtype=F64)
    for subset in subsets:
        uniform = torch.ones(N, N, dtype=F64)
        uniform[:, list(subset)] = 0.0
        total += gaussian_covariance(estimator, uniform) / len(subsets)
    close(total, expected)


def test_minibatch_fisher_on_given_data():
    estimator = pvi.msgd(linear(), "minibatch_fisher", 2)
    close(gaussian_covariance(estimator), (N / 2 - 1) / N * F)


def test_minibatch_fisher_on_random_minibatches():
    size, b = 4, 2
    estimator = pvi.msgd(linear(), "minibatch_fisher", b)
    expected = C / size * (N - size) / (N - 1) + (size / b - 1) / size * F
    close(_over_minibatches(estimator, size), expected)


def test_minibatch_cov_centres_in_ghost_batches():
    size, b, ghost = 4, 2, 2
    estimator = pvi.msgd(linear(), "minibatch_cov", b, ghost_size=ghost)
    own = C / size * (N - size) / (N - 1)
    added = (size / b - 1) / size * (ghost - 1) / ghost * N / (N - 1) * C
    close(_over_minibatches(estimator, size), own + added)


def _over_minibatches(estimator, size):
    """The covariance over all ordered minibatches without repetition, and the weights."""
    orders = list(permutations(range(N), size))
    total = torch.zeros(D, D, dtype=F64)
    for order in orders:
        batch = G[list(order)]
        rows = gradients(estimator, Fixed(torch.eye(N, dtype=F64)), N, batch) - batch.mean(0)
        between = batch.mean(0) - G.mean(0)
        total += (rows.T @ rows + torch.outer(between, between)) / len(orders)
    return total


def test_no_noise_is_the_gradient_and_is_conservative():
    estimator = pvi.msgd(linear(), "none")
    close(gradients(estimator, ParticleStreams(0), 2), G.mean(0).expand(2, -1))
    assert estimator.conservative
    assert not pvi.msgd(linear(), "sgd", 2).conservative


class Ridge:
    """The linear losses under a standard normal prior, by an energy of the user's own."""

    num_params, num_data, dtype = D, N, F64

    def log_prior(self, particles):
        return -0.5 * particles.square().sum(1)

    def log_likelihood(self, particles, batch):
        return -particles @ batch.data.T

    def __call__(self, particles, batch=None):
        values = self.log_likelihood(particles, batch)
        return -self.log_prior(particles) - N / values.shape[1] * values.sum(1)


def test_the_prior_of_a_potential_of_ones_own_is_there():
    estimator, theta = pvi.msgd(Ridge(), "none"), torch.ones(2, D, dtype=F64)
    state = estimator.init(theta, ParticleStreams(0))
    noise = estimator.draw_noise(state, ParticleStreams(0))
    found = estimator(state, theta, Batch(G), noise)
    close(found.gradient, theta + G.sum(0))
    close(found.potential, Ridge()(theta, Batch(G)))


@pytest.mark.parametrize("noise", ALL_DATA)
def test_mean_and_covariance_of_many_masks(noise):
    count = 5_000
    found = gradients(pvi.msgd(linear(), noise, 3), ParticleStreams(1), count)
    trace = {
        "sgd": C.trace() / 3 * (N - 3) / (N - 1),
        "fisher": F.trace() / 3,
        "cov": C.trace() / 3,
        "bernoulli": F.trace() / 3 * (1 - 3 / N),
        "sparse_fisher": F.trace() / 3,
        "sparse_cov": C.trace() / 3 * 2 / 3 * N / (N - 1),
        "none": torch.tensor(0.0, dtype=F64),
    }[noise]
    squared = (found - G.mean(0)).square().sum(1)
    error = float(squared.std()) / count**0.5
    assert abs(float(squared.mean() - trace)) <= 4 * error + 1e-12
    mean_error = float(trace / count) ** 0.5
    assert float((found.mean(0) - G.mean(0)).norm()) <= 4 * mean_error + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["fisher", "cov", "bernoulli", "sparse_fisher", "sparse_cov"])
def test_covariance_within_a_percent_over_many_masks(noise):
    estimator = pvi.msgd(linear(), noise, 3)
    found = torch.cat([gradients(estimator, ParticleStreams(s), 40_000) for s in range(5)])
    expected = {
        "fisher": F / 3,
        "cov": C / 3,
        "bernoulli": F / 3 * (1 - 3 / N),
        "sparse_fisher": F / 3,
        "sparse_cov": C / 3 * 2 / 3 * N / (N - 1),
    }[noise]
    assert float((torch.cov(found.T) - expected).norm() / expected.norm()) < 0.01


@pytest.mark.parametrize("noise", ["sgd", "cov", "bernoulli", "sparse_fisher", "minibatch_cov"])
def test_weighted_loss_of_a_net_is_per_sample_gradients_times_weights(noise):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(N, 4, dtype=F64), torch.randint(3, (N,))
    model = pvi.from_module(net, pvi.Categorical(), pvi.Normal(2.0), num_data=N)
    theta = model.init(2, method="jittered")
    estimator = pvi.msgd(model, noise, 2)
    state = estimator.init(theta, ParticleStreams(3))
    drawn = estimator.draw_noise(state, ParticleStreams(3))
    found = estimator(state, theta, Batch((x, y)), drawn)
    weights = estimator.weights(drawn, N)
    for i in range(2):
        rows = pvi.noise.measure(model, (x, y), position=theta[i])
        prior = theta[i] / 4
        each = torch.cat(list(rows.per_sample())) - prior / N
        close(found.gradient[i], weights[i] @ each + prior)
    plain = model(theta, Batch((x, y)))
    assert torch.equal(found.potential, plain) or torch.allclose(found.potential, plain)


def test_particles_a_chunk_at_a_time_keep_their_weights():
    net = nn.Linear(4, 1).double()
    x, y = torch.randn(N, 4, dtype=F64), torch.randn(N, 1, dtype=F64)
    estimates = []
    for chunk_size in (None, 2):
        model = pvi.from_module(
            net, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=N, chunk_size=chunk_size
        )
        estimator = pvi.msgd(model, "fisher", 2)
        theta = torch.ones(5, model.num_params, dtype=F64)
        state = estimator.init(theta, ParticleStreams(3))
        drawn = estimator.draw_noise(state, ParticleStreams(3))
        estimates.append(estimator(state, theta, Batch((x, y)), drawn).gradient)
    close(estimates[0], estimates[1])


def test_stationary_covariance_of_cov_noise_is_that_of_sgd_with_replacement():
    """On a quadratic: the recursion of the covariance has the same noise, exactly."""
    hessian, rate, b = torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=F64)), 0.1, 3
    close(gaussian_covariance(pvi.msgd(linear(), "cov", b)), C / b)
    keep = torch.eye(D, dtype=F64) - rate * hessian
    system = torch.eye(D * D, dtype=F64) - torch.kron(keep, keep)
    expected = torch.linalg.solve(system, (rate**2 * C / b).flatten()).view(D, D)
    model = pvi.from_log_likelihood(
        lambda theta: 0.0 * theta.sum(),
        lambda theta, g: -0.5 * theta @ hessian @ theta - (g - G.mean(0)) @ theta,
        num_params=D,
        num_data=N,
        dtype=F64,
    )
    draws = pvi.sample(
        pvi.sgd(pvi.msgd(model, "cov", b)),
        G,
        step_size=rate / N,
        initial=torch.zeros(4000, D, dtype=F64),
        num_warmup=150,
        num_draws=1,
        progress=False,
    )
    points = draws.particles[:, -1].double()
    z = (points.square().mean(0) - expected.diagonal()) / (
        expected.diagonal() * (2 / len(points)) ** 0.5
    )
    assert float(z.abs().max()) < 3.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pvi.msgd(linear(), "gaussian", 2), "noise must be one of"),
        (lambda: pvi.msgd(linear(), "cov"), "needs batch_size"),
        (lambda: pvi.msgd(linear(), "cov", N + 1), "at most num_data=8"),
        (lambda: pvi.msgd(linear(), "cov", 2, subset_size=3), "subset_size has no meaning"),
        (lambda: pvi.msgd(linear(), "cov", 2, ghost_size=3), "ghost_size has no meaning"),
        (lambda: pvi.msgd(linear(), "sparse_cov", 2, subset_size=1), "integer of at least 2"),
        (lambda: pvi.msgd(linear(), "cov", 2.5), "must be an integer"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_density_without_data_and_dropout_are_refused():
    density = pvi.from_log_density(lambda theta: -theta.square().sum(), num_params=2)
    with pytest.raises(ValueError, match="potential with data"):
        pvi.msgd(density, "cov", 2)
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Linear(2, 1)).train()
    model = pvi.from_module(net, pvi.Gaussian(1.0), pvi.Normal(1.0), num_data=N, dropout="sample")
    with pytest.raises(ValueError, match="eval mode"):
        pvi.msgd(model, "cov", 2)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        ({"noise": "cov", "batch_size": 2}, 4, "weights all num_data=8"),
        ({"noise": "minibatch_cov", "batch_size": 4}, 2, "at most the 2 data"),
        ({"noise": "minibatch_cov", "batch_size": 2, "ghost_size": 3}, 4, "do not split"),
    ],
)
def test_batches_that_cannot_be_weighted(options, size, message):
    with pytest.raises(ValueError, match=message):
        gradients(pvi.msgd(linear(), **options), ParticleStreams(0), 2, G[:size])


def test_its_state_is_empty_whatever_the_particles():
    estimator = pvi.gradients.msgd(linear(), noise="none")
    assert estimator.init(torch.ones(4, D, dtype=F64), Fixed()).rows.shape == (4, 0)
