"""The isokinetic flow of microcanonical samplers: unit directions in place of momenta.

A particle moves at unit speed in the direction ``u``, ``|u| = 1``, which the force turns. With
``e = -grad U / |grad U|``, ``s = h |grad U| / (D - 1)`` and ``c = e . u``, a kick of length h is::

    u <- (e (sinh s + c (cosh s - 1)) + u) / (cosh s + c sinh s)
    W <- W + (D - 1) log(cosh s + c sinh s)

and a drift is ``theta <- theta + h u``. Both keep the law ``exp(-U)`` times that of the uniform
direction but for the energy change ``W + U(theta') - U(theta)``, which vanishes with the step.
``refresh`` turns u at random towards the uniform law, which it keeps.

References: Robnik, De Luca, Silverstein and Seljak, "Microcanonical Hamiltonian Monte Carlo", 2023;
Omelyan, Mryglod and Folk, "Symplectic analytically integrable decomposition algorithms", 2003, for
the coefficients of the integrators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from particlevi.samplers._metropolis import kinetic_energy
from particlevi.typing import Gradient

__all__ = ["INTEGRATORS", "Integrator", "Point", "direction", "flow", "kick", "leapfrog", "refresh"]

Integrator = Literal["leapfrog", "minimal_norm", "omelyan"]


class Scheme(NamedTuple):
    """Shares of the step of kicks and of the drifts between them; symmetric, each sums to 1."""

    kicks: tuple[float, ...]
    drifts: tuple[float, ...]


_MINIMAL = 0.1931833275037836
_B1, _B2 = 0.08398315262876693, 0.6822365335719091
_A1, _A2 = 0.2539785108410595, -0.03230286765269967
_B3, _A3 = 0.5 - _B1 - _B2, 1 - 2 * (_A1 + _A2)

INTEGRATORS: dict[str, Scheme] = {
    "leapfrog": Scheme((0.5, 0.5), (1.0,)),
    "minimal_norm": Scheme((_MINIMAL, 1 - 2 * _MINIMAL, _MINIMAL), (0.5, 0.5)),
    "omelyan": Scheme((_B1, _B2, _B3, _B3, _B2, _B1), (_A1, _A2, _A3, _A2, _A1)),
}
"""A step takes as many gradients as there are drifts: 1, 2 and 5."""


class Point(NamedTuple):
    """A particle in flight: position, velocity or direction, gradient ``[P, D]``, potential."""

    position: Tensor
    velocity: Tensor
    gradient: Tensor
    potential: Tensor


def direction(normal: Tensor) -> Tensor:
    """Uniform directions ``[P, D]`` from standard normal numbers."""
    unit: Tensor = normal / normal.norm(dim=-1, keepdim=True)
    return unit


def refresh(u: Tensor, normal: Tensor, time: Tensor) -> Tensor:
    """``u`` after partial loss of memory over ``time``, in units of the decoherence length.

    ``u <- (u + nu z) / |u + nu z|`` with ``nu^2 = (exp(2 time) - 1) / D``.
    """
    nu = (torch.expm1((2 * time).clamp(max=60.0)) / u.shape[-1]).sqrt()
    return direction(u + nu * normal)


def kick(u: Tensor, gradient: Tensor, h: Tensor | float) -> tuple[Tensor, Tensor]:
    """The direction ``[P, D]`` after a kick of length h, and the work ``[P]``.

    >>> u = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    >>> turned, work = kick(u, torch.tensor([[0.0, -2.0]], dtype=torch.float64), 0.5)
    >>> float(turned.norm()), float(work)
    (1.0, 0.9095...)
    """
    free = u.shape[-1] - 1
    norm = gradient.norm(dim=-1, keepdim=True)
    e = -gradient / norm.clamp(min=torch.finfo(u.dtype).tiny)
    s = h * norm / free
    zeta = (-s).exp()
    c = (e * u).sum(-1, keepdim=True)
    turned = e * (1 - zeta) * (1 + zeta + c * (1 - zeta)) + 2 * zeta * u
    work = free * (s - math.log(2) + (1 + c + (1 - c) * zeta.square()).log())
    return direction(turned), work.squeeze(-1)


GradientAt = Callable[[Tensor], Gradient]

Flow = Callable[[Point, GradientAt, Tensor], tuple[Point, Tensor]]
"""A step of length h: ``(point, gradient_at, h) -> (point, energy change [P])``."""


def flow(integrator: Integrator) -> Flow:
    """A step of the isokinetic flow."""
    scheme = INTEGRATORS[integrator]

    def step(point: Point, gradient_at: GradientAt, h: Tensor) -> tuple[Point, Tensor]:
        x, u, g, before = point
        potential, work = before, torch.zeros_like(before)
        for share, drift in zip(scheme.kicks, (*scheme.drifts, None), strict=True):
            u, done = kick(u, g, share * h)
            work = work + done
            if drift is not None:
                x = x + drift * h * u
                g, potential = gradient_at(x)
        return Point(x, u, g, potential), work + potential - before

    return step


def leapfrog(integrator: Integrator) -> Flow:
    """A step of Hamilton's equations with unit mass, by the same integrators."""
    scheme = INTEGRATORS[integrator]

    def step(point: Point, gradient_at: GradientAt, h: Tensor) -> tuple[Point, Tensor]:
        x, p, g, before = point
        potential, kinetic = before, kinetic_energy(p)
        for share, drift in zip(scheme.kicks, (*scheme.drifts, None), strict=True):
            p = p - share * h * g
            if drift is not None:
                x = x + drift * h * p
                g, potential = gradient_at(x)
        return Point(x, p, g, potential), potential - before + kinetic_energy(p) - kinetic

    return step
