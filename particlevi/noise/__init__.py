"""What gradient noise is like: its covariance, spectrum and level."""

from particlevi.noise.average import AveragedNoise, average
from particlevi.noise.balance import Balance, BalancePath, Pair, balance_along
from particlevi.noise.bounds import GeneralizationBound, SGDRun, generalization_bound
from particlevi.noise.covariance import Estimate, GradientNoise, measure
from particlevi.noise.diagonal_nets import DiagonalNet
from particlevi.noise.gaussianity import FamilyTest, Gaussianity, gaussianity
from particlevi.noise.path import NoisePath, noise_along
from particlevi.noise.recorder import SGDRecorder
from particlevi.noise.regulariser import (
    FiniteRate,
    Regulariser,
    effective_loss,
    epoch_drift,
    finite_rate_regulariser,
    shuffling_regulariser,
    spectral_weight,
)
from particlevi.noise.scalings import FreshBatching, Scalings, batch_factor, scalings, temperature
from particlevi.noise.spectrum import Spectrum
from particlevi.noise.tails import TailIndex, hill, tail_index
from particlevi.noise.variance import gradient_variance

__all__ = [
    "AveragedNoise",
    "Balance",
    "BalancePath",
    "DiagonalNet",
    "Estimate",
    "FamilyTest",
    "FiniteRate",
    "FreshBatching",
    "Gaussianity",
    "GeneralizationBound",
    "GradientNoise",
    "NoisePath",
    "Pair",
    "Regulariser",
    "SGDRecorder",
    "SGDRun",
    "Scalings",
    "Spectrum",
    "TailIndex",
    "average",
    "balance_along",
    "batch_factor",
    "effective_loss",
    "epoch_drift",
    "finite_rate_regulariser",
    "gaussianity",
    "generalization_bound",
    "gradient_variance",
    "hill",
    "measure",
    "noise_along",
    "scalings",
    "shuffling_regulariser",
    "spectral_weight",
    "tail_index",
    "temperature",
]
