"""A few directions in which draws spread further than a scale for each parameter tells.

Among thousands of parameters it is often a few combinations that chains are slow in: a mean and all
the effects around it. In units of the standard deviations, of n draws of D parameters, the largest
eigenvalues of the covariance show them, if they stand out: noise alone has eigenvalues up to
``b = (1 + sqrt(D / n))^2``, with n the number of independent draws. As that is not known, b is
taken to be the eigenvalue after the last that could count, and one counts that is 1.5 times as
large. A true eigenvalue l shows as ``l (1 + g / (l - 1))`` with ``g = (sqrt(b) - 1)^2``, which is
solved for l.

References: Baik and Silverstein, "Eigenvalues of large sample covariance matrices of spiked
population models", 2006; Seyboldt, Carlson and Carpenter, "Preconditioning Hamiltonian Monte Carlo
by minimizing Fisher divergence", 2024, for low-rank metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["RANK", "directions", "most_rows"]

RANK = 8
_STANDS_OUT = 1.5
_ROWS, _FEWEST_ROWS, _NUMBERS = 512, 32, 1 << 24


def most_rows(num_params: int) -> int:
    """Draws that are held at once: 512, or as many as 128 MB take; 0 below 32."""
    rows = min(_ROWS, _NUMBERS // num_params)
    return rows if rows >= _FEWEST_ROWS else 0


def directions(draws: Tensor, scale: Tensor, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``[D, rank]`` in units of the scale, and the spread along them.

    Directions that do not stand out are zero, with a spread of 1.

    Args:
        draws: ``[n, D]``.
        scale: standard deviations ``[D]``.
        rank: how many directions at most.

    >>> generator = torch.Generator().manual_seed(0)
    >>> draws = torch.randn(200, 50, generator=generator)
    >>> draws = draws + 3 * torch.randn(200, 1, generator=generator)
    >>> basis, spread = directions(draws, torch.ones(50))
    >>> (spread > 1).tolist()
    [True, False, False, False, False, False, False, False]
    """
    basis = scale.new_zeros(len(scale), rank)
    spread = scale.new_ones(rank)
    finite = draws[torch.isfinite(draws).all(1)]
    if len(finite) < 2 * rank:
        return basis, spread
    z = ((finite - finite.mean(0)) / scale).double()
    values, vectors = torch.linalg.eigh(z @ z.mT / (len(z) - 1))
    values, vectors = values.flip(0)[: rank + 1], vectors.flip(1)[:, :rank]
    edge = values[rank].clamp(min=1)
    excess = (edge.sqrt() - 1).square()
    known = values[:rank]
    half = known + 1 - excess
    true = 0.5 * (half + (half.square() - 4 * known).clamp(min=0).sqrt())
    count = (known > _STANDS_OUT * edge) & (true > 1)
    found = torch.nn.functional.normalize(z.mT @ vectors, dim=0)
    basis = torch.where(count, found, 0.0).to(basis)
    return basis, torch.where(count, true.clamp(min=1).sqrt(), 1.0).to(spread)
