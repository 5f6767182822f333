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


def on(index, law=None):
    """Halves of the batches ``index [P, B]``, and the plain estimates on them."""
    theta = torch.tensor([[0.4, -0.3]], dtype=torch.float64).expand(len(index), 2).contiguous()
    estimator = pvi.gradients.minibatch(MODEL)
    batch = Batch(X[index], True, law=law)

    def estimate(part):
        return estimator((), theta, part, ())

    return in_halves(estimate, batch, N), estimate(batch)


@pytest.mark.parametrize("law", [None, "independent", "subset"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_unbiased_over_all_batches(size, law):
    if law == "subset":
        index = torch.tensor(list(itertools.permutations(range(N), size)))
    else:
        index = torch.tensor(list(itertools.product(range(N), repeat=size)))
    (found, variance), plain = on(index, law)
    for estimate, exact, its_variance in zip(found, plain, variance, strict=True):
        torch.testing.assert_close(estimate, exact, rtol=1e-12, atol=1e-12)
        spread = exact.var(0, correction=0)
        torch.testing.assert_close(its_variance.mean(0), spread, rtol=1e-12, atol=0)


def test_no_noise_without_data_and_on_all_of_them():
    theta = torch.zeros(3, 2, dtype=torch.float64)
    estimator = pvi.gradients.minibatch(MODEL)
    found, variance = in_halves(lambda part: estimator((), theta, part, ()), Batch(X, law="all"), N)
    assert variance.gradient.shape == theta.shape and not variance.gradient.any()
    assert variance.potential.shape == (3,) and not variance.potential.any()
    assert torch.equal(found.gradient, estimator((), theta, Batch(X), ()).gradient)
    normal = pvi.gradients.minibatch(pvi.from_log_density(lambda x: -0.5 * (x**2).sum(), 2))
    _, variance = in_halves(lambda part: normal((), theta.float(), part, ()), None, None)
    assert not variance.gradient.any()


def test_one_datum_has_no_halves():
    with pytest.raises(ValueError, match="got a batch of one datum"):
        on(torch.tensor([[0], [1]]))
