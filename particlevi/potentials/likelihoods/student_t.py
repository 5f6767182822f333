"""Student's t, which serves as a likelihood and as a prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_positive, check_positive_int, is_number, is_word
from particlevi.potentials.likelihoods.base import (
    LikelihoodParameter,
    LikeOutputs,
    per_output,
    same_shape,
)
from particlevi.potentials.priors import (
    Mean,
    Normal,
    Prior,
    Scale,
    check_mean,
    check_prior,
    check_scale,
    describe_mean,
    describe_scale,
)
from particlevi.typing import JSON

__all__ = ["StudentT"]


@dataclass(frozen=True)
class StudentT(LikeOutputs):
    """Student's t with ``df`` degrees of freedom, as a likelihood or as a prior.

    A likelihood for data with outliers, ``y ~ StudentT(df, output, scale)``, or a heavy-tailed
    prior, ``w ~ StudentT(df, mean, scale)``.

    Args:
        df: degrees of freedom; the variance is finite above 2. A likelihood also takes
            ``"learned"``: then ``log_df`` is sampled with the model.
        scale: the scale, not the standard deviation. A prior also takes one per name pattern; a
            likelihood ``"learned"``: then ``log_scale`` is sampled with the model.
        fan_in: prior only: divide the scale of weights by the root of their fan-in.
        mean: prior only: as in ``Normal``.
        num_outputs: how many learned scales.
        log_df_prior: of a learned ``log_df``; ``Normal(log 10, 1)`` by default.
        log_scale_prior: of a learned ``log_scale``; ``Normal(0, 1)`` by default.

    Examples:
        >>> round(float(StudentT(df=4.0).elementwise(torch.tensor(1.0)).variance), 6)
        2.0
    """

    df: float | str
    scale: Scale | str = 1.0
    fan_in: bool = False
    mean: Mean = 0.0
    num_outputs: int = 1
    log_df_prior: Prior = field(default_factory=lambda: Normal(1.0, mean=math.log(10.0)))
    log_scale_prior: Prior = field(default_factory=Normal)
    classes = False
    binary = False

    def __post_init__(self) -> None:
        if not is_word(self.df, "learned"):
            check_positive("df", self.df)
            # A plain number: torch's laws take none of numpy's.
            object.__setattr__(self, "df", float(self.df))
            if float(self.df) < torch.finfo(torch.float32).tiny:
                raise ValueError(f"df must be at least 1.2e-38, got {self.df!r}.")
        if not is_word(self.scale, "learned"):
            check_scale(self.scale)
            if not isinstance(self.scale, (str, Mapping)):
                object.__setattr__(self, "scale", float(self.scale))
        check_flag("fan_in", self.fan_in)
        check_mean(self.mean)
        check_positive_int("num_outputs", self.num_outputs)
        object.__setattr__(self, "num_outputs", int(self.num_outputs))
        check_prior(self.log_df_prior, "log_df_prior")
        check_prior(self.log_scale_prior, "log_scale_prior")

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The law as JSON."""
        found: dict[str, JSON] = {
            "kind": "StudentT",
            "df": self.df,
            "scale": describe_scale(self.scale),
            "fan_in": self.fan_in,
            "mean": describe_mean(self.mean),
        }
        if is_word(self.df, "learned"):
            found["log_df_prior"] = dict(self.log_df_prior.settings)
        if is_word(self.scale, "learned"):
            found["num_outputs"] = self.num_outputs
            found["log_scale_prior"] = dict(self.log_scale_prior.settings)
        return found

    def elementwise(self, scale: Tensor, mean: Tensor | None = None) -> Any:
        """As a prior: the law of each parameter."""
        if isinstance(self.df, str):
            raise ValueError('StudentT as a prior takes a number as df, got "learned".')
        mean = scale.new_zeros(()) if mean is None else mean
        return torch.distributions.StudentT(self.df, mean, scale, validate_args=False)

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """``log_df`` and ``log_scale [num_outputs]`` as far as they are learned."""
        found = {}
        if is_word(self.df, "learned"):
            found["log_df"] = LikelihoodParameter.positive((1,), self.log_df_prior, "df")
        if is_word(self.scale, "learned"):
            shape = (self.num_outputs,)
            found["log_scale"] = LikelihoodParameter.positive(shape, self.log_scale_prior, "scale")
        return found

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """As a likelihood: ``StudentT(df, outputs, scale)``."""
        df: Any = self.df
        if is_word(self.df, "learned"):
            df = per_output(parameters["log_df"].exp(), outputs)
        scale: Any = self.scale
        if is_word(self.scale, "learned"):
            scale = per_output(parameters["log_scale"].exp(), outputs)
        return torch.distributions.StudentT(df, outputs, scale, validate_args=False)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Shapes agree, and the scale is one number or learned."""
        if (not is_word(self.scale, "learned") and not is_number(self.scale)) or self.fan_in:
            raise ValueError(
                'StudentT as a likelihood takes one number or "learned" as scale and no fan_in, '
                f"got {self.scale!r}, fan_in={self.fan_in}."
            )
        same_shape(outputs, targets, per_particle=False)
        width = outputs.shape[-1] if outputs.ndim > 2 else 1
        if is_word(self.scale, "learned") and self.num_outputs not in (1, width):
            raise ValueError(
                f"The likelihood has {self.num_outputs} scales but the model {width} outputs."
            )
