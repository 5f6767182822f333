"""The closed-form targets are what they say, by quadrature-free checks."""

import pytest
import torch

from particlevi.typing import Batch
from tests import targets

ALL = {
    "gaussian": lambda: targets.gaussian(2, 1.5),
    "correlated": targets.correlated,
    "ill_conditioned": targets.ill_conditioned,
    "mixture": targets.mixture,
    "funnel": lambda: targets.funnel(3, 0.7),
    "conjugate_mean": targets.conjugate_mean,
    "conjugate_regression": targets.conjugate_regression,
}


@pytest.mark.parametrize("name", ALL)
def test_moments_of_independent_draws(name):
    target = ALL[name]()
    draws = target.sample(40_000, torch.Generator().manual_seed(0))
    dim = len(target.mean)
    assert draws.shape == (40_000, dim)
    for i in range(dim):
        z = (draws[:, i].mean() - target.mean[i]) / (draws[:, i].std() / 200)
        assert abs(z) < 5
        for j in range(i, dim):
            product = (draws[:, i] - target.mean[i]) * (draws[:, j] - target.mean[j])
            error = product.mean() - target.covariance[i, j]
            assert abs(error) < 5 * product.std() / 200


@pytest.mark.parametrize("name", ["gaussian", "mixture", "funnel"])
def test_the_density_is_that_of_the_draws(name):
    """E_p[grad log p(x)] = 0 and E_p[x_i d_j log p] = -delta_ij tie density and sampler."""
    target = ALL[name]()
    draws = target.sample(40_000, torch.Generator().manual_seed(1)).requires_grad_()
    (score,) = torch.autograd.grad(-target.potential(draws).sum(), draws)
    draws = draws.detach()
    for i in range(draws.shape[1]):
        assert abs(score[:, i].mean()) < 5 * score[:, i].std() / 200
        for j in range(draws.shape[1]):
            product = draws[:, i] * score[:, j] + (1.0 if i == j else 0.0)
            assert abs(product.mean()) < 5 * product.std() / 200


@pytest.mark.parametrize("name", ["conjugate_mean", "conjugate_regression", "correlated"])
def test_the_posterior_is_the_quadratic_with_these_moments(name):
    target = ALL[name]()
    batch = None if target.data is None else Batch(target.data)

    def energy(theta):
        return target.potential(theta.unsqueeze(0), batch)[0]

    gradient = torch.func.grad(energy)(target.mean)
    hessian = torch.func.hessian(energy)(torch.zeros_like(target.mean))
    precision = torch.linalg.inv(target.covariance)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-9, rtol=0)
    torch.testing.assert_close(hessian, precision, rtol=1e-10, atol=1e-10)
