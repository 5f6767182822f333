"""What gradient noise is like: its covariance, spectrum and level."""

from particlevi.noise.covariance import Estimate, GradientNoise, NoisePath, measure, noise_along
from particlevi.noise.scalings import Scalings, batch_factor, scalings
from particlevi.noise.spectrum import Spectrum
from particlevi.noise.variance import gradient_variance

__all__ = [
    "Estimate",
    "GradientNoise",
    "NoisePath",
    "Scalings",
    "Spectrum",
    "batch_factor",
    "gradient_variance",
    "measure",
    "noise_along",
    "scalings",
]
