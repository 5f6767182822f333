"""Metropolis-adjusted microcanonical sampling: exact, with trajectories of random length.

A chain draws a direction u uniformly and a number n of steps at random, moves n steps of length h
by the isokinetic flow (``particlevi.samplers._microcanonical``), and accepts the end with
probability ``min(1, exp(-sum dE))``, ``dE = W + U(theta') - U(theta)`` the energy change of a step.
One step of this sampler is one step of the flow; every chain tests at times of its own.

Target: ``exp(-U)`` exactly, for any step size.

Step size: h is a length, of the order of ``sqrt(D)`` times a standard deviation; n has the mean
``trajectory_length / h``. On a Gaussian of unit variances ``pi / 2 sqrt(D)`` is a quarter of a
period. Aim at an acceptance of about 0.9.

Reference: Robnik, Cohn-Gordon and Seljak, "Metropolis adjusted microcanonical Hamiltonian Monte
Carlo", 2025.
"""

from __future__ import annotations

import math

from particlevi._checks import check_choice
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers import _trajectories
from particlevi.samplers._assemble import Target, assemble
from particlevi.samplers._metropolis import EXACT_ENERGY, momentum_and_test
from particlevi.samplers._microcanonical import INTEGRATORS, Integrator, direction, flow
from particlevi.samplers._trajectories import Info, Memory
from particlevi.samplers.mclmc import check_dimensions
from particlevi.typing import Sampler, Schedule

__all__ = ["Info", "Memory", "mams"]


def mams(
    target: Target,
    trajectory_length: float | Schedule | None = None,
    integrator: Integrator = "minimal_norm",
) -> Sampler:
    """Metropolis-adjusted microcanonical sampling: exact for ``exp(-U)``, with all the data.

    A step costs 1 gradient with ``"leapfrog"``, 2 with ``"minimal_norm"``, 5 with ``"omelyan"``,
    and a trajectory takes ``trajectory_length / step_size`` steps in the mean. The position of a
    chain is where it last accepted, so that draws between tests repeat: choose ``thin`` near the
    number of steps of a trajectory. The first step of a run only evaluates the gradient.

    Source: Robnik, Cohn-Gordon and Seljak, "Metropolis adjusted microcanonical Hamiltonian Monte
    Carlo", 2025.

    Args:
        target: a potential, or a gradient estimator without noise.
        trajectory_length: mean length of a trajectory, a number or a schedule;
            ``pi / 2 sqrt(D)`` if absent, which is right where standard deviations are about 1.
        integrator: how a step is made.

    Raises:
        ValueError: fewer than two parameters, an unknown integrator; at the first step, a
            minibatch.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=20)
        >>> draws = pvi.sample(
        ...     pvi.mams(normal), step_size=3.0, num_particles=50, num_warmup=50, num_draws=100,
        ...     progress=False,
        ... )
        >>> bool((draws.particles.var() - 1).abs() < 0.1)
        True
    """
    check_choice("integrator", integrator, INTEGRATORS)
    num_params = as_estimator(target).potential.num_params
    check_dimensions("mams", num_params)
    length = 0.5 * math.pi * math.sqrt(num_params)

    return assemble(
        "mams",
        target,
        _trajectories.transition(flow(integrator), direction),
        settings={"integrator": integrator},
        schedules={"trajectory_length": length if trajectory_length is None else trajectory_length},
        memory=_trajectories.first_memory,
        noise=momentum_and_test,
        proposals=_trajectories.proposals,
        requires=EXACT_ENERGY,
        energy_error=lambda info: info.energy_error,
        gradients=len(INTEGRATORS[integrator].drifts),
    )
