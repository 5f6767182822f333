"""A low path between two solutions of one problem, and the barrier on it.

The path is a quadratic Bezier curve with a free bend ``c``::

    phi(t) = (1 - t)^2 a + 2 t (1 - t) c + t^2 b

The bend makes ``E_t U(phi(t))`` least, t uniform in [0, 1], on minibatches by Adam; with ``c`` half
way the curve is the straight line. The barrier is measured on the potential itself. Where that is
done on minibatches, all points of the path see the same ones, so that differences between points
are known better than their values; and where the highest point lies is read off one half of the
batches and how high it is off the other, since the largest of noisy values is too large.

Reference: Garipov, Izmailov, Podoprikhin, Vetrov and Wilson, "Loss surfaces, mode connectivity, and
fast ensembling of DNNs", 2018, for the curve; Frankle, Dziugaite, Roy and Carbin, "Linear mode
connectivity and the lottery ticket hypothesis", 2020, for the barrier above the straight line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive, check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi.data import Data, DataLike, as_data, as_particles
from particlevi.gradients._evaluate import value_and_grad
from particlevi.gradients.full import full_gradient
from particlevi.noise.covariance import Estimate
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.sgdvi._checks import check_vector
from particlevi.typing import Batch, Potential

__all__ = ["Barrier", "Curve", "barrier", "connect", "straight"]


@dataclass(frozen=True, eq=False, repr=False)
class Curve(Shown):
    """A quadratic Bezier curve in the space of parameters.

    Attributes:
        start: ``a [D]``.
        bend: ``c [D]``.
        end: ``b [D]``.
    """

    start: Tensor
    bend: Tensor
    end: Tensor

    def points(self, fractions: Tensor) -> Tensor:
        """``phi(t) [..., D]`` at ``t [...]``."""
        t = fractions.to(self.start)[..., None]
        return (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.bend + t**2 * self.end

    def velocity(self, fractions: Tensor) -> Tensor:
        """``dphi/dt [..., D]`` at ``t [...]``."""
        t = fractions.to(self.start)[..., None]
        return 2 * (1 - t) * (self.bend - self.start) + 2 * t * (self.end - self.bend)


def straight(start: Tensor, end: Tensor) -> Curve:
    """The straight line between two points ``[D]``, at constant speed.

    Raises:
        ValueError: points of different sizes, or one point twice.

    Examples:
        >>> path = straight(torch.zeros(2), torch.tensor([1.0, 2.0]))
        >>> path.points(torch.tensor(0.25))
        tensor([0.2500, 0.5000])
    """
    check_vector("start", start)
    check_vector("end", end, len(start))
    if torch.equal(start.to(end), end):
        raise ValueError("start and end are one point: there is no path between them.")
    return Curve(start, (start + end) / 2, end)


def connect(
    potential: Potential,
    data: DataLike,
    start: Tensor,
    end: Tensor,
    *,
    num_steps: int = 1000,
    batch_size: int | None = None,
    points_per_step: int = 4,
    learning_rate: float = 0.01,
    seed: int = 0,
) -> Curve:
    """A curve of low potential between two solutions.

    Every step evaluates ``points_per_step`` points, one in each of as many equal parts of [0, 1].

    Args:
        potential: what both ends are solutions of.
        data: as given to ``sample``; None for a density without data.
        start: ``a [D]``.
        end: ``b [D]``.
        num_steps: of Adam.
        batch_size: data per step; all if absent.
        points_per_step: t's per step.
        learning_rate: of Adam, in units of the parameters; it falls to 0 as half a cosine.
        seed: of points and batches.

    Raises:
        ValueError: arguments that do not fit, or a potential that is not finite on the way.

    Examples:
        A ring, whose middle is high:

        >>> import particlevi as pvi
        >>> ring = pvi.from_log_density(lambda w: -10 * (w.norm() - 1) ** 2, num_params=2)
        >>> ends = torch.tensor([-1.0, 0.01]), torch.tensor([1.0, 0.01])
        >>> found = connect(ring, None, *ends, num_steps=300, learning_rate=0.05)
        >>> round(barrier(straight(*ends), ring, None).height.value, 1)
        9.8
        >>> barrier(found, ring, None).height.value < 1
        True
    """
    check_positive_int("num_steps", num_steps)
    check_positive_int("points_per_step", points_per_step)
    check_positive("learning_rate", learning_rate)
    model, checked, curve = _prepared(potential, data, straight(start, end))
    draw = _batches(checked, batch_size, seed)
    generator = torch.Generator().manual_seed(int(seed))
    bend = curve.bend.clone().requires_grad_()
    path = Curve(curve.start, bend, curve.end)
    optimizer = torch.optim.Adam([bend], lr=learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    count = model.num_data or 1
    for _ in range(num_steps):
        parts = torch.rand(points_per_step, generator=generator, dtype=torch.float64)
        t = (torch.arange(points_per_step) + parts) / points_per_step
        points = path.points(t)
        fixed = points.detach()
        if draw is None:
            slope = full_gradient(model, fixed, checked).gradient
        else:
            slope = value_and_grad(model, fixed, draw(), model.chunk_size).gradient
        optimizer.zero_grad()
        points.backward(slope / (count * points_per_step))
        assert bend.grad is not None
        check_finite("The potential along the curve", bend.grad, "Lower learning_rate.")
        optimizer.step()
        scheduler.step()
    return Curve(curve.start, bend.detach(), curve.end)


@dataclass(frozen=True, eq=False, repr=False)
class Barrier(Shown):
    """The potential along a path, in nats.

    Standard errors are those over minibatches, and 0 where all the data were used.

    Attributes:
        fractions: t, ``[G]``.
        potential: ``U(phi(t)) - U(a)``, ``[G]``.
        standard_error: of it, ``[G]``.
        height: the most of ``U(phi(t)) - (1 - t) U(a) - t U(b)`` over the path.
        from_start: the most of ``U(phi(t)) - U(a)``.
        from_end: the most of ``U(phi(t)) - U(b)``.
    """

    fractions: Tensor
    potential: Tensor
    standard_error: Tensor
    height: Estimate
    from_start: Estimate
    from_end: Estimate

    def __str__(self) -> str:
        """The three heights."""
        named = {
            "above the straight line between the ends": self.height,
            "above the start": self.from_start,
            "above the end": self.from_end,
        }
        lines = [
            f"  {found.value:.4g} +- {found.standard_error:.2g} {where}"
            for where, found in named.items()
        ]
        return "\n".join(["barrier in nats", *lines])


def barrier(
    curve: Curve,
    potential: Potential,
    data: DataLike = None,
    *,
    num_points: int = 21,
    batch_size: int | None = None,
    num_batches: int = 40,
    seed: int = 0,
) -> Barrier:
    """How high a path rises between its ends.

    Args:
        curve: from ``connect`` or ``straight``.
        potential: in nats.
        data: as given to ``sample``; None for a density without data.
        num_points: G, of the path, ends included.
        batch_size: data per minibatch, drawn without replacement; all data at once if absent.
        num_batches: minibatches that all points see, at least 8.
        seed: of the minibatches.

    Raises:
        TypeError: no curve.
        ValueError: arguments that do not fit, or a potential that is not finite on the path.

    Examples:
        >>> import particlevi as pvi
        >>> well = pvi.from_log_density(lambda w: -((w**2).sum() - 1) ** 2, num_params=1)
        >>> print(barrier(straight(torch.tensor([-1.0]), torch.tensor([1.0])), well))
        barrier in nats
          1 +- 0 above the straight line between the ends
          1 +- 0 above the start
          1 +- 0 above the end
    """
    check_positive_int("num_points", num_points, minimum=3)
    check_positive_int("num_batches", num_batches, minimum=8)
    model, checked, path = _prepared(potential, data, curve)
    draw = _batches(checked, batch_size, seed)
    t = torch.linspace(0, 1, num_points, dtype=torch.float64)
    points = path.points(t)
    with torch.no_grad():
        if draw is None:
            energy = model.prior_energy(points).double()
            for batch in checked.chunks(model.at_once(1024)):
                energy = energy + model.data_energy(points, batch).double()
            rows = energy[None]
        else:
            rows = torch.stack([model(points, draw()).double() for _ in range(num_batches)])
    rows = rows.cpu()
    check_finite("The potential on the path", rows, "Take ends that have not diverged.")
    start, end = rows[:, :1], rows[:, -1:]
    above = rows - start
    error = above.std(0) / math.sqrt(len(rows)) if len(rows) > 1 else torch.zeros_like(above[0])
    return Barrier(
        fractions=t,
        potential=above.mean(0),
        standard_error=error,
        height=_highest(rows - (1 - t) * start - t * end),
        from_start=_highest(above),
        from_end=_highest(rows - end),
    )


def _highest(rows: Tensor) -> Estimate:
    """The largest column mean of ``[K, G]``, found on one half of the rows, taken on the other."""
    if len(rows) == 1:
        return Estimate(float(rows.max()), 0.0)
    halves = rows[::2], rows[1::2]
    taken = [
        here[:, int(there.mean(0).argmax())] for here, there in (halves, (halves[1], halves[0]))
    ]
    error = math.sqrt(sum(float(part.var()) / len(part) for part in taken)) / 2
    return Estimate(sum(float(part.mean()) for part in taken) / 2, error)


def _prepared(
    potential: Potential, data: DataLike, curve: Curve
) -> tuple[ModelPotential, Data, Curve]:
    """The potential, its data and the curve where it is."""
    if not isinstance(curve, Curve):
        raise TypeError(f"curve must come from connect or straight, got {type(curve).__name__}.")
    model = as_potential(potential)
    rows = torch.stack([curve.start, curve.bend, curve.end])
    placed = as_particles(rows, model, model.num_params, "start and end")
    return model, as_data(data, model), Curve(*placed.unbind())


def _batches(data: Data, batch_size: int | None, seed: int) -> Callable[[], Batch] | None:
    """A function that draws a minibatch, or None for all the data."""
    check_seed("seed", seed)
    if batch_size is None:
        return None
    check_positive_int("batch_size", batch_size)
    if batch_size > data.num_data:
        raise ValueError(f"batch_size must be at most the {data.num_data} data, got {batch_size}.")
    generator = torch.Generator().manual_seed(int(seed))
    return lambda: data.take(torch.randperm(data.num_data, generator=generator)[:batch_size])
