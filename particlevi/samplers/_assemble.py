"""From a transition to a ``Sampler``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor

from particlevi._checks import check_particles
from particlevi.gradients.minibatch import Target, as_estimator
from particlevi.samplers._gradient_at import GradientAt
from particlevi.samplers._metric import Metric
from particlevi.samplers.precision import check_dtype
from particlevi.samplers.requirements import check_batch, check_estimator
from particlevi.schedules import as_schedule, describe
from particlevi.typing import (
    JSON,
    Batch,
    Controls,
    Facts,
    Landscape,
    Progress,
    Proposals,
    Requirements,
    Sampler,
    SamplerState,
    Schedule,
    Streams,
)

__all__ = [
    "MOMENTUM_SHOWN",
    "SHOWN",
    "Declared",
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

Transition = Callable[[Tensor, Any, GradientAt, Any, Controls], tuple[Tensor, Any, Any]]
"""``(position, memory, gradient_at, noise, controls) -> (position, memory, info)``."""


SHOWN = {"configurational_temperature": "T_conf"}
MOMENTUM_SHOWN = SHOWN | {"kinetic_temperature": "T_kin"}


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


def no_memory(position: Tensor, streams: Streams) -> Nothing:
    """Nothing to remember."""
    return Nothing()


def standard_normal(like: Tensor, streams: Streams) -> Tensor:
    """Standard normal numbers in the shape, dtype and place of ``like``."""
    return streams.normal(like.shape, like.dtype)


def gaussian(state: SamplerState, streams: Streams) -> Tensor:
    """Standard normal noise ``[P, D]``."""
    return standard_normal(state.position, streams)


def momenta(position: Tensor, streams: Streams, temperature: float | Schedule) -> Tensor:
    """Momenta ``[P, D]`` of unit mass at the temperature of the first step."""
    first = as_schedule("temperature", temperature)(0)
    return standard_normal(position, streams) * math.sqrt(first)


def no_noise(state: SamplerState, streams: Streams) -> tuple[()]:
    """A deterministic method."""
    return ()


def configurational_temperature(position: Tensor, gradient: Tensor) -> Tensor:
    """``theta . grad U(theta) / D`` per particle, whose mean is the temperature (virial theorem).

    It depends on the origin of coordinates: the equality needs ``theta p(theta)`` to vanish at
    infinity, as it does under proper priors.
    """
    return (position * gradient).mean(-1)


class Declared(TypedDict, total=False):
    """What a sampler says of itself: fields of ``Sampler``, documented there."""

    tunable: Mapping[str, float]
    requires: Requirements
    watched: Callable[[Any, Controls], Tensor]
    shown: Mapping[str, str]
    draws: slice
    energy_error: Callable[[Any], Tensor] | None
    work_bytes: Callable[[int], int]
    max_step_size: Callable[[float], float]
    step_rule: Callable[[Landscape], tuple[float, str]]
    warning: Callable[[Any, Controls], str | None] | None
    facts: Facts
    most_spread: int


def assemble(
    name: str,
    target: Target,
    transition: Transition,
    *,
    memory: Callable[[Tensor, Streams], Any] = no_memory,
    noise: Callable[[SamplerState, Streams], Any] = no_noise,
    remember: Callable[[Any, Progress], Any] | None = None,
    proposals: Callable[[Tensor, Any, Any], Proposals] | None = None,
    settings: Mapping[str, JSON] | None = None,
    schedules: Mapping[str, float | Schedule] | None = None,
    gradients: int = 1,
    **declared: Unpack[Declared],
) -> Sampler:
    """A sampler from its transition; the estimator's state and noise are threaded through.

    Args:
        name: the method.
        target: a potential or a gradient estimator.
        transition: ``(position, memory, gradient_at, noise, controls) -> (position, memory,
            info)``, a pure function of tensors. ``gradient_at(theta)`` is this step's estimate at
            ``theta``, and ``gradient_at.with_variance(theta)`` tells its noise too. ``info`` is a
            NamedTuple of ``[P]`` tensors whose first field is ``potential``.
        memory: the method's first memory, a NamedTuple of tensors, from the starting points. What
            is called ``momentum`` in it has unit mass; its temperature in each tensor is observed
            at every draw.
        noise: the method's random numbers of one step.
        remember: ``(memory, progress) -> memory`` between steps.
        proposals: ``(position before a step, memory after it, info) -> Proposals``, all in the
            coordinates of the transition.
        settings: the method's arguments, for the record.
        schedules: its scheduled scalars; they reach the transition in ``controls``.
        gradients: how often a step evaluates the estimate.
        **declared: what the method requires and what its states are, as in ``Sampler``.

    Raises:
        TypeError: a target that is neither a potential nor an estimator.
        ValueError: an estimator that breaks what the method requires.
    """
    estimator = as_estimator(target)
    requires = declared.get("requires", Requirements())
    check_estimator(name, requires, estimator)
    check_dtype(name, estimator.potential.dtype)
    scheduled = {key: as_schedule(key, value) for key, value in (schedules or {}).items()}

    def init(particles: Tensor, streams: Streams) -> SamplerState:
        check_particles(particles, estimator.potential.num_params)
        position = particles.detach().clone()
        return SamplerState(position, memory(position, streams), estimator.init(position, streams))

    def draw_noise(state: SamplerState, streams: Streams) -> Any:
        return noise(state, streams), estimator.draw_noise(state.estimator, streams)

    def step(
        state: SamplerState, batch: Batch | None, noise: Any, controls: Controls
    ) -> tuple[SamplerState, Any]:
        own, masks = noise
        check_batch(name, requires, batch, estimator.potential.num_data)
        metric = Metric.of(controls)
        gradient_at = GradientAt(estimator, state.estimator, batch, masks, metric)
        start = state.position if metric is None else metric.whiten(state.position)
        z, memory, info = transition(start, state.memory, gradient_at, own, controls)
        position = z
        if metric is not None:
            # A rejected particle stays where it was, to the bit.
            still = (z == start).all(-1, keepdim=True)
            position = torch.where(still, state.position, metric.unwhiten(z))
        return SamplerState(position, memory, state.estimator), info

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

    def proposed(before: Tensor, state: SamplerState, info: Any, controls: Controls) -> Proposals:
        assert proposals is not None
        metric = Metric.of(controls)
        start = before if metric is None else metric.whiten(before)
        return proposals(start, state.memory, info)

    def on(other: Target) -> Sampler:
        return assemble(
            name,
            other,
            transition,
            memory=memory,
            noise=noise,
            remember=remember,
            proposals=proposals,
            settings=settings,
            schedules=schedules,
            gradients=gradients,
            **declared,
        )

    return Sampler(
        name=name,
        estimator=estimator,
        init=init,
        draw_noise=draw_noise,
        step=step,
        record=record,
        records=remember is not None or getattr(estimator, "records", True),
        schedules=scheduled,
        settings={
            **(settings or {}),
            **{key: describe(value) for key, value in scheduled.items()},
        },
        observe=observe,
        proposals=None if proposals is None else proposed,
        gradients_per_step=gradients * estimator.gradients,
        on=on,
        **declared,
    )
