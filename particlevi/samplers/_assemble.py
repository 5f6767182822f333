"""From a transition to a ``Sampler``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from particlevi._checks import check_particles
from particlevi.gradients.halves import in_halves
from particlevi.gradients.minibatch import Target, as_estimator
from particlevi.samplers._metric import Metric
from particlevi.schedules import as_schedule, describe
from particlevi.typing import (
    JSON,
    Batch,
    Controls,
    Facts,
    Gradient,
    Progress,
    Requirements,
    Sampler,
    SamplerState,
    Schedule,
)

__all__ = [
    "GradientAt",
    "Info",
    "MomentumInfo",
    "Nothing",
    "Target",
    "assemble",
    "configurational_temperature",
    "gaussian",
    "momenta",
    "standard_normal",
]

GradientAt = Callable[[Tensor], Gradient]
"""The gradient estimate of this step at any particles ``[P, D]``."""

Transition = Callable[[Tensor, Any, GradientAt, Any, Controls], tuple[Tensor, Any, Any]]
"""``(position, memory, gradient_at, noise, controls) -> (position, memory, info)``."""


class Nothing(NamedTuple):
    """The memory of a method that has none."""


class Info(NamedTuple):
    """Potential and configurational temperature ``[P]`` where the gradient was evaluated."""

    potential: Tensor
    configurational_temperature: Tensor


class MomentumInfo(NamedTuple):
    """Potential, configurational and kinetic temperature ``[P]``.

    The first two are those where the gradient was evaluated, the kinetic temperature ``p.p/D`` is
    that at the end of the step.
    """

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor


_NOTHING_REQUIRED = Requirements()


def no_memory(position: Tensor, generator: torch.Generator) -> Nothing:
    """Nothing to remember."""
    return Nothing()


def standard_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in the shape, dtype and place of ``like``."""
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def gaussian(state: SamplerState, generator: torch.Generator) -> Tensor:
    """Standard normal noise ``[P, D]``."""
    return standard_normal(state.position, generator)


def momenta(position: Tensor, generator: torch.Generator, temperature: float | Schedule) -> Tensor:
    """Momenta ``[P, D]`` of unit mass at the temperature of the first step."""
    first = as_schedule("temperature", temperature)(0)
    return standard_normal(position, generator) * math.sqrt(first)


def no_noise(state: SamplerState, generator: torch.Generator) -> tuple[()]:
    """A deterministic method."""
    return ()


def configurational_temperature(position: Tensor, gradient: Tensor) -> Tensor:
    """``theta . grad U(theta) / D`` per particle, whose mean is the temperature (virial theorem).

    It depends on the origin of coordinates: the equality needs ``theta p(theta)`` to vanish at
    infinity, as it does under proper priors.
    """
    return (position * gradient).mean(-1)


def _check_full(batch: Batch | None, num_data: int | None, name: str) -> None:
    if batch is None or num_data is None:
        return
    size = tree_leaves(batch.data)[0].shape[1 if batch.per_particle else 0]
    if size != num_data:
        raise ValueError(
            f"{name} accepts or rejects by the energy of all {num_data} data, got a batch of "
            f"{size}: leave batch_size out."
        )


def assemble(
    name: str,
    target: Target,
    transition: Transition,
    *,
    settings: Mapping[str, JSON],
    schedules: Mapping[str, float | Schedule] | None = None,
    memory: Callable[[Tensor, torch.Generator], Any] = no_memory,
    noise: Callable[[SamplerState, torch.Generator], Any] = no_noise,
    remember: Callable[[Any, Progress], Any] | None = None,
    interacting: bool = False,
    full_batch: bool = False,
    halves: bool = False,
    requires: Requirements = _NOTHING_REQUIRED,
    gradients: int = 1,
    max_step_size: Callable[[float], float] | None = None,
    warning: Callable[[Any, Controls], str | None] | None = None,
    facts: Facts | None = None,
) -> Sampler:
    """A sampler from its transition; the estimator's state and noise are threaded through.

    Args:
        name: the method.
        target: a potential or a gradient estimator.
        transition: ``(position, memory, gradient_at, noise, controls) -> (position, memory,
            info)``; ``gradient_at(theta)`` is this step's estimate at ``theta``.
        settings: the method's arguments, for the record.
        schedules: its scheduled scalars; they reach the transition in ``controls``.
        memory: the method's first memory from the starting points. What is called ``momentum`` in
            it has unit mass; its temperature in each tensor is observed at every draw.
        noise: the method's random numbers.
        remember: ``(memory, progress) -> memory`` between steps.
        interacting: whether particles see each other.
        full_batch: whether the method is wrong on anything but all the data at every step, so that
            a minibatch is an error.
        halves: whether ``gradient_at`` gives ``Halves``, with the variance of the estimate.
        requires: as in ``Sampler``.
        gradients: how often a step evaluates the estimate.
        max_step_size: as in ``Sampler``.
        warning: as in ``Sampler``.
        facts: as in ``Sampler``; chains or, if particles interact, their last states, if absent.
    """
    estimator = as_estimator(target)
    scheduled = {key: as_schedule(key, value) for key, value in (schedules or {}).items()}

    def init(particles: Tensor, generator: torch.Generator) -> SamplerState:
        check_particles(particles, estimator.potential.num_params)
        position = particles.detach().clone()
        return SamplerState(
            position, memory(position, generator), estimator.init(position, generator)
        )

    def draw_noise(state: SamplerState, generator: torch.Generator) -> Any:
        return noise(state, generator), estimator.draw_noise(state.estimator, generator)

    def step(
        state: SamplerState, batch: Batch | None, noise: Any, controls: Controls
    ) -> tuple[SamplerState, Any]:
        own, masks = noise
        if full_batch:
            _check_full(batch, estimator.potential.num_data, name)

        def gradient_at(particles: Tensor) -> Any:
            def estimate(part: Batch | None) -> Gradient:
                return estimator(state.estimator, particles, part, masks)

            if halves:
                return in_halves(estimate, batch)
            return estimate(batch)

        metric = Metric.of(controls)
        if metric is None:
            position, memory, info = transition(
                state.position, state.memory, gradient_at, own, controls
            )
            return SamplerState(position, memory, state.estimator), info
        z, memory, info = transition(
            metric.whiten(state.position),
            state.memory,
            metric.pulled_back(gradient_at),
            own,
            controls,
        )
        return SamplerState(metric.unwhiten(z), memory, state.estimator), info

    def record(state: SamplerState, progress: Progress) -> SamplerState:
        memory = state.memory if remember is None else remember(state.memory, progress)
        return SamplerState(
            state.position, memory, estimator.record(state.estimator, state.position, progress)
        )

    tensors = estimator.potential.layout.slices()

    def observe(state: SamplerState) -> dict[str, Tensor]:
        momentum = getattr(state.memory, "momentum", None)
        if momentum is None or len(tensors) == 1:
            return {}
        return {
            f"kinetic_temperature[{name}]": momentum[:, where].square().mean(-1)
            for name, where in tensors.items()
        }

    return Sampler(
        name=name,
        estimator=estimator,
        init=init,
        draw_noise=draw_noise,
        step=step,
        record=record,
        schedules=scheduled,
        settings={**settings, **{key: describe(value) for key, value in scheduled.items()}},
        interacting=interacting,
        requires=requires,
        observe=observe,
        gradients_per_step=gradients * estimator.gradients,
        max_step_size=max_step_size,
        warning=warning,
        facts=facts or Facts(kind="particles" if interacting else "chains"),
    )
