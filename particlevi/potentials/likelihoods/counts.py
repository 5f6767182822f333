"""Targets that are counts; the model gives the logarithm of their mean."""

from __future__ import annotations

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
    check_integers,
    per_output,
)
from particlevi.potentials.priors import Normal, Prior, check_prior
from particlevi.typing import JSON

__all__ = ["NegativeBinomial", "Poisson"]


class _LogRatePoisson(torch.distributions.Poisson):
    """A Poisson law that knows the logarithm of its rate, also where the rate underflows."""

    def __init__(self, log_rate: Tensor):
        super().__init__(log_rate.exp(), validate_args=False)
        self.log_rate = log_rate

    def log_prob(self, value: Tensor) -> Tensor:
        """``y f - exp(f) - log(y!)``."""
        return value * self.log_rate - self.rate - torch.lgamma(value + 1)


@dataclass(frozen=True)
class Poisson(LikeOutputs, WithoutParameters):
    """``y ~ Poisson(exp(output))`` for counts."""

    classes = False
    binary = False

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Poisson"}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Poisson(exp(outputs))``."""
        return _LogRatePoisson(outputs)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are counts."""
        self.align(outputs, targets, per_particle=False)
        check_integers(targets, None, "Poisson")


@dataclass(frozen=True)
class NegativeBinomial(LikeOutputs):
    """Counts with more variance than Poisson's: mean ``m = exp(output)``, variance ``m + m^2 / r``.

    Args:
        concentration: r, a number or ``"learned"``: then ``log_concentration`` is sampled with the
            model, one per output. Large values come near to Poisson.
        num_outputs: how many learned ones.
        log_concentration_prior: of a learned ``log_concentration``; ``Normal(0, 1)`` if absent.

    Examples:
        >>> law = NegativeBinomial(2.0).distribution(torch.zeros(1, 1, 1), {})
        >>> law.mean.item(), law.variance.item()
        (1.0, 1.5)
    """

    concentration: float | str = "learned"
    num_outputs: int = 1
    log_concentration_prior: Prior = field(default_factory=Normal)
    classes = False
    binary = False

    def __post_init__(self) -> None:
        if not is_word(self.concentration, "learned"):
            check_positive("concentration", self.concentration)
            object.__setattr__(self, "concentration", float(self.concentration))
        check_positive_int("num_outputs", self.num_outputs)
        object.__setattr__(self, "num_outputs", int(self.num_outputs))
        check_prior(self.log_concentration_prior, "log_concentration_prior")

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        found: dict[str, JSON] = {"kind": "NegativeBinomial", "concentration": self.concentration}
        if is_word(self.concentration, "learned"):
            found["num_outputs"] = self.num_outputs
            found["log_concentration_prior"] = dict(self.log_concentration_prior.settings)
        return found

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """``log_concentration [num_outputs]`` if it is learned."""
        if not is_word(self.concentration, "learned"):
            return {}
        prior = self.log_concentration_prior
        shape = (self.num_outputs,)
        return {"log_concentration": LikelihoodParameter.positive(shape, prior, "concentration")}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``NegativeBinomial(r, logits=outputs - log r)``."""
        if is_word(self.concentration, "learned"):
            log_r = per_output(parameters["log_concentration"], outputs)
        else:
            log_r = torch.log(outputs.new_tensor(self.concentration))
        return torch.distributions.NegativeBinomial(
            log_r.exp(), logits=outputs - log_r, validate_args=False
        )

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are counts."""
        self.align(outputs, targets, per_particle=False)
        check_integers(targets, None, "NegativeBinomial")
