"""Hamiltonian Monte Carlo with trajectories of random length, one leapfrog step at a time.

A chain draws a momentum ``p ~ N(0, I)`` and a number n of steps at random, makes n leapfrog steps
of length h, and accepts the end with probability ``min(1, exp(-sum dE))``, dE the change of
``U + p.p / 2`` in a step. One step of this sampler is one leapfrog step; every chain tests at times
of its own, so that lengths may be drawn by each chain and no gradient is wasted.

Target: ``exp(-U)`` exactly, for any step size.

Step size: h is the time step; n has the mean ``trajectory_length / h``. On a Gaussian of unit
variances uniform lengths up to pi, with a mean of ``pi / 2``, mix in a few trajectories. Stable for
``h^2 l < 4`` with leapfrog. Aim at an acceptance of 0.8.

References: Bou-Rabee and Sanz-Serna, "Randomized Hamiltonian Monte Carlo", 2017; Neal, "MCMC using
Hamiltonian dynamics", 2011.
"""

from __future__ import annotations

import math

from particlevi._checks import check_choice
from particlevi.samplers import _trajectories
from particlevi.samplers._assemble import Target, assemble
from particlevi.samplers._metropolis import EXACT_ENERGY, momentum_and_test
from particlevi.samplers._microcanonical import INTEGRATORS, Integrator, leapfrog
from particlevi.samplers._trajectories import Info, Memory
from particlevi.typing import Sampler, Schedule

__all__ = ["Info", "Memory", "randomized_hmc"]


def randomized_hmc(
    target: Target,
    trajectory_length: float | Schedule = 0.5 * math.pi,
    integrator: Integrator = "leapfrog",
) -> Sampler:
    """Hamiltonian Monte Carlo with random trajectory lengths: exact, with all the data.

    A step costs 1 gradient with ``"leapfrog"``, 2 with ``"minimal_norm"``, 5 with ``"omelyan"``,
    and a trajectory takes ``trajectory_length / step_size`` steps in the mean. The position of a
    chain is where it last accepted, so that draws between tests repeat: choose ``thin`` near the
    number of steps of a trajectory. The first step of a run only evaluates the gradient.

    Source: Bou-Rabee and Sanz-Serna, "Randomized Hamiltonian Monte Carlo", 2017.

    Args:
        target: a potential, or a gradient estimator without noise.
        trajectory_length: mean time of a trajectory, a number or a schedule; right where standard
            deviations are about 1 if absent.
        integrator: how a step is made.

    Raises:
        ValueError: an unknown integrator; at the first step, a minibatch.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=3)
        >>> draws = pvi.sample(
        ...     pvi.randomized_hmc(normal), step_size=0.9, num_particles=50, num_warmup=50,
        ...     num_draws=500, progress=False,
        ... )
        >>> bool((draws.particles.var() - 1).abs() < 0.1)
        True
    """
    check_choice("integrator", integrator, INTEGRATORS)

    return assemble(
        "randomized_hmc",
        target,
        _trajectories.transition(leapfrog(integrator), lambda normal: normal),
        settings={"integrator": integrator},
        schedules={"trajectory_length": trajectory_length},
        memory=_trajectories.first_memory,
        noise=momentum_and_test,
        proposals=_trajectories.proposals,
        requires=EXACT_ENERGY,
        energy_error=lambda info: info.energy_error,
        gradients=len(INTEGRATORS[integrator].drifts),
        max_step_size=lambda curvature: 2 / curvature**0.5,
    )
