"""How much gradient noise heats: in every tensor, in all parameters, in the top noise directions.

Gradient noise of covariance ``S`` (independent from step to step) acts as a bath of its own. With
the scheme's factor ``k``, in 1/(noise variance) of units of the temperature::

    momentum (B A O A)    k = h^2 (1 + c) / (4 (1 - c)) = h^2 / (4 tanh(f h / 2)),   c = exp(-f h)
    overdamped            k = h / 2

the virial ``x . grad U`` of a linear subspace of n dimensions with projector ``Q`` has the mean
``n T + k tr(Q S)`` on a Gaussian whose curvature leaves the subspace to itself, up to a factor
``4 / (4 - h^2 l)`` or ``2 / (2 - h l)``; of all parameters it has that mean whatever the curvature.
So the subspace is hotter by ``k tr(Q S) / n``. Its energy has a standard deviation of
``T sqrt(n / 2)``, so that it is shifted by t standard deviations for

    k tr(Q S) / n = t T sqrt(2 / n)

which is the bound: ``bound`` is the largest k at which no subspace that is looked at is shifted by
more than t. A sampler that takes the variance of each coordinate out of the noise that it injects
leaves ``S - diag(s_i^2)``, whose trace is zero and whose top directions are not; that is what
counts then.

Top directions follow the stochastic power method: each round of differences between half batches
turns those found on the rounds before, and tells how much noise there is along them, so that chance
does not pass for noise.

References: for the virial of a chain with noisy gradients, Leimkuhler and Shang, "Adaptive
thermostats for noisy gradient systems", 2016; Oja, "A simplified neuron model as a principal
component analyzer", 1982. The bound is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.typing import World

__all__ = ["Heat", "Subspace", "bound", "learn", "no_heat", "shifts"]

_FORGETTING, _HORIZON = 4.0, 50.0
_DIRECTIONS = 4
_MOST_TAKEN_OUT = 0.5


class Heat(NamedTuple):
    """Running means over rounds of what heats.

    Attributes:
        moving: mean square of each coordinate of what moves the particles, ``[D]``.
        noise: variance of each coordinate of the gradient noise, ``[D]``.
        along: mean squares along the directions, ``[K]``.
        directions: orthonormal, ``[K, D]``.
        rounds: 0-d.
    """

    moving: Tensor
    noise: Tensor
    along: Tensor
    directions: Tensor
    rounds: Tensor


class Subspace(NamedTuple):
    """A subspace of n dimensions, how much hotter it is relative to T, and by how many sd."""

    name: str
    size: int
    heat: float
    shift: float


def no_heat(like: Tensor, seed: int = 0) -> Heat:
    """Before the first round, for particles ``[P, D]``; directions are random."""
    size = like.shape[1]
    zero = torch.zeros(size, dtype=torch.float64, device=like.device)
    generator = torch.Generator().manual_seed(seed)
    count = min(_DIRECTIONS, size)
    first = torch.randn(size, count, generator=generator, dtype=torch.float64).to(like.device)
    directions = torch.linalg.qr(first).Q.mT.contiguous()
    return Heat(zero, zero, zero.new_zeros(count), directions, zero.new_zeros(()))


def learn(heat: Heat, moving: Tensor, noise: Tensor, world: World) -> Heat:
    """After a round with what moved the particles and its noise, ``[P, D]``, of mean zero."""
    finite = torch.isfinite(moving).all(-1) & torch.isfinite(noise).all(-1)
    share = world.mean(finite.double()).clamp(min=1e-12)
    moving, noise = (
        torch.where(finite.unsqueeze(1), each, 0.0).double() for each in (moving, noise)
    )
    parts = moving @ heat.directions.mT
    along = world.mean(parts.square()) / share
    turned = torch.stack(
        [world.mean(moving * part.unsqueeze(1)) / share for part in parts.unbind(1)]
    )
    weight = (_FORGETTING / (heat.rounds + _FORGETTING)).clamp(min=1 / _HORIZON)
    old = (1 - weight) * heat.along.unsqueeze(1) * heat.directions
    # In the first round nothing is known of the directions but what they turn to.
    begun = (heat.rounds > 0).to(along)
    directions = torch.linalg.qr((begun * old + weight * turned).mT).Q.mT.contiguous()
    sound = torch.isfinite(directions).all() & (turned.square().sum() > 0)

    def towards(before: Tensor, new: Tensor) -> Tensor:
        return before + weight * (new - before)

    return Heat(
        towards(heat.moving, world.mean(moving.square()) / share),
        towards(heat.noise, world.mean(noise.square()) / share),
        towards(heat.along, along),
        torch.where(sound, directions, heat.directions),
        heat.rounds + 1,
    )


def shifts(
    heat: Heat,
    factor: float,
    tensors: Mapping[str, slice],
    temperature: float = 1.0,
    compensated: bool = False,
    likelihood_sd: float = math.inf,
) -> list[Subspace]:
    """How hot each subspace is at a factor k, and by how many sd its energy is shifted.

    All the heat may go to the log-likelihood, whose standard deviation is smaller than that of the
    whole energy where the prior decides most directions; give it as ``likelihood_sd``, in nats.
    """
    left = heat.moving
    along = heat.along
    if compensated:
        taken = heat.noise.clamp(max=temperature / factor)
        left, along = left - taken, along - heat.directions.square() @ taken
    found = [
        (name, where.stop - where.start, float(left[where].mean()))
        for name, where in tensors.items()
    ]
    if len(tensors) > 1:
        found.append(("all parameters", len(left), float(left.mean())))
    top = along.cumsum(0) / torch.arange(1, len(along) + 1).to(along)
    found += [
        (f"the top {k + 1} noise direction{'s' * (k > 0)}", k + 1, each)
        for k, each in enumerate(top.tolist())
    ]
    unit = factor / temperature
    told = [Subspace(name, n, unit * v, unit * v * (n / 2) ** 0.5) for name, n, v in found]
    if math.isfinite(likelihood_sd) and likelihood_sd > 0:
        nats = 0.5 * factor * float(left.sum())
        mean = unit * float(left.mean())
        told.append(Subspace("the log-likelihood", len(left), mean, nats / likelihood_sd))
    return told


def bound(
    heat: Heat,
    tensors: Mapping[str, slice],
    tolerance: float,
    temperature: float = 1.0,
    compensated: bool = False,
    likelihood_sd: float = math.inf,
) -> float:
    """The largest factor k at which no subspace is shifted by more than ``tolerance`` sd.

    With compensation at most half of the temperature may come from the noise that is taken out,
    which keeps the injected variance off zero.

    Returns:
        k; infinite without noise.

    Examples:
        >>> heat = no_heat(torch.zeros(1, 2))._replace(
        ...     moving=torch.tensor([8.0, 8.0]), along=torch.tensor([8.0, 8.0])
        ... )
        >>> round(bound(heat, {"x": slice(0, 2)}, tolerance=0.1), 6)
        0.0125
    """

    def worst(factor: float, compensated: bool) -> float:
        found = shifts(heat, factor, tensors, temperature, compensated, likelihood_sd)
        return max(abs(each.shift) for each in found)

    unit = worst(1.0, False)
    if not unit > 0:
        return math.inf
    plain = tolerance / unit
    if not compensated:
        return plain
    hottest = max(each.heat for each in shifts(heat, 1.0, tensors, temperature))
    low, high = plain, max(plain, _MOST_TAKEN_OUT / hottest)
    for _ in range(30):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if worst(middle, True) <= tolerance else (low, middle)
    return low
