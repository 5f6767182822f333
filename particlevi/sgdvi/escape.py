"""How long SGD stays in a basin: first passage over a barrier with state-dependent noise.

In one direction, with slope ``f'(x)`` of the loss, noise ``C(x)`` and temperature ``T``, in Ito's
sense and with ``eta`` of time per step::

    dx = -f'(x) dt + sqrt(2 T C(x)) dW

The mean time from ``a`` to ``c``, with nothing to the left of ``l``, is the double integral::

    tau = int_a^c exp(V(y)/T) int_l^y exp(-V(z)/T) / (T C(z)) dz dy,    V = int f' / C

``V`` takes the place of the loss: a basin with much noise is left sooner than its depth says. For
small T the integrals are Gaussian ones (Kramers)::

    tau = 2 pi sqrt(C(b) / (C(a) f''(a) |f''(b)|)) exp((V(b) - V(a)) / T)

In many dimensions, with constant diffusion ``D`` and effective potential ``Phi`` of Hessians
``U_a`` at the minimum and ``U_b`` at the saddle (Eyring and Kramers)::

    tau = (2 pi / l) sqrt(|det U_b| / det U_a) exp((Phi(b) - Phi(a)) / T)

with ``-l`` the negative eigenvalue of ``D U_b``.

Reference: Kramers, "Brownian motion in a field of force and the diffusion model of chemical
reactions", 1940; Gardiner, "Handbook of stochastic methods", 1985, for the double integral; the
form with state-dependent noise is derived here.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_function, check_positive, check_positive_int, is_number
from particlevi.sgdvi._linear import as_matrix, check_one_size, is_symmetric

__all__ = ["Escape", "escape_time", "eyring_kramers_time"]

Field = Callable[[Tensor], Tensor]


class Escape(NamedTuple):
    """The mean time to leave a basin, in units in which a step of SGD takes ``eta``.

    Attributes:
        time: exact for the diffusion.
        kramers: its limit for low temperatures.
        barrier: ``(V(b) - V(a)) / T``, in nats.
        barrier_loss: the same if the noise were what it is at the minimum.
    """

    time: float
    kramers: float
    barrier: float
    barrier_loss: float


def escape_time(
    slope: Field,
    noise: Field,
    *,
    temperature: float,
    minimum: float,
    saddle: float,
    end: float,
    wall: float,
    num_grid: int = 20_001,
) -> Escape:
    """The mean first passage from a minimum over a barrier, along one direction.

    Args:
        slope: ``f'`` of points ``[X]``.
        noise: ``C > 0`` of points ``[X]``.
        temperature: ``T = eta / (2 b)``, as ``particlevi.noise.temperature`` gives it.
        minimum: a, where the run starts.
        saddle: b, the top of the barrier.
        end: c, beyond the barrier: the run has escaped when it comes there.
        wall: l, on the other side of the minimum, so far up that no run comes there.
        num_grid: points of the quadrature.

    Raises:
        ValueError: points that are not in order, or a slope or noise that is not finite.

    Examples:
        >>> def slope(x): return x**3 - x
        >>> points = {"minimum": -1.0, "saddle": 0.0, "end": 1.0, "wall": -3.0}
        >>> even = escape_time(slope, torch.ones_like, temperature=0.05, **points)
        >>> round(even.barrier, 6), round(even.kramers / even.time, 2)
        (5.0, 0.9)
    """
    check_positive("temperature", temperature)
    check_positive_int("num_grid", num_grid, minimum=101)
    points = (wall, minimum, saddle, end)
    if not all(is_number(p) and math.isfinite(p) for p in points):
        raise ValueError(f"wall, minimum, saddle and end must be finite numbers, got {points}.")
    signs = np.sign(np.diff(np.array(points, dtype=float)))
    if not (abs(signs.sum()) == len(signs)):
        raise ValueError(
            f"wall, minimum, saddle and end must be in this order along the line, got {points}."
        )
    x = torch.linspace(float(wall), float(end), num_grid, dtype=torch.float64)
    s, c = _field("slope", slope, x), _field("noise", noise, x)
    if (c <= 0).any():
        raise ValueError(f"noise must be above 0 everywhere, got {float(c.min()):.3g}.")
    v = _integral(s / c, x) / temperature
    v = v - v[_nearest(x, minimum)]
    # From right to left dx is negative twice: in both integrals.
    inner = _integral(torch.exp(-v) / (temperature * c), x)
    a, b = _nearest(x, minimum), _nearest(x, saddle)
    outer = _integral(torch.exp(v[a:]) * inner[a:], x[a:])
    step = float(x[1] - x[0])
    bend_a, bend_b = (float(s[i + 1] - s[i - 1]) / (2 * step) for i in (a, b))
    if bend_a <= 0 or bend_b >= 0:
        raise ValueError(
            f"The slope must rise at the minimum and fall at the saddle, got {bend_a:.3g} and "
            f"{bend_b:.3g}."
        )
    factor = 2 * math.pi * math.sqrt(float(c[b] / c[a]) / (bend_a * -bend_b))
    height = float(_integral(s, x)[b] - _integral(s, x)[a])
    return Escape(
        time=float(outer[-1]),
        kramers=factor * math.exp(float(v[b])),
        barrier=float(v[b]),
        barrier_loss=height / float(c[a]) / temperature,
    )


def _field(name: str, field: Field, x: Tensor) -> Tensor:
    check_function(name, field, "points [X]", takes=1)
    found = field(x)
    if not isinstance(found, Tensor) or found.shape != x.shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{name} must map points [X] to a tensor [X], got {got}.")
    if not torch.isfinite(found).all():
        raise ValueError(f"{name} is not finite between the wall and the end.")
    return found.double()


def _integral(values: Tensor, x: Tensor) -> Tensor:
    """The integral from the first point to each, by trapezoids."""
    parts = 0.5 * (values[1:] + values[:-1]) * x.diff()
    return torch.cat([torch.zeros(1, dtype=x.dtype), parts.cumsum(0)])


def _nearest(x: Tensor, point: float) -> int:
    return int((x - point).abs()[1:-1].argmin()) + 1


def eyring_kramers_time(
    minimum_hessian: Tensor,
    saddle_hessian: Tensor,
    barrier: float,
    *,
    temperature: float,
    diffusion: Tensor | None = None,
) -> float:
    """The mean time over a saddle of the effective potential, for low temperatures.

    Args:
        minimum_hessian: ``U_a [D, D]``, positive.
        saddle_hessian: ``U_b [D, D]``, with one negative eigenvalue.
        barrier: ``Phi(b) - Phi(a)``, above 0.
        temperature: T.
        diffusion: ``D [D, D]`` of ``dx = -D grad Phi dt + sqrt(2 T D) dW``; 1 if absent.

    Raises:
        ValueError: matrices that are no minimum and no saddle.

    Examples:
        >>> bowl, top = torch.eye(2), torch.diag(torch.tensor([-1.0, 1.0]))
        >>> round(eyring_kramers_time(bowl, top, 1.0, temperature=0.2), 3)
        932.507
    """
    check_positive("barrier", barrier)
    check_positive("temperature", temperature)
    low, top = (
        as_matrix("minimum_hessian", minimum_hessian),
        as_matrix("saddle_hessian", saddle_hessian),
    )
    check_one_size(low, top)
    d = np.eye(len(low)) if diffusion is None else as_matrix("diffusion", diffusion)
    check_one_size(low, d)
    for name, matrix in (("minimum_hessian", low), ("saddle_hessian", top), ("diffusion", d)):
        if not is_symmetric(matrix):
            raise ValueError(f"{name} must be symmetric.")
    if np.linalg.eigvalsh(low).min() <= 0 or np.linalg.eigvalsh(d).min() <= 0:
        raise ValueError("minimum_hessian and diffusion must be positive definite.")
    values = np.linalg.eigvalsh(top)
    if not values[0] < 0 or (len(values) > 1 and not values[1] > 0):
        raise ValueError(
            f"saddle_hessian must have one negative eigenvalue and no zero, got {values[:3]}."
        )
    root = np.linalg.cholesky(d)
    unstable = -float(np.linalg.eigvalsh(root.T @ top @ root)[0])
    logs = np.linalg.slogdet(top)[1] - np.linalg.slogdet(low)[1]
    exponent = 0.5 * logs + barrier / temperature
    if exponent > math.log(sys.float_info.max) - math.log(2 * math.pi / unstable):
        raise ValueError(
            f"The time, about exp({exponent:.3g}), is beyond the range of numbers: the temperature "
            f"{temperature:g} is too small for a barrier of {barrier:g}."
        )
    return 2 * math.pi / unstable * math.exp(exponent)
