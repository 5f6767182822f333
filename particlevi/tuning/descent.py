"""Minimising a potential from all starting points at once.

With few parameters by BFGS, whose path does not depend on the scales of the parameters once it has
seen them, and Newton steps from the best point; with many by BFGS of limited memory, and of a net
by Adam.

References: Nocedal and Wright, "Numerical optimization", 2006, chapters 3, 6 and 7; Dauphin and
others, "Identifying and attacking the saddle point problem", 2014, for Newton steps by absolute
eigenvalues; Kingma and Ba, "Adam: a method for stochastic optimization", 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from particlevi.typing import Gradient

__all__ = [
    "Curvatures",
    "Dense",
    "Descent",
    "GradientAt",
    "Limited",
    "adam",
    "bfgs",
    "eigenpairs",
    "newton",
]

GradientAt = Callable[[Tensor], Gradient]

_ARMIJO = 1e-4


class Descent(NamedTuple):
    """Where an optimiser ended.

    Attributes:
        points: ``[P, D]``.
        potential: ``[P]``.
        num_gradients: gradients per chain that it took.
        path: points ``[P, D]`` on the way, where they are kept.
    """

    points: Tensor
    potential: Tensor
    num_gradients: int
    path: tuple[Tensor, ...] = ()

    @property
    def best(self) -> Tensor:
        """The lowest point, ``[D]``."""
        return self.points[self.lowest]

    @property
    def lowest(self) -> int:
        """The number of the lowest chain."""
        return int(self.potential.nan_to_num(nan=torch.inf).argmin())


class Curvatures(Protocol):
    """What a quasi-Newton method remembers: an inverse Hessian H of each chain."""

    def times(self, g: Tensor) -> Tensor:
        """``H g``, ``[P, D]``."""
        ...

    def learn(self, s: Tensor, y: Tensor, convex: Tensor) -> None:
        """From steps s and changes y of the gradient, ``[P, D]``, of the chains ``convex [P]``."""
        ...


class Dense:
    """H as a matrix ``[P, D, D]``, by the update of Broyden, Fletcher, Goldfarb and Shanno."""

    def __init__(self, like: Tensor):
        self.eye: Tensor = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
        self.inverse: Tensor = self.eye.repeat(len(like), 1, 1)
        self.fresh: Tensor = torch.ones(len(like), dtype=torch.bool, device=like.device)

    def times(self, g: Tensor) -> Tensor:
        """``H g``."""
        return torch.einsum("pij,pj->pi", self.inverse, g)

    def learn(self, s: Tensor, y: Tensor, convex: Tensor) -> None:
        """``(I - s y' / c) H (I - y s' / c) + s s' / c`` with ``c = s . y``."""
        c = (s * y).sum(-1)[:, None, None]
        first = (c[:, 0] / y.square().sum(-1, keepdim=True)).unsqueeze(-1) * self.eye
        before = torch.where((self.fresh & convex)[:, None, None], first, self.inverse)
        hy = torch.einsum("pij,pj->pi", before, y)
        cross = hy.unsqueeze(2) * s.unsqueeze(1)
        outer = s.unsqueeze(2) * s.unsqueeze(1)
        after = before - (cross + cross.mT) / c
        after = after + (1 + (y * hy).sum(-1)[:, None, None] / c) * outer / c
        found = torch.where(convex[:, None, None], after, before)
        self.inverse = torch.where(torch.isfinite(found), found, self.eye)
        self.fresh = self.fresh & ~convex


class Limited:
    """H by the last ten steps, ``[P, 10, D]``, from ``diag(first)`` up to a factor.

    Args:
        like: points ``[P, D]``.
        first: ``[D]``; ones if absent.
    """

    pairs = 10

    def __init__(self, like: Tensor, first: Tensor | None = None):
        num, size = like.shape
        self.first: Tensor = torch.ones_like(like[0]) if first is None else first
        self.s: Tensor = like.new_zeros(num, self.pairs, size)
        self.y: Tensor = torch.zeros_like(self.s)
        self.c: Tensor = like.new_full((num, self.pairs), torch.inf)
        self.scale: Tensor = like.new_ones(num, 1)

    def times(self, g: Tensor) -> Tensor:
        """``H g`` by the two loops of Nocedal."""
        shares = []
        for k in range(self.pairs):
            share = (self.s[:, k] * g).sum(-1, keepdim=True) / self.c[:, k, None]
            g = g - share * self.y[:, k]
            shares.append(share)
        found = self.scale * self.first * g
        for k in reversed(range(self.pairs)):
            back = (self.y[:, k] * found).sum(-1, keepdim=True) / self.c[:, k, None]
            found = found + (shares[k] - back) * self.s[:, k]
        return found

    def learn(self, s: Tensor, y: Tensor, convex: Tensor) -> None:
        """The newest step first, the oldest forgotten."""
        c = (s * y).sum(-1)
        for kept, new in ((self.s, s), (self.y, y), (self.c, c)):
            shifted = torch.cat([new.unsqueeze(1), kept[:, :-1]], 1)
            kept[convex] = shifted[convex]
        scale = (c / (y * self.first * y).sum(-1)).unsqueeze(1)
        self.scale = torch.where(convex.unsqueeze(1), scale, self.scale)


