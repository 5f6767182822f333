"""Adam's stationary law, against its own equations and against torch's Adam."""

from __future__ import annotations

import pytest
import torch

from particlevi.sgdvi import adam_law, sgd_chain

F64 = torch.float64
F = torch.tensor([[1.0, 0.2], [0.2, 0.5]], dtype=F64)
C = torch.tensor([[1.0, -0.3], [-0.3, 2.0]], dtype=F64)


def test_the_second_moment_is_that_of_the_gradient_under_the_law():
    law = adam_law(F, C, learning_rate=0.02, batch_size=4)
    gradient = F @ law.chain.covariance @ F + C / 4
    assert torch.allclose(law.second_moment, gradient.diagonal(), rtol=1e-12)
    again = sgd_chain(
        F, C, learning_rate=0.002, batch_size=4, momentum=0.9, preconditioner=law.preconditioner
    )
    assert torch.allclose(again.covariance, law.chain.covariance, rtol=1e-10)


@pytest.mark.slow
def test_running_moments_agree_within_two_per_cent():
    """torch's Adam, 3000 runs at once, with ``beta_2 = 0.9999`` past its bias correction."""
    law = adam_law(F, C, learning_rate=0.02, batch_size=4)
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(3000, 2, dtype=F64, requires_grad=True)
    adam = torch.optim.Adam([x], lr=0.02, betas=(0.9, 0.9999))
    root = torch.linalg.cholesky(C / 4)
    total, count = torch.zeros(2, 2, dtype=F64), 0
    for k in range(6000):
        kick = torch.randn(x.shape, generator=generator, dtype=F64) @ root.T
        x.grad = x.detach() @ F + kick
        adam.step()
        if k >= 3000 and k % 20 == 0:
            total += x.detach().T @ x.detach() / len(x)
            count += 1
    found, wanted = total / count, law.chain.covariance
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_parameters_without_noise_are_refused():
    with pytest.raises(ValueError, match="without noise"):
        adam_law(F, torch.diag(torch.tensor([1.0, 0.0])), learning_rate=0.01, batch_size=4)
