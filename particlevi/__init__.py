"""Sampling posteriors with particles, and SGD as an approximate posterior sampler."""

from particlevi import sgdvi
from particlevi.comparison import Comparison, compare
from particlevi.draws import Draws, Prediction, load
from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.minibatch import minibatch
from particlevi.monitor import DivergenceError
from particlevi.potentials.function import from_log_density, from_log_likelihood
from particlevi.potentials.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from particlevi.potentials.module import from_module
from particlevi.potentials.priors import Laplace, Normal
from particlevi.potentials.pyro import from_pyro
from particlevi.potentials.student_t import StudentT
from particlevi.recording import outputs_at
from particlevi.samplers.psgld import psgld
from particlevi.samplers.sgd import sgd
from particlevi.samplers.sghmc import sghmc
from particlevi.samplers.sgld import sgld
from particlevi.samplers.svgd import svgd
from particlevi.sampling import resume, sample
from particlevi.schedules import constant, cosine, cyclical, polynomial
from particlevi.stein.bandwidths import fixed, median
from particlevi.stein.kernels import linear, rbf
from particlevi.typing import Batch, Sampler

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Bernoulli",
    "Categorical",
    "Comparison",
    "DivergenceError",
    "Draws",
    "Gaussian",
    "Laplace",
    "Normal",
    "Poisson",
    "Prediction",
    "Sampler",
    "StudentT",
    "compare",
    "constant",
    "control_variate",
    "cosine",
    "cyclical",
    "fixed",
    "from_log_density",
    "from_log_likelihood",
    "from_module",
    "from_pyro",
    "linear",
    "load",
    "median",
    "minibatch",
    "outputs_at",
    "polynomial",
    "psgld",
    "rbf",
    "resume",
    "sample",
    "sgd",
    "sgdvi",
    "sghmc",
    "sgld",
    "svgd",
]
