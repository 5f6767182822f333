"""Laws of a datum given the model's output, each a thin layer on ``torch.distributions``."""

from particlevi.potentials.likelihoods.base import (
    Likelihood,
    LikelihoodParameter,
    check_targets,
    log_prob,
    plain_targets,
    split_weights,
)
from particlevi.potentials.likelihoods.classes import Bernoulli, Categorical, Ordinal
from particlevi.potentials.likelihoods.counts import NegativeBinomial, Poisson
from particlevi.potentials.likelihoods.gaussian import Gaussian, MeanScaleGaussian
from particlevi.potentials.likelihoods.student_t import StudentT

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "LikelihoodParameter",
    "MeanScaleGaussian",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
    "check_targets",
    "log_prob",
    "plain_targets",
    "split_weights",
]
