"""Sampling posteriors with particles, and SGD as an approximate posterior sampler."""

import importlib
from typing import TYPE_CHECKING, Any

from particlevi import (
    curvature,
    data,
    diagnostics,
    gradients,
    kernels,
    noise,
    running,
    samplers,
    schedules,
    storage,
    tuning,
    typing,
)
from particlevi.draws import Draws
from particlevi.errors import DivergenceError, ParticleviError, ParticleviWarning
from particlevi.gradients import control_variate, msgd, structured, structured_dropout
from particlevi.loading import load
from particlevi.potentials.function import from_log_density, from_log_likelihood
from particlevi.potentials.likelihoods import (
    Bernoulli,
    Categorical,
    Gaussian,
    MeanScaleGaussian,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)
from particlevi.potentials.module import from_module
from particlevi.potentials.priors import (
    Correlated,
    Flat,
    Hierarchical,
    Horseshoe,
    Laplace,
    Normal,
)
from particlevi.potentials.pyro import from_pyro
from particlevi.running.sampling import resume, sample
from particlevi.samplers.baoab import baoab
from particlevi.samplers.hmc import hmc
from particlevi.samplers.leimkuhler_matthews import leimkuhler_matthews
from particlevi.samplers.mams import mams
from particlevi.samplers.mclmc import mclmc
from particlevi.samplers.nvgd import nvgd
from particlevi.samplers.obabo import obabo
from particlevi.samplers.optimizer import optimizer
from particlevi.samplers.parallel_tempering import parallel_tempering
from particlevi.samplers.psghmc import psghmc
from particlevi.samplers.psgld import psgld
from particlevi.samplers.randomized_hmc import randomized_hmc
from particlevi.samplers.repulsive_langevin import repulsive_langevin
from particlevi.samplers.sgd import sgd
from particlevi.samplers.sghmc import sghmc
from particlevi.samplers.sgld import sgld
from particlevi.samplers.sgnht import sgnht
from particlevi.samplers.svgd import message_passing_svgd, svgd
from particlevi.storage.keeping import outputs_at
from particlevi.tuning import suggest_step_size

if TYPE_CHECKING:
    from particlevi import comparison, optim, plots, record, sgdvi, sklearn, testing
    from particlevi.comparison import check_collapse, compare

__version__ = "0.1.0"

__all__ = [
    "Bernoulli",
    "Categorical",
    "Correlated",
    "DivergenceError",
    "Draws",
    "Flat",
    "Gaussian",
    "Hierarchical",
    "Horseshoe",
    "Laplace",
    "MeanScaleGaussian",
    "NegativeBinomial",
    "Normal",
    "Ordinal",
    "ParticleviError",
    "ParticleviWarning",
    "Poisson",
    "StudentT",
    "baoab",
    "check_collapse",
    "compare",
    "comparison",
    "control_variate",
    "curvature",
    "data",
    "diagnostics",
    "from_log_density",
    "from_log_likelihood",
    "from_module",
    "from_pyro",
    "gradients",
    "hmc",
    "kernels",
    "leimkuhler_matthews",
    "load",
    "mams",
    "mclmc",
    "message_passing_svgd",
    "msgd",
    "noise",
    "nvgd",
    "obabo",
    "optim",
    "optimizer",
    "outputs_at",
    "parallel_tempering",
    "plots",
    "psghmc",
    "psgld",
    "randomized_hmc",
    "record",
    "repulsive_langevin",
    "resume",
    "running",
    "sample",
    "samplers",
    "schedules",
    "sgd",
    "sgdvi",
    "sghmc",
    "sgld",
    "sgnht",
    "sklearn",
    "storage",
    "structured",
    "structured_dropout",
    "suggest_step_size",
    "svgd",
    "testing",
    "tuning",
    "typing",
]

# They bring scipy, matplotlib or nothing that a sampler needs: imported when they are first used.
_LAZY = {
    "check_collapse": "comparison",
    "compare": "comparison",
    "comparison": "comparison",
    "optim": "optim",
    "plots": "plots",
    "record": "record",
    "sgdvi": "sgdvi",
    "sklearn": "sklearn",
    "testing": "testing",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'particlevi' has no attribute {name!r}")
    module = importlib.import_module(f"particlevi.{_LAZY[name]}")
    return module if name == _LAZY[name] else getattr(module, name)
