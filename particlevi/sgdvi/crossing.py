"""At which temperature SGD goes from one mode to another, along a path between them.

In the floor of a valley, with arc length ``s``, slope ``f'`` of the mean loss along the path and
noise ``C_s = u' C u`` along its tangent ``u``, SGD at temperature ``T = eta / (2 b)`` is::

    ds = -f'(s) dt + sqrt(2 T C_s(s)) dW

so what it has to climb is ``V = int f' / C_s ds``, in units of T, and not the loss. The posterior
climbs ``N f`` in nats; the temperature at which it would have SGD's barrier is::

    tau = N (f(top) - f(start)) / ((V(top) - V(start)) / T)

What is left out: the force across the path, which is 0 in the floor of a valley, and the width of
the valley, which changes times by a factor and barriers by order T.

Reference: Kramers, "Brownian motion in a field of force and the diffusion model of chemical
reactions", 1940; the form with state-dependent noise is derived in ``escape``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi._shown import Shown
from particlevi.noise.covariance import GradientNoise, check_noise
from particlevi.sgdvi._checks import check_vector
from particlevi.sgdvi.connectivity import Curve

__all__ = ["Crossing", "crossing"]


@dataclass(frozen=True, eq=False, repr=False)
class Crossing(Shown):
    """Loss, noise and effective potential along a path.

    Attributes:
        fractions: t, ``[G]``.
        length: s, ``[G]``.
        loss: ``f - f(start)``, ``[G]``.
        noise: ``C_s``, ``[G]``.
        across: the share of ``|grad f|^2`` that is across the path, ``[G]``; in the floor of a
            valley near 0 where the loss rises or falls.
        potential: ``(V - V(start)) / T`` in nats, ``[G]``.
        barrier: its highest value.
        barrier_back: the same seen from the end.
        temperature: tau from the start, in units in which the posterior has 1; NaN where the
            path does not rise.
        temperature_back: from the end.
    """

    fractions: Tensor
    length: Tensor
    loss: Tensor
    noise: Tensor
    across: Tensor
    potential: Tensor
    barrier: float
    barrier_back: float
    temperature: float
    temperature_back: float

    def __str__(self) -> str:
        """Both barriers and temperatures."""
        return (
            f"barrier {self.barrier:.4g} nats forth, {self.barrier_back:.4g} back; "
            f"temperature {self.temperature:.4g} forth, {self.temperature_back:.4g} back"
        )


def crossing(
    curve: Curve, noise: GradientNoise, *, temperature: float, num_points: int = 41
) -> Crossing:
    """The barrier that SGD has to climb along a path, and its temperature there.

    Args:
        curve: from ``connect`` or ``straight``.
        noise: of the same model, at any point.
        temperature: ``T = eta / (2 b)``, as ``particlevi.noise.temperature`` gives it.
        num_points: G, of the quadrature; two passes over the data each.

    Raises:
        TypeError: no curve, or no noise.
        ValueError: a path of another size, one that stands still, or no noise along it.

    Examples:
        A double well with more noise in the mode on the right:

        >>> import particlevi as pvi
        >>> well = pvi.from_log_likelihood(
        ...     lambda w: 0.0 * w.sum(),
        ...     lambda w, e: -0.25 * (w**2 - 1) ** 2 - e[:, 0] * (w + w**2 / 4),
        ...     num_params=1,
        ...     num_data=2,
        ... )
        >>> data = torch.tensor([[-1.0], [1.0]])
        >>> noise = pvi.noise.measure(well, data, position=torch.zeros(1))
        >>> path = pvi.sgdvi.straight(torch.tensor([-1.0]), torch.tensor([1.0]))
        >>> print(crossing(path, noise, temperature=0.1))
        barrier 4.98 nats forth, 1.60 back; temperature 0.100 forth, 0.313 back
    """
    check_noise(noise)
    check_positive("temperature", temperature)
    check_positive_int("num_points", num_points, minimum=5)
    if not isinstance(curve, Curve):
        raise TypeError(f"curve must come from connect or straight, got {type(curve).__name__}.")
    check_vector("start", curve.start, noise.num_params)
    t = torch.linspace(0, 1, num_points, dtype=torch.float64)
    points, velocities = curve.points(t), curve.velocity(t)
    speed = velocities.double().norm(dim=1).cpu()
    if speed.min() <= 1e-9 * speed.max():
        raise ValueError("The path stands still on the way: move its bend.")
    slope, spread, share = [], [], []
    for point, velocity in zip(points, velocities, strict=True):
        here = noise.at(point)
        along = here.slopes(velocity / velocity.norm()).double()
        whole = float(here.gradient.double().square().sum())
        slope.append(float(along.mean()))
        spread.append(float(along.var(correction=0)))
        share.append(1 - min(slope[-1] ** 2 / max(whole, 1e-300), 1.0))
    f, c = (torch.tensor(part, dtype=torch.float64) for part in (slope, spread))
    if not c.min() > 0:
        raise ValueError("There is no gradient noise along the path, so that SGD does not cross.")
    length, loss = _integral(speed, t), _integral(f * speed, t)
    v = _integral(f / c * speed, t) / temperature
    top = int(v.argmax())
    climbs = float(v[top]), float(v[top] - v[-1])
    rises = float(loss[top]), float(loss[top] - loss[-1])
    forth, back = (
        noise.num_data * rise / climb if climb > 0 else float("nan")
        for rise, climb in zip(rises, climbs, strict=True)
    )
    return Crossing(
        fractions=t,
        length=length,
        loss=loss,
        noise=c,
        across=torch.tensor(share, dtype=torch.float64),
        potential=v,
        barrier=climbs[0],
        barrier_back=climbs[1],
        temperature=forth,
        temperature_back=back,
    )


def _integral(values: Tensor, t: Tensor) -> Tensor:
    """The integral from the first point to each, by the parabola through three neighbours."""
    step = float(t[1] - t[0])
    trapezoids = 0.5 * step * (values[1:] + values[:-1])
    bend = values[2:] - 2 * values[1:-1] + values[:-2]
    bends = torch.cat([bend[:1], (bend[1:] + bend[:-1]) / 2, bend[-1:]])
    parts = trapezoids - step / 12 * bends
    return torch.cat([torch.zeros(1, dtype=values.dtype), parts.cumsum(0)])
