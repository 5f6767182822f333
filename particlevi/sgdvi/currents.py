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

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive, check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi.draws import Draws
from particlevi.sgdvi._checks import as_directions, check_field, check_points
from particlevi.sgdvi.series import as_series, block_labels, is_stationary
from particlevi.sgdvi.slices import principal_directions

__all__ = ["Current", "DriftParts", "decompose_drift", "probability_current"]

Field = Callable[[Tensor], Tensor]
_EXACT, _KNOWN = 0.01, 0.3


@dataclass(frozen=True, eq=False, repr=False)
class DriftParts(Shown):
    """The drift at points ``[S, D]``, and whether the potential fits it.

    Attributes:
        drift: ``-grad f [S, D]``.
        gradient: ``-D grad Phi + T div D [S, D]``, the part that descends the potential.
        circulating: ``j [S, D]``, the rest.
        flow_divergence: ``div(j rho) / rho [S]``, per unit of time; 0 where ``Phi`` is right.
        standard_error: of ``flow_divergence``, from the potential's own resampling, ``[S]``; NaN
            for a potential that has none.
        imbalance: ``|flow_divergence|`` over the sum of the sizes of its two parts, the inflow by
            the drift and the outflow by diffusion, which cancel where ``Phi`` is right; root mean
            squares, in [0, 1]. A known potential has 0 up to rounding, a wrong one much of 1.
        p_value: of ``flow_divergence = 0`` at all points together; NaN without standard errors.
        verdict: ``"consistent"``: ``p_value`` above 0.05 and an error that is small against the
            two parts, below 0.3 of them, or no error and an imbalance below 0.01.
            ``"inconsistent"``: the potential does not fit this drift. ``"unknown"``: not rejected,
            but known too little to say.
    """

    drift: Tensor
    gradient: Tensor
    circulating: Tensor
    flow_divergence: Tensor
    standard_error: Tensor
    imbalance: float
    p_value: float
    verdict: Literal["consistent", "inconsistent", "unknown"]

    @property
    def share(self) -> float:
        """``|j|`` over ``|grad f|``, root mean square over the points."""
        return float(self.circulating.norm() / self.drift.norm())


def decompose_drift(
    points: Tensor,
    drift: Field,
    potential: Field,
    diffusion: Tensor | Field,
    temperature: float,
    seed: int = 0,
) -> DriftParts:
    """Split the drift into descent of the effective potential and circulation.

    Args:
        points: ``[S, D]``.
        drift: ``-grad f``, points ``[S, D]`` to ``[S, D]``, differentiable by torch.
        potential: ``Phi``, points ``[S, D]`` to ``[S]``, likewise: a fitted or a known one. A
            fitted one (with ``resampled``) brings errors, a p-value and a verdict.
        diffusion: ``D [D, D]`` (the gradient covariance ``C``), or ``[S, D]`` to ``[S, D, D]``.
        temperature: T, as ``particlevi.noise.temperature`` gives it.
        seed: of the p-value's draws from the law of the error.

    Raises:
        ValueError: points or functions of other shapes, or values that are not finite.

    Examples:
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
        >>> parts.verdict
        'consistent'
    """
    check_positive("temperature", temperature)
    check_seed("seed", seed)
    check_points("points", points)
    size = points.shape[1]
    check_field("drift", drift, points, (size,))
    check_field("potential", potential, points, ())
    if isinstance(diffusion, Tensor):
        if diffusion.shape != (size, size):
            raise ValueError(f"diffusion must be [{size}, {size}], got {list(diffusion.shape)}.")
    else:
        check_field("diffusion", diffusion, points, (size, size))
    again = getattr(potential, "resampled", None)

    def values(x: Tensor) -> Tensor:
        own = potential(x[None]).to(x.dtype)
        return own if again is None else torch.cat([own, again(x[None])[:, 0].to(x.dtype)])

    def matrix(x: Tensor) -> Tensor:
        return diffusion.to(x) if isinstance(diffusion, Tensor) else diffusion(x[None])[0].to(x)

    def descent(x: Tensor) -> Tensor:
        """``[R + 1, D]``, of the potential and its replicates."""
        slope = torch.func.jacrev(values)(x)
        found = -slope @ matrix(x).T
        if not isinstance(diffusion, Tensor):
            found = found + temperature * torch.einsum("ijj->i", torch.func.jacrev(matrix)(x))
        down: Tensor = found
        return down

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        """Inflow by the drift and outflow by diffusion, ``div(v rho) / rho [R + 1]`` each."""
        slope = torch.func.jacrev(values)(x)
        inflow = torch.func.jacrev(lambda y: drift(y[None])[0])(x).trace()
        inflow = inflow - slope @ drift(x[None])[0] / temperature
        down = descent(x)
        outflow = torch.func.jacrev(descent)(x).diagonal(dim1=1, dim2=2).sum(1)
        return inflow, outflow - (slope * down).sum(1) / temperature

    rows = []
    for x in points.detach():
        whole, down = drift(x[None])[0].detach(), descent(x)[0].detach()
        rows.append((whole, down, *(part.detach() for part in both(x))))
    whole, down, inflow, outflow = (torch.stack(part) for part in zip(*rows, strict=True))
    flow = (inflow - outflow).double().T
    check_finite("the flow's divergence", flow, "Leave out points where the potential overflows.")
    scale = float(inflow[:, 0].double().norm() + outflow[:, 0].double().norm())
    size_of_flow = float(flow[0].norm())
    imbalance = size_of_flow / scale if scale > 0 else 0.0
    error, p_value = _tested(flow, seed)
    return DriftParts(
        drift=whole,
        gradient=down,
        circulating=whole - down,
        flow_divergence=flow[0].to(points.dtype),
        standard_error=error.to(points.dtype),
        imbalance=imbalance,
        p_value=p_value,
        verdict=_verdict(imbalance, p_value, float(error.norm()) / scale if scale > 0 else 0.0),
    )


def _tested(flow: Tensor, seed: int) -> tuple[Tensor, float]:
    """Standard errors ``[S]`` and the p-value of the mean square of ``flow / error``.

    Its null distribution is that of a Gaussian with the replicates' covariance, which is known from
    R of them: so the squares are over a chi-square variable, as in Hotelling's test.
    """
    if len(flow) < 3:
        return torch.full_like(flow[0], math.nan), math.nan
    deviation = flow[1:] - flow[1:].mean(0)
    freedom = len(deviation) - 1
    error = (deviation.square().sum(0) / freedom).sqrt()
    unit = error.clamp(min=torch.finfo(error.dtype).tiny)
    observed = (flow[0] / unit).square().mean()
    generator = torch.Generator().manual_seed(int(seed))
    weights = torch.randn(999, len(deviation), generator=generator, dtype=flow.dtype)
    chi = torch.randn(999, freedom, generator=generator, dtype=flow.dtype).square().mean(1)
    drawn = (weights @ (deviation / unit) / math.sqrt(freedom)).square().mean(1) / chi
    return error, (1 + int((drawn >= observed).sum())) / 1000


def _verdict(
    imbalance: float, p_value: float, share: float
) -> Literal["consistent", "inconsistent", "unknown"]:
    if math.isnan(p_value):
        return "consistent" if imbalance < _EXACT else "inconsistent"
    if p_value <= 0.05:
        return "inconsistent"
    return "consistent" if share < _KNOWN else "unknown"


@dataclass(frozen=True, eq=False, repr=False)
class Current(Shown):
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
    num_grid = int(num_grid)
    series = as_series(draws)
    given = principal_directions(series) if directions is None else directions
    basis = as_directions("directions", given, series.shape[-1], 2)
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
