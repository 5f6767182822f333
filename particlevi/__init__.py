"""Sampling posteriors with particles, and SGD as an approximate posterior sampler."""

import importlib
from typing import Any

from particlevi.collapse import check_collapse
from particlevi.diagnostics.groups import group_diagnostics
from particlevi.diagnostics.stability import check_stability
from particlevi.diagnostics.step_size import gradient_variance, largest_curvature, suggest_step_size
from particlevi.draws import Draws, Prediction
from particlevi.gradients.control_variate import control_variate
from particlevi.gradients.history import history
from particlevi.gradients.minibatch import minibatch
from particlevi.gradients.structured import structured, structured_dropout
from particlevi.loading import load
from particlevi.monitor import DivergenceError
from particlevi.potentials.function import from_log_density, from_log_likelihood
from particlevi.potentials.likelihoods import Bernoulli, Categorical, Gaussian, Poisson
from particlevi.potentials.module import from_module
from particlevi.potentials.priors import Laplace, Normal
from particlevi.potentials.pyro import from_pyro
from particlevi.potentials.student_t import StudentT
from particlevi.recording import outputs_at
from particlevi.samplers.baoab import baoab
from particlevi.samplers.hmc import hmc
from particlevi.samplers.leimkuhler_matthews import leimkuhler_matthews
from particlevi.samplers.nvgd import nvgd
from particlevi.samplers.obabo import obabo
from particlevi.samplers.parallel_tempering import parallel_tempering
from particlevi.samplers.psghmc import psghmc
from particlevi.samplers.psgld import psgld
from particlevi.samplers.repulsive_langevin import repulsive_langevin
from particlevi.samplers.sgd import sgd
from particlevi.samplers.sghmc import sghmc
from particlevi.samplers.sgld import sgld
from particlevi.samplers.sgnht import sgnht
from particlevi.samplers.svgd import message_passing_svgd, svgd
from particlevi.sampling import resume, sample
from particlevi.schedules import (
    constant,
    cosine,
    cyclical,
    cyclical_ramp,
    linear_ramp,
    polynomial,
    tanh_ramp,
)
from particlevi.stein.bandwidths import fixed, median
from particlevi.stein.discrepancies import (
    ksd,
    ksd_test,
    mmd,
    mmd_test,
    sliced_wasserstein,
    sliced_wasserstein_test,
)
from particlevi.stein.grouped import additive, graphical, product
from particlevi.stein.kernels import imq, linear, random_features, rbf
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
    "additive",
    "baoab",
    "check_collapse",
    "check_stability",
    "compare",
    "constant",
    "control_variate",
    "cosine",
    "cyclical",
    "cyclical_ramp",
    "fixed",
    "from_log_density",
    "from_log_likelihood",
    "from_module",
    "from_pyro",
    "gradient_variance",
    "graphical",
    "group_diagnostics",
    "history",
    "hmc",
    "imq",
    "ksd",
    "ksd_test",
    "largest_curvature",
    "leimkuhler_matthews",
    "linear",
    "linear_ramp",
    "load",
    "median",
    "message_passing_svgd",
    "minibatch",
    "mmd",
    "mmd_test",
    "nvgd",
    "obabo",
    "outputs_at",
    "parallel_tempering",
    "plots",
    "polynomial",
    "product",
    "psghmc",
    "psgld",
    "random_features",
    "rbf",
    "repulsive_langevin",
    "resume",
    "sample",
    "sgd",
    "sgdvi",
    "sghmc",
    "sgld",
    "sgnht",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
    "structured",
    "structured_dropout",
    "suggest_step_size",
    "svgd",
    "tanh_ramp",
]

_NEEDS_SCIPY = {
    "Comparison": "comparison",
    "compare": "comparison",
    "plots": "plots",
    "sgdvi": "sgdvi",
}


def __getattr__(name: str) -> Any:
    """Names whose modules bring scipy along are imported when they are first used."""
    if name not in _NEEDS_SCIPY:
        raise AttributeError(f"module 'particlevi' has no attribute {name!r}")
    module = importlib.import_module(f"particlevi.{_NEEDS_SCIPY[name]}")
    return module if name == _NEEDS_SCIPY[name] else getattr(module, name)
