"""The spectral density of a symmetric matrix by stochastic Lanczos quadrature, with bounds.

For a random unit vector ``v``, M Lanczos steps give nodes ``t_j`` and weights ``w_j`` of the Gauss
quadrature of the measure ``mu_v`` whose mean over ``v`` is the distribution of eigenvalues.
Two errors are known apart:

* of the quadrature: by the inequality of Chebyshev, Markov and Stieltjes, between two nodes
  ``t_k <= x < t_k+1`` the distribution function of ``mu_v`` lies between ``w_1 + ... + w_k-1`` and
  ``w_1 + ... + w_k+1``; strictly, up to rounding;
* of the probes: the standard error over the R vectors.

Reference: Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
2017; Chen, Trogdon and Ubaru, "Analysis of stochastic Lanczos quadrature for spectrum
approximation", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int, check_seed
from particlevi._shown import Shown

__all__ = ["Cumulative", "SpectralDensity", "spectral_density"]


class Cumulative(NamedTuple):
    """The share of eigenvalues at or below given points.

    Attributes:
        value: estimate ``[X]``.
        lower, upper: what the share is for these probes, strictly, ``[X]``.
        standard_error: over the probes, ``[X]``.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor
    standard_error: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class SpectralDensity(Shown):
    """Quadratures of the spectral measure.

    Attributes:
        nodes: ``[R, M]``, increasing; of probes that ended early the rest is NaN.
        weights: ``[R, M]``, sums 1; of probes that ended early the rest is 0.
        num_params: D.
    """

    nodes: Tensor
    weights: Tensor
    num_params: int

    def cumulative(self, points: Tensor) -> Cumulative:
        """The share of eigenvalues at or below ``points [X]``, with its errors."""
        x = torch.as_tensor(points).double().reshape(-1)
        rows = [_cumulative(t, w, x) for t, w in zip(self.nodes, self.weights, strict=True)]
        value, lower, upper = (torch.stack(each) for each in zip(*rows, strict=True))
        return Cumulative(value.mean(0), lower.mean(0), upper.mean(0), _error(value))

    def mean(self, function: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        """The mean of a function over all eigenvalues, ``tr f(A) / D``, and its standard error.

        That is the error of the probes; for polynomials of degree below ``2 M`` there is no other.
        """
        values = torch.where(self.weights > 0, function(self.nodes), 0.0)
        each = (self.weights * values).sum(1)
        return float(each.mean()), float(_error(each))

    def density(self, points: Tensor, width: float) -> Tensor:
        """The density at ``points [X]``, smoothed by a Gaussian of a given standard deviation."""
        check_positive("width", width)
        x = torch.as_tensor(points).double().reshape(-1)
        away = (self.nodes[:, :, None] - x) / width
        bumps = torch.exp(-0.5 * away.square()) / (width * math.sqrt(2 * math.pi))
        return (self.weights[:, :, None] * bumps.nan_to_num(0)).sum(1).mean(0)


def _cumulative(nodes: Tensor, weights: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value, lower and upper bound of one measure's distribution function at ``x [X]``.

    The value is half-way between its bounds at each node, and linear between nodes.
    """
    known = ~nodes.isnan()
    t, w = nodes[known], weights[known]
    below = torch.cat([torch.zeros(1, dtype=t.dtype), w.cumsum(0)])
    index = torch.searchsorted(t, x, right=True)
    lower, upper = below[(index - 1).clamp(min=0)], below[(index + 1).clamp(max=len(t))]
    ends = torch.cat([t[:1], t, t[-1:]])
    levels = torch.cat([below[:1], below[1:] - 0.5 * w, below[-1:]])
    left, right = ends[index], ends[index + 1]
    way = torch.where(right > left, (x - left) / (right - left), (x >= left).double())
    value = levels[index] + way.clamp(0, 1) * (levels[index + 1] - levels[index])
    return value, lower, upper


def _error(values: Tensor) -> Tensor:
    if len(values) < 2:
        return torch.full_like(values[0], math.nan)
    return values.std(0) / math.sqrt(len(values))


def spectral_density(
    product: Callable[[Tensor], Tensor],
    size: int,
    num_steps: int = 60,
    num_probes: int = 8,
    *,
    seed: int = 0,
) -> SpectralDensity:
    """The distribution of eigenvalues of a symmetric matrix that is known by its products.

    ``num_steps * num_probes`` products; memory ``size * num_steps`` numbers.

    Args:
        product: ``A v [D]`` for ``v [D]``.
        size: D.
        num_steps: M, at most D.
        num_probes: R random unit vectors.
        seed: of the probes.

    Raises:
        ValueError: numbers out of range, or products that are not finite.

    Examples:
        >>> values = torch.linspace(0, 1, 200, dtype=torch.float64)
        >>> found = spectral_density(lambda v: values * v, 200, 20, 10)
        >>> share = found.cumulative(torch.tensor([0.25]))
        >>> bool(share.lower < 0.25 < share.upper)
        True
    """
    check_positive_int("size", size)
    check_positive_int("num_steps", num_steps)
    check_positive_int("num_probes", num_probes)
    check_seed("seed", seed)
    steps = min(int(num_steps), int(size))
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.full((num_probes, steps), math.nan, dtype=torch.float64)
    weights = torch.zeros(num_probes, steps, dtype=torch.float64)
    for r in range(num_probes):
        start = torch.randn(size, generator=generator, dtype=torch.float64)
        diagonal, off = lanczos(product, start, steps)
        matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
        values, vectors = torch.linalg.eigh(matrix)
        nodes[r, : len(values)] = values
        weights[r, : len(values)] = vectors[0].square()
    return SpectralDensity(nodes, weights, int(size))


def lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Diagonal ``[M]`` and off-diagonal ``[M - 1]`` of Lanczos' matrix, with full orthogonality.

    Fewer steps where the Krylov space is exhausted.
    """
    basis = torch.empty(num_steps, len(start), dtype=torch.float64)
    basis[0] = start / start.norm()
    diagonal: list[float] = []
    off: list[float] = []
    for j in range(num_steps):
        image = product(basis[j]).detach().double().cpu()
        if not torch.isfinite(image).all():
            raise ValueError("A product is not finite: use float64, or a point near a minimum.")
        diagonal.append(float(basis[j] @ image))
        scale = float(image.norm())
        for _ in range(2):
            image = image - basis[: j + 1].T @ (basis[: j + 1] @ image)
        length = float(image.norm())
        if j + 1 == num_steps or length <= 1e-12 * max(scale, 1e-300):
            break
        off.append(length)
        basis[j + 1] = image / length
    return (
        torch.tensor(diagonal, dtype=torch.float64),
        torch.tensor(off, dtype=torch.float64),
    )
