"""What gradient noise is like: its covariance, spectrum and level."""

from particlevi.noise.average import AveragedNoise, average
from particlevi.noise.covariance import Estimate, GradientNoise, NoisePath, measure, noise_along
from particlevi.noise.scalings import Batching, Scalings, batch_factor, scalings, temperature
from particlevi.noise.spectrum import Spectrum
from particlevi.noise.variance import gradient_variance

__all__ = [
    "AveragedNoise",
    "Batching",
    "Estimate",
    "GradientNoise",
    "NoisePath",
    "Scalings",
    "Spectrum",
    "average",
    "batch_factor",
    "gradient_variance",
    "measure",
    "noise_along",
    "scalings",
    "temperature",
]
