"""Small potentials to try everything on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from particlevi._checks import check_floating
from particlevi.potentials.function import from_log_density, from_log_likelihood
from particlevi.potentials.likelihoods import Gaussian
from particlevi.potentials.module import from_module
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.priors import Normal
from particlevi.typing import Batch

__all__ = ["NUM_DATA", "PROBLEMS", "Problem", "problems"]

NUM_DATA = 20


@dataclass(frozen=True, eq=False)
class Problem:
    """A potential with its data.

    Attributes:
        name: of the problem.
        potential: with D = 3, 4 or 26 parameters, curvatures of order 1 to 100.
        data: N = 20 pairs of inputs ``[N, 3]`` and targets ``[N, 1]``; None for a density.
        center: one parameter vector ``[D]`` near the mode.
    """

    name: str
    potential: ModelPotential
    data: tuple[Tensor, Tensor] | None
    center: Tensor

    def batch(self, num_particles: int | None = None, size: int = 4, seed: int = 0) -> Batch | None:
        """A minibatch drawn with replacement.

        Leaves are ``[P, B, ...]`` for so many particles, ``[B, ...]`` shared if None.
        """
        if self.data is None:
            return None
        generator = torch.Generator().manual_seed(int(seed))
        shape = (size,) if num_particles is None else (num_particles, size)
        rows = torch.randint(NUM_DATA, shape, generator=generator)
        data = tuple(leaf[rows] for leaf in self.data)
        return Batch(data, num_particles is not None, law="independent")

    def whole(self) -> Batch | None:
        """All the data."""
        return None if self.data is None else Batch(self.data, law="all")

    def start(self, num_particles: int) -> Tensor:
        """Starting points ``[P, D]`` around the centre of the coordinates."""
        generator = torch.Generator().manual_seed(2)
        shape = (num_particles, self.potential.num_params)
        return 0.3 * torch.randn(shape, generator=generator, dtype=self.potential.dtype)


def _data(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_DATA, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(NUM_DATA, 1, generator=generator, dtype=torch.float64)
    return x.to(dtype), (x[:, :1].sin() + 0.1 * noise).to(dtype)


def _density(dtype: torch.dtype) -> Problem:
    """A correlated Gaussian without data."""
    precision = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.3], [0.0, 0.3, 3.0]], dtype=dtype)

    def log_density(theta: Tensor) -> Tensor:
        return -0.5 * theta @ (precision @ theta)

    potential = from_log_density(log_density, 3, dtype=dtype)
    return Problem("density", potential, None, torch.full((3,), 0.1, dtype=dtype))


def _function(dtype: torch.dtype) -> Problem:
    """Robust linear regression written by hand."""

    def log_prior(theta: Tensor) -> Tensor:
        return -0.5 * theta.square().sum()

    def log_likelihood(theta: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return -2.0 * torch.log1p((y[..., 0] - x @ theta[:3] - theta[3]).square())

    potential = from_log_likelihood(log_prior, log_likelihood, 4, NUM_DATA, dtype=dtype)
    return Problem("function", potential, _data(dtype), torch.full((4,), 0.1, dtype=dtype))


def _module(dtype: torch.dtype) -> Problem:
    """A net with one hidden layer."""
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).to(dtype)
    potential = from_module(net, Gaussian(scale=0.5), Normal(1.0), num_data=NUM_DATA)
    return Problem("module", potential, _data(dtype), torch.full((26,), 0.1, dtype=dtype))


PROBLEMS: Mapping[str, Callable[[torch.dtype], Problem]] = {
    "density": _density,
    "function": _function,
    "module": _module,
}


def problems(dtype: torch.dtype = torch.float64) -> list[Problem]:
    """A Gaussian density without data, a regression written by hand, and a net."""
    check_floating("dtype", dtype)
    return [make(dtype) for make in PROBLEMS.values()]
