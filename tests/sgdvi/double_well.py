"""The double well of Noh and Lee (2015) with a circulating force, beta = 1 and D = I.

``f`` is not the potential, but ``exp(-Phi)`` is stationary at every strength of the circulation.
"""

import torch
from torch import Tensor

CIRCULATION = {0.0: 0.0, 0.5: 0.4121, 1.5: 1.2363}


def potential(x: Tensor) -> Tensor:
    return (x[..., 0] ** 2 - 1) ** 2 / 4 + x[..., 1] ** 2 / 2


def current(x: Tensor, strength: float) -> Tensor:
    """``j = strength exp(Phi) J``."""
    turned = torch.stack([-x[..., 1], x[..., 0]], -1)
    fall = torch.exp(potential(x) - x.square().sum(-1) ** 2 / 4)
    return strength * fall[..., None] * turned


def drift(x: Tensor, strength: float) -> Tensor:
    gradient = torch.stack([x[..., 0] ** 3 - x[..., 0], x[..., 1]], -1)
    return current(x, strength) - gradient


def simulate(
    strength: float, replicas: int, draws: int, thin: int, step: float = 0.02, seed: int = 0
) -> Tensor:
    """``[P, T, 2]`` by Heun's method, of weak order 2 for additive noise; 8 of time to warm up."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(replicas, 2, generator=generator, dtype=torch.float64)
    kept = []
    warmup = round(8 / step)
    for k in range(warmup + draws * thin):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) * (2 * step) ** 0.5
        here = drift(x, strength)
        guess = x + step * here + noise
        x = x + 0.5 * step * (here + drift(guess, strength)) + noise
        if k >= warmup and (k - warmup) % thin == thin - 1:
            kept.append(x)
    return torch.stack(kept, 1)


def region() -> Tensor:
    """Points of a grid that hold 95 % of the mass."""
    axis = torch.linspace(-4, 4, 161, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    mass = torch.exp(-potential(grid))
    order = (mass / mass.sum()).sort(descending=True)
    count = int((order.values.cumsum(0) < 0.95).sum()) + 1
    return grid[order.indices[:count]]
