"""The variance that the two halves of a batch tell, against all batches that there are."""

from __future__ import annotations

import itertools

import pytest
import torch

import particlevi as pvi
from particlevi.gradients.halves import in_halves
from particlevi.typing import Batch

N = 5
X = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.7, 0.1], [1.1, 3.0], [0.0, -2.0]]).double()
MODEL = pvi.from_log_likelihood(
    lambda theta: -0.5 * theta.square().sum(-1),
    lambda theta, x: -0.25 * (x - theta).pow(4).sum(-1),
    num_params=2,
    num_data=N,
    dtype=torch.float64,
)


def on(index, model=MODEL):
    """Halves of the batches ``index [P, B]``, and the plain estimates on them."""
    theta = torch.tensor([[0.4, -0.3]], dtype=torch.float64).expand(len(index), 2).contiguous()
    estimator = pvi.gradients.minibatch(model)
    batch = Batch(X[index], per_particle=True)

    def estimate(part):
        return estimator((), theta, part, ())

    return in_halves(estimate, batch), estimate(batch)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_unbiased_over_all_batches_with_replacement(size):
    index = torch.tensor(list(itertools.product(range(N), repeat=size)))
    (found, variance), plain = on(index)
    torch.testing.assert_close(found.gradient, plain.gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.potential, plain.potential, rtol=1e-12, atol=1e-12)
    exact = plain.gradient.var(0, correction=0)
    torch.testing.assert_close(variance.mean(0), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("size", [2, 3])
def test_too_large_by_a_known_factor_over_all_subsets(size):
    index = torch.tensor(list(itertools.permutations(range(N), size)))
    (_, variance), plain = on(index)
    exact = plain.gradient.var(0, correction=0)
    torch.testing.assert_close(variance.mean(0), exact * N / (N - size), rtol=1e-12, atol=0)


def test_no_noise_without_data_and_on_all_of_them():
    theta = torch.zeros(3, 2, dtype=torch.float64)
    estimator = pvi.gradients.minibatch(MODEL)
    found, variance = in_halves(
        lambda part: estimator((), theta, part, ()), Batch(X, complete=True)
    )
    assert variance.shape == theta.shape and not variance.any()
    assert torch.equal(found.gradient, estimator((), theta, Batch(X), ()).gradient)
    normal = pvi.gradients.minibatch(pvi.from_log_density(lambda x: -0.5 * (x**2).sum(), 2))
    _, variance = in_halves(lambda part: normal((), theta.float(), part, ()), None)
    assert not variance.any()


def test_one_datum_has_no_halves():
    with pytest.raises(ValueError, match="got a batch of one datum"):
        on(torch.tensor([[0], [1]]))
