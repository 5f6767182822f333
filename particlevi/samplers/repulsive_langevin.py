"""Stochastic SVGD: Langevin dynamics of all particles together, with the kernel for its metric.

Step, with scores ``s_j = -g(x_j)``, the kernel matrix ``K_ij = k(x_i, x_j) + e (i = j)``, where e
is a small jitter, and ``L L' = K``::

    x_i' = x_i + (h/P) sum_j [ K_ij s_j + T grad_{x_j} k(x_j, x_i) ] + sqrt(2 h T / P) (L xi)_i

Target: ``prod_i exp(-U(x_i)/T)`` as ``h -> 0``, exactly, for any number of particles and any
bandwidth that is held fixed: SVGD's direction plus noise of covariance ``2 h T K / P`` is a
Langevin equation of P D variables with the metric ``K / P``, of which the repulsion is the
divergence. The variance does not collapse. It mixes slowly along the small eigenvalues of K, that
is, where particles sit close together. With one particle it is SGLD.

Reference: Gallego and Rios Insua, "Stochastic gradient MCMC with repulsive forces", 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative
from particlevi.kernels.kernels import Radial, as_radial
from particlevi.samplers._assemble import GradientAt, Target, assemble, gaussian
from particlevi.samplers._rules import LESS_WHERE_HOT, overdamped_step
from particlevi.samplers.svgd import Info
from particlevi.schedules import as_schedule
from particlevi.typing import Controls, Facts, Landscape, Sampler, Schedule, Streams

__all__ = ["Info", "Memory", "repulsive_langevin"]


class Memory(NamedTuple):
    """The bandwidth, 0-d, as it was at the start."""

    bandwidth: Tensor


def repulsive_langevin(
    target: Target,
    kernel: Radial | None = None,
    temperature: float | Schedule = 1.0,
    jitter: float = 1e-6,
) -> Sampler:
    """Stochastic SVGD: the direction of SVGD plus noise of covariance ``2 h T K / P``.

    ``x_i' = x_i + (h/P) sum_j [K_ij s_j + T grad_{x_j} k(x_j, x_i)] + sqrt(2 h T / P) (L xi)_i``
    with ``K_ij = k(x_i, x_j) + jitter (i = j)`` and ``L L' = K``. Samples ``exp(-U/T)`` with each
    particle, exactly as the step shrinks, whatever their number. The bandwidth is taken from the
    starting points and then held, because the equation is exact only for a bandwidth that does not
    move with the particles. A step costs O(P^2 D + P^3).

    Source: Gallego and Rios Insua, "Stochastic gradient MCMC with repulsive forces", 2018.

    Args:
        target: a potential, or a gradient estimator.
        kernel: ``pvi.kernels.rbf()`` if absent; a number for its bandwidth makes the law
            independent of the starting points.
        temperature: T, a number or a schedule; 1 is the Bayes posterior, 0 is SVGD's attraction
            without repulsion.
        jitter: added to the diagonal of K in drift and noise alike, so that the law stays exact
            and K, in float64, has a Cholesky factor. Without one, as 0 can leave it, the particles
            become NaN.

    Raises:
        TypeError: a kernel without a bandwidth.
        ValueError: a negative temperature or jitter.
    """
    check_nonnegative("jitter", jitter)
    chosen = as_radial(kernel)
    temperature_at = as_schedule("temperature", temperature)

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(chosen.width(position))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Tensor, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        h, temperature = controls["step_size"], controls["temperature"]
        g, potential = gradient_at(position)
        attraction, repulsion = chosen.direction(position, -g, memory.bandwidth)
        num = len(position)
        attraction = attraction - jitter / num * g
        exact = position.double()
        matrix = chosen(exact, exact, memory.bandwidth.double())
        identity = torch.eye(num, dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * identity)
        factor = torch.where(failed == 0, factor, torch.nan).to(noise.dtype)
        diffusion = (2 * h * temperature / num).sqrt() * (factor @ noise)
        info = Info.of(potential, attraction, repulsion)
        position = position + (h * (attraction + temperature * repulsion) + diffusion)
        return position, memory, info

    def step_rule(around: Landscape) -> tuple[float, str]:
        width, warm = chosen.width(around.points), temperature_at(0)

        def drift(position: Tensor) -> Tensor:
            g = around.gradient_at(position)
            attraction, repulsion = chosen.direction(position, -g, width)
            return attraction - jitter / len(position) * g + warm * repulsion

        rate = around.rate(drift)
        step = overdamped_step(rate, float(around.noise.mean()) / (warm or 1.0))
        return step, (
            "The step size is a tenth of the stable range h r < 2, with r the rate of the drift of "
            f"all particles together where they start, {rate:.4g}{LESS_WHERE_HOT}"
        )

    return assemble(
        "repulsive_langevin",
        target,
        transition,
        settings={"kernel": str(chosen), "jitter": jitter},
        schedules={"temperature": temperature},
        memory=memory,
        noise=gaussian,
        step_rule=step_rule,
        facts=Facts(kind="ensemble"),
        work_bytes=lambda num: 7 * 8 * num**2,
    )
