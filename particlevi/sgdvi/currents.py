"""The drift in two parts, and the probability current on a plane.

For ``dx = -grad f dt + sqrt(2 T D) dW`` with stationary density ``rho ~ exp(-Phi / T)``::

    -grad f = -D grad Phi + T div D + j

The first two terms alone would have the same ``rho`` and no loops; ``j`` carries the stationary
current ``J = j rho``, and ``div(j rho) = 0``. (``div j`` itself and ``j . grad Phi`` vanish only in
special cases, such as linear dynamics.)

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi.draws import Draws
from particlevi.sgdvi.series import as_series, block_labels, is_stationary
from particlevi.sgdvi.slices import principal_directions

__all__ = ["Current", "DriftParts", "decompose_drift", "probability_current"]

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class DriftParts:
    """The drift at points ``[S, D]``.

    Attributes:
        drift: ``-grad f [S, D]``.
        gradient: ``-D grad Phi + T div D [S, D]``, the part that descends the potential.
        circulating: ``j [S, D]``, the rest.
        flow_divergence: ``div(j rho) / rho [S]``, per unit of time; 0 where ``Phi`` is right.
    """

    drift: Tensor
    gradient: Tensor
    circulating: Tensor
    flow_divergence: Tensor

    @property
    def share(self) -> float:
        """``|j|`` over ``|grad f|``, root mean square over the points."""
        return float(self.circulating.norm() / self.drift.norm())


def decompose_drift(
    points: Tensor, drift: Field, potential: Field, diffusion: Tensor | Field, temperature: float
) -> DriftParts:
    """Split the drift into descent of the effective potential and circulation.

    Args:
        points: ``[S, D]``.
        drift: ``-grad f``, points ``[S, D]`` to ``[S, D]``, differentiable by torch.
        potential: ``Phi``, points ``[S, D]`` to ``[S]``, likewise: a fitted or a known one.
        diffusion: ``D [D, D]`` (the gradient covariance ``C``), or ``[S, D]`` to ``[S, D, D]``.
        temperature: ``T = eta/(2b)``.

    >>> rotate = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> parts = decompose_drift(
    ...     torch.tensor([[1.0, 2.0]]),
    ...     lambda x: -x + x @ rotate.T,
    ...     lambda x: 0.5 * x.square().sum(-1),
    ...     torch.eye(2),
    ...     temperature=0.1,
    ... )
    >>> parts.circulating
    tensor([[-2.,  1.]])
    """
    check_positive("temperature", temperature)
    constant = isinstance(diffusion, Tensor)

    def matrix(x: Tensor) -> Tensor:
        return diffusion.to(x) if isinstance(diffusion, Tensor) else diffusion(x[None])[0].to(x)

    def descent(x: Tensor) -> Tensor:
        slope = torch.func.grad(lambda y: potential(y[None])[0].to(y.dtype))(x)
        found = -matrix(x) @ slope
        if not constant:
            found = found + temperature * torch.einsum("ijj->i", torch.func.jacrev(matrix)(x))
        down: Tensor = found
        return down

    def rest(x: Tensor) -> Tensor:
        return drift(x[None])[0] - descent(x)

    rows = []
    for x in points.detach():
        j = rest(x)
        slope = torch.func.grad(lambda y: potential(y[None])[0].to(y.dtype))(x)
        divergence = torch.func.jacrev(rest)(x).trace() - slope @ j / temperature
        rows.append((drift(x[None])[0], descent(x), j, divergence))
    whole, down, around, divergences = (torch.stack(part) for part in zip(*rows, strict=True))
    return DriftParts(whole, down, around, divergences)


@dataclass(frozen=True, eq=False)
class Current:
    """The probability current on a plane.

    Attributes:
        axes: centres of the cells, two tensors ``[G]``.
        density: ``[G, G]``.
        current: ``J [G, G, 2]``, per unit of time.
        standard_error: ``[G, G, 2]``, from the spread over blocks.
        directions: the plane, ``[D, 2]``.
        stationary: whether the two halves of the run agree; None if it was too short to tell.
    """

    axes: tuple[Tensor, Tensor]
    density: Tensor
    current: Tensor
    standard_error: Tensor
    directions: Tensor
    stationary: bool | None


def probability_current(
    draws: Draws | Tensor,
    time_per_draw: float,
    directions: Tensor | None = None,
    *,
    num_grid: int = 15,
    num_blocks: int = 20,
) -> Current:
    """``J(x) = E[dx/dt delta(x - midpoint)]`` on a grid: which way draws flow through each cell.

    Steps are counted in the cell of their midpoint, so that reversible dynamics give zero.

    Args:
        draws: stationary draws of SGD, or ``[P, T, D]``, dense in time.
        time_per_draw: ``eta`` times the steps from one draw to the next.
        directions: ``[D, 2]``, taken as they are; the two principal ones if absent.
        num_grid: cells per axis, over 3 standard deviations on each side.
        num_blocks: whole chains, or stretches of them.
    """
    check_positive("time_per_draw", time_per_draw)
    check_positive_int("num_grid", num_grid, minimum=2)
    series = as_series(draws)
    basis = principal_directions(series) if directions is None else directions.double()
    if basis.shape != (series.shape[-1], 2):
        raise ValueError(f"directions must be [{series.shape[-1]}, 2], got {list(basis.shape)}.")
    if series.shape[1] < 2:
        raise ValueError("A current needs at least two draws per chain.")
    plane = (series - series.mean((0, 1))) @ basis
    spread = plane.flatten(0, 1).std(0)
    width = 6 * spread / num_grid
    middle = 0.5 * (plane[:, 1:] + plane[:, :-1])
    speed = ((plane[:, 1:] - plane[:, :-1]) / time_per_draw).flatten(0, 1)
    cell = ((middle + 3 * spread) / width).floor().long().flatten(0, 1)
    inside = ((cell >= 0) & (cell < num_grid)).all(1)
    labels = block_labels(middle, num_blocks).flatten()
    count = int(labels.max()) + 1
    sizes = torch.bincount(labels).double()
    index = (labels * num_grid + cell[:, 0]) * num_grid + cell[:, 1]
    size = float(width.prod())

    def gather(values: Tensor) -> Tensor:
        total = torch.zeros(count * num_grid**2, dtype=torch.float64)
        total.index_add_(0, index[inside], values[inside])
        return total.view(count, num_grid, num_grid) / (sizes[:, None, None] * size)

    share = (sizes / sizes.sum())[:, None, None]
    blocks = torch.stack([gather(speed[:, 0]), gather(speed[:, 1])], -1)
    current = (share[..., None] * blocks).sum(0)
    error = (share[..., None] * (blocks - current)).square().sum(0).sqrt()
    return Current(
        axes=tuple(
            (torch.arange(num_grid) + 0.5) * w - 3 * s for w, s in zip(width, spread, strict=True)
        ),
        density=(share * gather(torch.ones(len(index), dtype=torch.float64))).sum(0),
        current=current,
        standard_error=error * (count / max(count - 1, 1)) ** 0.5,
        directions=basis,
        stationary=is_stationary(plane),
    )
