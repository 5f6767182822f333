import pytest
import torch

import particlevi as pvi
from particlevi import sgdvi
from tests.noise.test_covariance import of_module, of_potential
from tests.sgdvi.test_stationary import relative
from tests.sgdvi.test_swag import regression


def at_minimum():
    model, data = regression()
    return pvi.noise.measure(model, data, position=torch.ones(4).double(), chunk_size=64)


def test_hessian_vector_product():
    _, (x, _) = regression()
    noise = at_minimum()
    hessian = x.T @ x / 0.25 / 200 + torch.eye(4).double() / 100 / 200
    columns = [sgdvi.hessian_vector_product(noise, v) for v in torch.eye(4)]
    assert torch.allclose(torch.stack(columns), hessian, atol=1e-12)


def test_law_in_the_subspace_is_that_of_the_whole_in_it():
    noise = at_minimum()
    hessian = torch.stack([sgdvi.hessian_vector_product(noise, v) for v in torch.eye(4)])
    whole = sgdvi.stationary_law(hessian, noise.dense(), learning_rate=0.1, batch_size=10)
    part = sgdvi.invariant_subspace(noise, 2)
    v = part.directions
    assert part.residual.max() < 1e-10
    assert torch.allclose(v.T @ v, torch.eye(2).double(), atol=1e-10)
    law = sgdvi.stationary_law(part.hessian, part.noise, learning_rate=0.1, batch_size=10)
    assert relative(law.covariance, v.T @ whole.covariance @ v) < 1e-10
    # A subspace of top directions of the noise is not invariant, and the law in it is wrong.
    w = torch.linalg.eigh(noise.dense())[1][:, -2:]
    wrong = sgdvi.stationary_law(
        w.T @ hessian @ w, w.T @ noise.dense() @ w, learning_rate=0.1, batch_size=10
    )
    assert relative(wrong.covariance, w.T @ whole.covariance @ w) > 1e-3


def test_bad_input():
    noise = at_minimum()
    with pytest.raises(ValueError, match="below D = 4"):
        sgdvi.invariant_subspace(noise, 4)
    # An untrained net has directions of negative curvature.
    with pytest.raises(ValueError, match="are positive"):
        sgdvi.invariant_subspace(of_module(), 30)
    masked = of_module(mode="train")
    with pytest.raises(ValueError, match="random masks"):
        sgdvi.invariant_subspace(masked, 3)
    assert sgdvi.invariant_subspace(of_potential(), 3).residual.max() < 1e-8
