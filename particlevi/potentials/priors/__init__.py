"""Priors of a module's parameters, each a thin layer on ``torch.distributions``."""

from particlevi.potentials.priors.base import (
    Mean,
    Prior,
    PriorLike,
    Scale,
    check_mean,
    check_prior,
    check_scale,
    describe_mean,
    describe_scale,
)
from particlevi.potentials.priors.elementwise import Flat, Laplace, Normal
from particlevi.potentials.priors.joint import JointPrior, joint_prior
from particlevi.potentials.priors.structured import Correlated, Hierarchical, Horseshoe

__all__ = [
    "Correlated",
    "Flat",
    "Hierarchical",
    "Horseshoe",
    "JointPrior",
    "Laplace",
    "Mean",
    "Normal",
    "Prior",
    "PriorLike",
    "Scale",
    "check_mean",
    "check_prior",
    "check_scale",
    "describe_mean",
    "describe_scale",
    "joint_prior",
]
