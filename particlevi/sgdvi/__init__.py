"""SGD as variational inference: the effective potential that SGD minimises, and its circulation."""

from particlevi.sgdvi.noise import (
    Estimate,
    GradientNoise,
    NoisePath,
    gradient_noise,
    noise_along,
)
from particlevi.sgdvi.optimal import (
    effective_temperatures,
    kl_to_posterior,
    optimal_preconditioner,
    optimal_rate,
)
from particlevi.sgdvi.spectrum import Spectrum
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
    "Estimate",
    "GradientNoise",
    "NoisePath",
    "Scalings",
    "Spectrum",
    "StationaryLaw",
    "batch_factor",
    "effective_temperatures",
    "exact_law",
    "gradient_noise",
    "kl_to_posterior",
    "noise_along",
    "optimal_preconditioner",
    "optimal_rate",
    "ou_covariance",
    "scalings",
    "stationary_law",
]
