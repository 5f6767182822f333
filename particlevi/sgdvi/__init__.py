"""SGD as variational inference: the effective potential that SGD minimises, and its circulation."""

from particlevi.sgdvi.optimal import (
    effective_temperatures,
    kl_to_posterior,
    optimal_preconditioner,
    optimal_rate,
)
from particlevi.sgdvi.stationary import (
    Scalings,
    StationaryLaw,
    batch_factor,
    exact_law,
    ou_covariance,
    scalings,
    stationary_law,
)

__all__ = [
    "Scalings",
    "StationaryLaw",
    "batch_factor",
    "effective_temperatures",
    "exact_law",
    "kl_to_posterior",
    "optimal_preconditioner",
    "optimal_rate",
    "ou_covariance",
    "scalings",
    "stationary_law",
]
