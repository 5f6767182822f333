"""What the tests of the Stein family share."""

from __future__ import annotations

import torch

import particlevi as pvi

F64 = torch.float64


def points(num, dim, seed=0):
    return torch.randn(num, dim, dtype=F64, generator=torch.Generator().manual_seed(seed))


def by_autograd(kernel, x, scores):
    """Attraction and repulsion from the kernel matrix alone, its bandwidth held fixed."""
    moved = x.clone().requires_grad_()
    matrix = kernel(moved, x)
    repulsion = torch.stack(
        [
            torch.autograd.grad(matrix[:, i].sum(), moved, retain_graph=True)[0].sum(0)
            for i in range(len(x))
        ]
    )
    return matrix.detach().T @ scores / len(x), repulsion / len(x)


def gaussian(mean, precision):
    mean, precision = torch.as_tensor(mean, dtype=F64), torch.as_tensor(precision, dtype=F64)

    def log_density(theta):
        away = theta - mean
        return -0.5 * ((away @ precision) * away).sum(-1)

    return pvi.from_log_density(log_density, len(mean), vectorized=True, dtype=F64)


def settle(sampler, initial, num_steps, step_size):
    draws = pvi.sample(
        sampler,
        step_size=step_size,
        initial=initial,
        num_warmup=num_steps - 1,
        num_draws=1,
        progress=False,
        monitor=pvi.running.Monitor(every=1000),
    )
    return draws.particles[:, 0]
