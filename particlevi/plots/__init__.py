"""Pictures."""

from particlevi.plots.pictures import (
    current,
    effective_temperature,
    lag_covariance_loops,
    potential_against_loss,
    reversible_null,
    spectrum,
    temperatures,
)

__all__ = [
    "current",
    "effective_temperature",
    "lag_covariance_loops",
    "potential_against_loss",
    "reversible_null",
    "spectrum",
    "temperatures",
]
