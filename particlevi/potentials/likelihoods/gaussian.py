"""Real targets with Gaussian noise, of one scale or of a scale that the model predicts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int, is_word
from particlevi.potentials.likelihoods.base import (
    LikelihoodParameter,
    LikeOutputs,
    WithoutParameters,
    per_output,
    same_shape,
)
from particlevi.potentials.priors import Normal, Prior, check_prior
from particlevi.typing import JSON

__all__ = ["Gaussian", "MeanScaleGaussian"]


class _LogScaleNormal(torch.distributions.Normal):
    """A normal law whose log-scale is known: log densities need no scale within range."""

    def __init__(self, loc: Tensor, log_scale: Tensor):
        super().__init__(loc, log_scale.exp(), validate_args=False)
        self.log_scale = log_scale

    def log_prob(self, value: Tensor) -> Tensor:
        """``-(y - m)^2 exp(-2 s) / 2 - s - log(2 pi) / 2``."""
        away = (value - self.loc) * (-self.log_scale).exp()
        return -0.5 * away.square() - self.log_scale - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Gaussian(LikeOutputs):
    """``y ~ Normal(output, scale)``.

    Args:
        scale: the standard deviation; one number, one per output, or ``"learned"``: then
            ``log_scale`` is sampled with the model, one per output.
        num_outputs: how many learned scales.
        log_scale_prior: of a learned ``log_scale``; ``Normal(0, 1)`` by default, that is
            ``scale ~ LogNormal(0, 1)``.

    Examples:
        >>> Gaussian(scale=0.5).distribution(torch.zeros(1, 3, 1), {}).stddev.flatten()
        tensor([0.5000, 0.5000, 0.5000])
    """

    scale: float | tuple[float, ...] | str
    num_outputs: int = 1
    log_scale_prior: Prior = field(default_factory=Normal)
    classes = False
    binary = False

    def __post_init__(self) -> None:
        if isinstance(self.scale, str) and not is_word(self.scale, "learned"):
            raise ValueError(f'scale must be a number, numbers or "learned", got {self.scale!r}.')
        if isinstance(self.scale, (Tensor, list)):
            if isinstance(self.scale, Tensor) and self.scale.is_meta:
                raise ValueError("scale must hold values, got a tensor on the meta device.")
            flat = self.scale.flatten().tolist() if isinstance(self.scale, Tensor) else self.scale
            object.__setattr__(self, "scale", flat[0] if len(flat) == 1 else tuple(flat))
        if not isinstance(self.scale, str):
            values = self.scale if isinstance(self.scale, tuple) else (self.scale,)
            for value in values or (None,):
                check_positive("scale", value)
            # Plain numbers: torch's laws take none of numpy's.
            plain = tuple(float(value) for value in values)
            object.__setattr__(self, "scale", plain if isinstance(self.scale, tuple) else plain[0])
        check_positive_int("num_outputs", self.num_outputs)
        object.__setattr__(self, "num_outputs", int(self.num_outputs))
        check_prior(self.log_scale_prior, "log_scale_prior")

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        scale: JSON = list(self.scale) if isinstance(self.scale, tuple) else self.scale
        found: dict[str, JSON] = {"kind": "Gaussian", "scale": scale}
        if is_word(self.scale, "learned"):
            found["num_outputs"] = self.num_outputs
            found["log_scale_prior"] = dict(self.log_scale_prior.settings)
        return found

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """``log_scale [num_outputs]`` if the scale is learned."""
        if not is_word(self.scale, "learned"):
            return {}
        shape = (self.num_outputs,)
        return {"log_scale": LikelihoodParameter.positive(shape, self.log_scale_prior, "scale")}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Normal(outputs, scale)``."""
        if is_word(self.scale, "learned"):
            return _LogScaleNormal(outputs, per_output(parameters["log_scale"], outputs))
        scale: Any = self.scale
        if isinstance(scale, tuple):
            scale = outputs.new_tensor(scale)
        return torch.distributions.Normal(outputs, scale, validate_args=False)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """The number of scales fits the number of outputs."""
        self.align(outputs, targets, per_particle=False)
        num = self.num_outputs if is_word(self.scale, "learned") else None
        num = len(self.scale) if isinstance(self.scale, tuple) else num
        width = outputs.shape[-1] if outputs.ndim > 2 else 1
        if num is not None and num not in (1, width):
            raise ValueError(f"The likelihood has {num} scales but the model {width} outputs.")


@dataclass(frozen=True)
class MeanScaleGaussian(WithoutParameters):
    """``y ~ Normal(m, exp(s))`` where the model gives ``(m, s)``, so that noise may vary.

    The last dimension of the outputs holds the means of the K targets, then their K log-scales: a
    net for one target ends in ``nn.Linear(width, 2)``.

    Source: Nix and Weigend, "Estimating the mean and variance of the target probability
    distribution", 1994.

    Examples:
        >>> law = MeanScaleGaussian().distribution(torch.tensor([[[3.0, 0.0]]]), {})
        >>> law.mean.item(), law.stddev.item()
        (3.0, 1.0)
    """

    classes = False
    binary = False

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "MeanScaleGaussian"}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Normal(means, exp(log-scales))``."""
        mean, log_scale = outputs.chunk(2, dim=-1)
        return _LogScaleNormal(mean, log_scale)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the means."""
        if outputs.ndim < 3 or outputs.shape[-1] % 2:
            raise ValueError(
                "MeanScaleGaussian needs outputs [B, 2K], K means and K log-scales, got "
                f"{list(outputs.shape[2:])} for one datum."
            )
        mean = outputs[..., : outputs.shape[-1] // 2]
        return same_shape(mean, targets, per_particle).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """There is one mean and one scale per target."""
        self.align(outputs, targets, per_particle=False)