def bfgs(
    gradient_at: GradientAt,
    start: Tensor,
    max_gradients: int = 300,
    tolerance: float = 1e-6,
    memory: Callable[[Tensor], Curvatures] = Dense,
    keep: Container[int] | None = None,
) -> Descent:
    """Minimise from every point at once, with an inverse Hessian per chain.

    Every chain makes one trial per evaluation: a longer step after one that went down along a
    direction of negative curvature, a shorter one after one that did not go down enough.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        start: ``[P, D]``.
        max_gradients: at most so many evaluations per chain.
        tolerance: a chain is done when ``g' H^-1 g / 2``, the fall still to be had, is below so
            many nats.
        memory: how the inverse Hessian is held: ``Dense``, or ``Limited`` for many parameters.
        keep: after which numbers of evaluations the points are kept as the path; all if absent.

    >>> def bowl(x):
    ...     curvature = torch.tensor([1.0, 100.0, 1e4], dtype=torch.float64)
    ...     return Gradient(curvature * (x - 1), 0.5 * (curvature * (x - 1).square()).sum(-1))
    >>> found = bfgs(bowl, torch.zeros(2, 3, dtype=torch.float64), tolerance=1e-12)
    >>> bool((found.points - 1).abs().max() < 1e-3)
    True
    """
    x = start.clone()
    g, value = gradient_at(x)
    curvatures = memory(x)
    fresh = torch.ones(len(x), dtype=torch.bool, device=x.device)
    length = 1 / (1 + g.norm(dim=-1))
    still = torch.zeros_like(value)
    used, path = 1, [x]
    keep = range(max_gradients + 1) if keep is None else keep
    while used < max_gradients:
        direction = -curvatures.times(g)
        slope = (direction * g).sum(-1)
        done = (-0.5 * slope < tolerance) & ~fresh | (still > 30)
        if bool(done.all()):
            break
        trial = x + (length * ~done).unsqueeze(-1) * direction
        new_g, new_value = gradient_at(trial)
        used += 1
        finite = torch.isfinite(new_value) & torch.isfinite(new_g).all(-1)
        down = finite & (new_value <= value + _ARMIJO * length * slope) & ~done
        s, y = trial - x, new_g - g
        # Rounding hides differences of the potential near a minimum; the slope still tells.
        convex = down & ((s * y).sum(-1) > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1))
        curvatures.learn(s, y, convex)
        fresh = fresh & ~convex
        still = torch.where(down | done, 0.0 * still, still + 1)
        length = torch.where(convex, 1.0, torch.where(down, 2 * length, 0.3 * length))
        x = torch.where(down.unsqueeze(-1), trial, x)
        g = torch.where(down.unsqueeze(-1), new_g, g)
        value = torch.where(down, new_value, value)
        if used in keep:
            path.append(x)
    return Descent(x, value, used, tuple(path))


def adam(
    gradient_at: GradientAt, start: Tensor, num_steps: int = 200, learning_rate: float = 1e-2
) -> Descent:
    """Adam with a learning rate that falls to zero as a cosine; the last points.

    Args:
        gradient_at: points ``[P, D]`` to gradient and potential.
        start: ``[P, D]``.
        num_steps: evaluations per chain.
        learning_rate: of the first step, in units of the parameters.
    """
    x, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    value = start.new_zeros(len(start))
    for step in range(num_steps):
        g, value = gradient_at(x)
        g = torch.where(torch.isfinite(g), g, 0.0)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g.square()
        mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        rate = learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / num_steps)))
        x = x - rate.to(x) * mean / (spread.sqrt() + 1e-8)
    return Descent(x, value, num_steps)


def eigenpairs(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of a symmetric matrix; of its diagonal where they cannot be had.

    >>> eigenpairs(torch.tensor([[2.0, 0.0], [0.0, 3e30]]))[0]
    tensor([2.0000e+00, 3.0000e+30])
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except RuntimeError:
        values, vectors = matrix.diagonal(), torch.eye(len(matrix)).to(matrix)
    return values, vectors


def newton(
    gradient_at: GradientAt,
    hessian_at: Callable[[Tensor], Tensor],
    start: Tensor,
    max_steps: int = 30,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor, int]:
    """Minimise from one point by Newton steps along ``|H|^-1 g``, with the best of 16 lengths.

    Returns:
        The point ``[D]``, its Hessian ``[D, D]``, and the gradients of one particle that it took
        (a Hessian counts as 2 D).
    """
    x, used = start, 0
    for _ in range(max_steps):
        g, value = (part[0] for part in gradient_at(x.unsqueeze(0)))
        hessian = hessian_at(x)
        used += 1 + 2 * len(x)
        values, vectors = eigenpairs(hessian)
        size = values.abs()
        step = -vectors @ ((vectors.mT @ g) / size.clamp(min=1e-12 * float(size.max())))
        if not bool(torch.isfinite(step).all()) or float(-step @ g) < 2 * tolerance:
            break
        lengths = 2.0 ** torch.arange(3, -13, -1, dtype=x.dtype, device=x.device)
        trials = x + lengths.unsqueeze(1) * step
        found = gradient_at(trials).potential
        used += len(trials)
        best = found.nan_to_num(nan=torch.inf).argmin()
        if not float(found[best]) < float(value):
            break
        x = trials[best]
    return x, hessian, used
