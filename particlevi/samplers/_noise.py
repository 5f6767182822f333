"""Gradient noise that a sampler takes out of the noise it injects: known, or found on the way.

Online, each chain keeps a moving average of the variance that ``in_halves`` finds at each step.
The k-th step enters with the weight ``max(4 / (k + 3), 1 / 1000)``, which lets go of the noise far
from the mode, where chains begin, within a few times the steps spent there. A step uses the average
of the steps before it, so that the injected variance does not depend on the noise of the step
itself: on a quadratic potential its mean is exactly what a known variance would give, up to what is
cut off at zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_finite, check_nonnegative
from particlevi.data.fingerprint import checksum
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import MomentumInfo, Nothing, Target
from particlevi.samplers._gradient_at import GradientAt
from particlevi.typing import JSON, Controls, Gradient, Requirements

__all__ = [
    "MOST_CLIPPED",
    "Average",
    "CompensatedInfo",
    "CompensatedMomentumInfo",
    "Noise",
    "averaged",
]

ONLINE = "online"
FORGETTING = 4
HORIZON = 1000
MOST_CLIPPED = 0.05


class Average(NamedTuple):
    """Average variance ``[P, D]`` or ``[P]`` of an estimate, and the steps it rests on, 0-d."""

    variance: Tensor
    steps: Tensor


class CompensatedInfo(NamedTuple):
    """As ``Info``, with what was taken out, ``[P]``.

    ``gradient_noise`` is its variance, mean over parameters; ``clipped`` the share of parameters
    for which that is more than the sampler injects.
    """

    potential: Tensor
    configurational_temperature: Tensor
    gradient_noise: Tensor
    clipped: Tensor


class CompensatedMomentumInfo(NamedTuple):
    """As ``MomentumInfo`` and ``CompensatedInfo``."""

    potential: Tensor
    configurational_temperature: Tensor
    kinetic_temperature: Tensor
    gradient_noise: Tensor
    clipped: Tensor


def averaged(memory: Average, variance: Tensor) -> Average:
    """The average with one more estimate."""
    weight = (FORGETTING / (memory.steps + FORGETTING)).clamp(min=1 / HORIZON)
    average = memory.variance + weight * (variance - memory.variance)
    return Average(average, memory.steps + 1)


class Noise:
    """The gradient noise of a sampler.

    Args:
        value: a variance, one per parameter ``[D]``, or ``"online"``.
        target: what is sampled.

    Raises:
        ValueError: a negative variance, a tensor of another shape, or an unknown word.
    """

    def __init__(self, value: float | Tensor | str, target: Target):
        potential = as_estimator(target).potential
        self.online = isinstance(value, str)
        self.known: float | Tensor = 0.0
        self.record: JSON
        if isinstance(value, Tensor):
            self.known = _checked(value, potential.num_params).to(potential.device, potential.dtype)
            self.record = {"kind": "per parameter", **checksum(self.known)}
        elif isinstance(value, str):
            check_choice("gradient_noise, if not a variance,", value, [ONLINE])
            self.record = ONLINE
        else:
            check_nonnegative("gradient_noise", value)
            self.known = self.record = value
        self.present = isinstance(value, (Tensor, str)) or value != 0

    def memory(self, position: Tensor) -> Average | Nothing:
        """What is remembered of earlier steps: nothing if the variance is known."""
        if not self.online:
            return Nothing()
        return Average(torch.zeros_like(position), position.new_zeros(()))

    def __call__(
        self, gradient_at: GradientAt, position: Tensor, memory: Any
    ) -> tuple[Gradient, float | Tensor, Any]:
        """The gradient at the position, the variance to take out, and what to remember."""
        if not self.online:
            known = gradient_at.variance(self.known) if self.present else 0.0
            return gradient_at(position), known, memory
        found, variance = gradient_at.with_variance(position)
        return found, memory.variance, averaged(memory, variance.gradient)

    @property
    def requires(self) -> Requirements:
        """Batches that are independent, if anything is taken out."""
        return Requirements(independent_data=self.present)

    @property
    def shown(self) -> dict[str, str]:
        """What the progress line shows beside the temperatures."""
        return {"clipped": "clipped"} if self.present else {}

    def report(
        self, info: Any, variance: float | Tensor, injected: Tensor, position: Tensor
    ) -> Any:
        """``info`` of a step that took out ``variance`` and was left with ``injected``, uncut."""
        if not self.present:
            return info
        wide: Any = CompensatedMomentumInfo if isinstance(info, MomentumInfo) else CompensatedInfo
        taken = (position.new_zeros(()) + variance).expand_as(position).mean(-1)
        clipped = (injected < 0).to(position.dtype).expand_as(position).mean(-1)
        return wide(*info, taken, clipped)

    def warning(
        self, limit: Callable[[Controls], float]
    ) -> Callable[[Any, Controls], str | None] | None:
        """What ``Sampler.warning`` is to be; ``limit(controls)`` can be taken out at the most."""
        if not self.present:
            return None

        def say(info: Any, controls: Controls) -> str | None:
            h, temperature = float(controls["step_size"]), float(controls["temperature"])
            # At temperature 0, as in the exploring part of a cycle, nothing is injected on purpose.
            if temperature == 0 or float(info.clipped.mean()) <= MOST_CLIPPED:
                return None
            return (
                f"For {float(info.clipped.mean()):.0%} of the parameters the gradient noise has a "
                f"variance above {limit(controls):.3g}, all that can be taken out of the "
                f"injected noise (it is {float(info.gradient_noise.mean()):.3g} on average), so "
                f"that their draws come out too wide. Take a smaller step_size (it was {h:.3g}), "
                "larger batches, or more friction where there is one."
            )

        return say


def _checked(value: Tensor, num_params: int) -> Tensor:
    if value.is_complex() or value.is_meta:
        raise ValueError(f"gradient_noise must be real variances, got {value.dtype}.")
    check_finite("gradient_noise", value, "Estimate it again.")
    if (value < 0).any():
        raise ValueError("gradient_noise is a variance: it must not be negative.")
    if value.shape not in ((), (num_params,)):
        raise ValueError(
            f"gradient_noise must be one variance or one per parameter [{num_params}], "
            f"got {list(value.shape)}."
        )
    return value
