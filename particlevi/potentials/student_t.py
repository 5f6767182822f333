"""Student's t, which serves as a likelihood and as a prior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from particlevi._checks import check_positive, is_number
from particlevi.potentials.likelihoods import no_parameters, same_shape
from particlevi.potentials.priors import Scale, check_scale
from particlevi.typing import JSON

__all__ = ["StudentT"]


@dataclass(frozen=True)
class StudentT:
    """Student's t with ``df`` degrees of freedom, as a likelihood or as a prior.

    A likelihood for data with outliers, ``y ~ StudentT(df, output, scale)``, or a heavy-tailed
    prior, ``w ~ StudentT(df, 0, scale)``.

    Args:
        df: degrees of freedom; the variance is finite above 2.
        scale: the scale, not the standard deviation. A prior also takes one per name pattern.
        fan_in: prior only: divide the scale of weights by the root of their fan-in.

    >>> import torch
    >>> round(float(StudentT(df=4.0).elementwise(torch.tensor(1.0)).variance), 6)
    2.0
    """

    df: float
    scale: Scale = 1.0
    fan_in: bool = False
    classes = False
    binary = False

    def __post_init__(self) -> None:
        check_positive("df", self.df)
        check_scale(self.scale)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The law as JSON."""
        return {"kind": "StudentT", **asdict(self)}

    def elementwise(self, scale: Tensor) -> Any:
        """As a prior: the law of each parameter."""
        import pyro.distributions as dist

        return dist.StudentT(self.df, scale.new_zeros(()), scale, validate_args=False)

    parameters = staticmethod(no_parameters)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """As a likelihood: ``StudentT(df, outputs, scale)``."""
        import pyro.distributions as dist

        return dist.StudentT(self.df, outputs, self.scale, validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the outputs."""
        return same_shape(outputs, targets, per_particle).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Shapes agree, and the scale is one number."""
        if not is_number(self.scale) or self.fan_in:
            raise ValueError(
                "StudentT as a likelihood takes one number as scale and no fan_in, "
                f"got {self.scale!r}, fan_in={self.fan_in}."
            )
        same_shape(outputs, targets, per_particle=False)
