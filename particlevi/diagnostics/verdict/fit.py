"""Whether the posterior fits the data that it has seen as well as the model can."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.data import DataLike, as_data, as_particles
from particlevi.diagnostics.verdict.findings import Verdict
from particlevi.drawset import DrawSet
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch

__all__ = ["Fit", "check_fit", "fit"]

_MIN_DATA = 20
_MAX_DATA = 4000
_MAX_DRAWS = 100
_STEPS = 2
_ROUNDS = 60
_PATIENCE = 5
# The point is better if it is so by more than both of these, in standard errors and nats per datum.
_Z = 2.5
_LEAST_GAIN = 0.05


class Fit(NamedTuple):
    """What a point predicts better than the posterior, mean per datum in nats.

    Attributes:
        gain: log density of the data under the point less that under the posterior's draws.
        error: its standard error over data.
        posterior: log predictive density of the draws, mean per datum of both halves.
    """

    gain: float
    error: float
    posterior: float

    @property
    def bad(self) -> bool:
        """Whether the point is better by more than errors explain, and by enough to matter."""
        return self.gain > max(_LEAST_GAIN, _Z * self.error)


def check_fit(draws: DrawSet, data: DataLike, thin: int, verdict: Verdict) -> None:
    """A point trained on half of the data must not predict the other half better than the draws.

    The draws have seen both halves. In a posterior that fits, their log predictive density is
    within second order of the highest that the model reaches; a point that has seen one half only
    is above it by more than 2.5 standard errors and .05 nats per datum only where the prior, or
    noise that the sampler adds, keeps the posterior from the data.
    """
    model = draws.potential
    if model is None or data is None or not draws.complete or model.num_data is None:
        return
    if model.evaluation.takes_all_data:
        return
    if model.num_data < _MIN_DATA or not draws.particles.shape[1]:
        return
    measured = fit(draws, data, thin)
    if measured is None:
        return
    verdict.note("log density of the training data", measured.posterior)
    verdict.note("gain of a trained point", measured.gain, measured.error)
    if measured.bad:
        verdict.add(
            "bad fit",
            "model",
            f"Bad fit of the training data: their log predictive density is "
            f"{measured.posterior:.3g} nats per datum, and a point trained on half of them "
            f"predicts the other half better by {measured.gain:.2g} +- {measured.error:.1g}.",
            "Where temperatures are right, the model says so: its prior is too narrow or too wide "
            "for these inputs (standardise them; see the prior's scale per layer), or the "
            "likelihood's scale is off.",
            gain=measured.gain,
            error=measured.error,
        )


def fit(draws: DrawSet, data: DataLike, thin: int = 1) -> Fit | None:
    """See ``check_fit``; None if the log-likelihood is random (sampled dropout)."""
    model = draws.model()
    checked = as_data(data, model)
    order = torch.randperm(checked.num_data, generator=torch.Generator().manual_seed(0))
    size = min(checked.num_data // 2, _MAX_DATA)
    train, test = checked.take(order[:size]), checked.take(order[-size:])
    sample = draws.parameters(thin)
    picks = torch.linspace(0, len(sample) - 1, min(_MAX_DRAWS, len(sample))).long()
    points = as_particles(sample[picks], model, model.num_params)
    with torch.no_grad():
        of_train = _log_likelihood(model, points, train)
        seen, of_train = of_train.sum(1), of_train.logsumexp(0) - math.log(len(points))
        again = _log_likelihood(model, points[:1], train).sum(1)
        density = _log_likelihood(model, points, test).logsumexp(0) - math.log(len(points))
    if float((again[0] - seen[0]).abs()) > 1e-3 * (1 + float(seen[0].abs())):
        return None
    best = _trained(model, points[seen.argmax()], train, test)
    gain = best - density
    error = float(gain.std()) / math.sqrt(len(gain))
    return Fit(float(gain.mean()), error, float(torch.cat([of_train, density]).mean()))


def _log_likelihood(model: ModelPotential, points: Tensor, batch: Batch) -> Tensor:
    """``[S, B]`` in float64."""
    parts = [model.log_likelihood(part, batch) for part in points.split(16)]
    return torch.cat(parts).double()


def _trained(model: ModelPotential, start: Tensor, train: Batch, test: Batch) -> Tensor:
    """Log densities ``[B]`` of the test data where they are best on the way of L-BFGS."""
    theta = start.clone()

    def energy(particles: Tensor, batch: Batch | None) -> Tensor:
        assert batch is not None
        return -model.log_likelihood(particles, batch).mean(1)

    def closure() -> Tensor:
        slope = value_and_grad(energy, theta[None], train, None)
        theta.grad = slope.gradient[0]
        return slope.potential[0]

    def predicted() -> Tensor:
        with torch.no_grad():
            return _log_likelihood(model, theta[None], test)[0]

    optimizer = torch.optim.LBFGS([theta], max_iter=_STEPS, line_search_fn="strong_wolfe")
    best, waited = predicted(), 0
    for _ in range(_ROUNDS):
        optimizer.step(closure)
        values = predicted()
        if not torch.isfinite(values).all() or waited == _PATIENCE:
            break
        waited += 1
        if values.mean() > best.mean():
            best, waited = values, 0
    return best
