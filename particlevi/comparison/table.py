"""``compare()``: several sets of draws of one posterior, side by side.

Predictions are the common ground: they do not depend on which hidden unit is which. Distances
between draws and effective temperatures speak of the parameters themselves, and mean little across
modes that differ by a symmetry.

Reference: Wilson, Izmailov, Hoffman, Gal, Li, Pradier, Vikram, Foong, Lotfi and Farquhar,
"Evaluating approximate inference in Bayesian deep learning", 2022 (agreement and total variation);
Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_positive_int
from particlevi.curvature.hessian import dense_hessian, potential_energy
from particlevi.data.tensors import as_tensors
from particlevi.diagnostics.calibration import calibration_error
from particlevi.draws import Draws
from particlevi.gradients._evaluate import value_and_grad
from particlevi.kernels.discrepancies import Discrepancy, ksd, mmd, sliced_wasserstein
from particlevi.kernels.kernels import rbf
from particlevi.potentials.potential import ModelPotential
from particlevi.sgdvi.series import block_labels
from particlevi.typing import Batch

__all__ = ["Comparison", "compare"]

COLUMNS = {
    "draws": "number of draws used",
    "nll": "mean negative log predictive density per datum, in nats",
    "accuracy": "share of right classes",
    "rmse": "root mean squared error of the predictive mean",
    "ece": "expected calibration error: gap of confidence to share right, or of interval coverage",
    "agreement": "share of inputs with the reference's most likely class",
    "total_variation": "between predictive distributions and the reference's, mean over inputs",
    "function_distance": "RMS difference of the mean output to the reference's",
    "sliced_wasserstein": "between draws and the reference's: root of the mean over directions",
    "mmd": "squared maximum mean discrepancy between draws and the reference's, unbiased; Gaussian "
    "kernel, its bandwidth the median squared distance within the reference",
    "ksd": "squared kernel Stein discrepancy of the draws to the posterior, unbiased",
    "temperature": "median effective temperature over Hessian eigendirections, 1 for the posterior",
    "ess": "median effective sample size of the outputs",
    "ess_per_second": "the same over the seconds of the run",
    "seconds": "that the run took",
}

_TO_REFERENCE = ("agreement", "total_variation", "function_distance")
_RESAMPLED = 200


@dataclass(frozen=True, eq=False)
class Comparison:
    """One row per set of draws.

    Attributes:
        rows: by name, the quantities of ``COLUMNS`` that apply; None where one does not.
        reference: the name of the set that the others are compared with.
        eigenvalues: of the Hessian of the potential at the centre, ``[D]``, smallest first; empty
            if it was not computed.
        temperatures: by name, the effective temperature along each eigenvector, ``[D]``.
        errors: by name, standard errors: of what is a mean over the data, over the data; of ``ece``
            by the bootstrap over them; of distances over directions or draws (taken as
            independent); of ``temperature`` by the bootstrap over blocks of draws.
        temperature_errors: by name, standard errors of ``temperatures``, ``[D]``; 0 for the
            reference, to which they are relative.
    """

    rows: dict[str, dict[str, float | None]]
    reference: str
    eigenvalues: Tensor
    temperatures: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    temperature_errors: dict[str, Tensor] = field(default_factory=dict)

    def table(self) -> str:
        """The rows as a Markdown table."""
        shown = self._shown()
        lines = [["method", *shown], ["---"] * (len(shown) + 1)]
        lines += [[name, *(self._cell(name, column) for column in shown)] for name in self.rows]
        return _markdown(lines)

    def explain(self) -> str:
        """The same with the methods side by side, and what each quantity means."""
        lines = [["", *self.rows, "meaning"], ["---"] * (len(self.rows) + 2)]
        lines += [[c, *(self._cell(n, c) for n in self.rows), COLUMNS[c]] for c in self._shown()]
        return _markdown(lines)

    def _shown(self) -> list[str]:
        return [c for c in COLUMNS if any(row.get(c) is not None for row in self.rows.values())]

    def _cell(self, name: str, column: str) -> str:
        value = self.rows[name].get(column)
        if value is None:
            return "-"
        error = self.errors.get(name, {}).get(column)
        return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"

    def __str__(self) -> str:
        return self.table()


def compare(
    draws: Mapping[str, Draws],
    data: Any,
    *,
    reference: str | None = None,
    train_data: Any = None,
    thin: int = 1,
    max_hessian: int = 1500,
    num_probes: int = 20,
    num_directions: int = 200,
    num_points: int = 500,
    seed: int = 0,
) -> Comparison:
    """Several sets of draws of one posterior, in one table.

    Args:
        draws: by name, all of the same potential, made from a module.
        data: held-out data, as given to ``sample``.
        reference: the set that the others are compared with; the last if absent.
        train_data: the training data. With them the kernel Stein discrepancy to the posterior is
            computed, and the Hessian of the potential is computed at the
            mean of the reference's draws (at its draw of highest density if that is better), and
            the effective temperature along its eigenvectors: the variance over the reference's,
            both within chains, so that different modes do not count as variance; the variance
            times the curvature if the reference's particles interact.
        thin: use every ``thin``-th draw.
        max_hessian: with more parameters than that, no Hessian is computed.
        num_probes: of the inputs, at which effective sample sizes of the outputs are taken.
        num_directions: for the sliced Wasserstein distance.
        num_points: draws, evenly spaced, for the two kernel discrepancies.
        seed: of these directions.

    Raises:
        ValueError: fewer than two sets, draws of different potentials, or an unknown reference.

    >>> import particlevi as pvi
    >>> net, x = torch.nn.Linear(1, 1), torch.linspace(-1, 1, 40).unsqueeze(1)
    >>> model = pvi.from_module(net, pvi.Gaussian(scale=0.3), pvi.Normal(1.0), num_data=40)
    >>> run = {"num_particles": 4, "num_warmup": 300, "num_draws": 100, "progress": False}
    >>> found = compare(
    ...     {
    ...         "sgd": pvi.sample(pvi.sgd(model), (x, x), step_size=1e-3, batch_size=4, **run),
    ...         "sghmc": pvi.sample(pvi.sghmc(model), (x, x), step_size=0.02, **run),
    ...     },
    ...     data=(x, x),
    ...     train_data=(x, x),
    ... )
    >>> sorted(found.rows)
    ['sgd', 'sghmc']
    """
    if len(draws) < 2:
        raise ValueError(f"A comparison takes at least two sets of draws, got {list(draws)}.")
    names = list(draws)
    reference = names[-1] if reference is None else reference
    check_choice("reference", reference, names)
    check_positive_int("num_probes", num_probes)
    check_positive_int("num_directions", num_directions)
    check_positive_int("num_points", num_points, minimum=2)
    model = _shared_model(draws)
    data = as_tensors(data, model)
    inputs, targets = data[:-1], data[-1]
    parameters = {name: each.flat(thin).double() for name, each in draws.items()}
    predictive = {name: _predictive(each, inputs, thin) for name, each in draws.items()}
    base = predictive[reference]
    eigenvalues, temperatures = torch.empty(0), {}
    resampled: dict[str, Tensor] = {}
    few = {name: _spaced(points, num_points) for name, points in parameters.items()}
    # One bandwidth for every row: the median squared distance within the reference.
    between = torch.pdist(few[reference]).square()
    kernel = rbf(float(between.median())) if len(between) and between.median() > 0 else rbf()
    if train_data is not None and model.num_params <= max_hessian:
        train = as_tensors(train_data, model)
        center = _center(model, parameters[reference], train)
        hessian = dense_hessian(potential_energy(model, center, train))
        eigenvalues, vectors = torch.linalg.eigh(hessian)
        spreads = {name: _within_chains(each, thin, vectors) for name, each in draws.items()}
        base_spread = spreads[reference]
        for k, (name, around) in enumerate(spreads.items()):
            if around is None:
                continue
            # The posterior's own variance, where it was sampled: the Hessian's inverse is only
            # its Gaussian approximation.
            unit, again = 1 / eigenvalues, 1 / eigenvalues.expand(_RESAMPLED, -1)
            if base_spread is not None:
                unit, again = base_spread.variance(), base_spread.resampled(seed)
            up = eigenvalues > 0
            temperatures[name] = torch.where(up, around.variance() / unit, torch.nan)
            drawn = again if name == reference else around.resampled(seed + 1 + k)
            resampled[name] = torch.where(up, drawn / again, torch.nan)
    rows, errors = {}, {}
    for name, each in draws.items():
        own = predictive[name]
        over_data = own.to_reference(base) if name != reference else {}
        density = each.log_predictive_density(data, thin=thin)
        scores, hits = -density, _hits(own, targets)
        right = _mean(hits) if own.classes else _root(_mean(hits))
        scored = {"accuracy" if own.classes else "rmse": right}
        ess = _ess(each, inputs, num_probes)
        warm = temperatures.get(name)
        different = name != reference
        distances: dict[str, Discrepancy] = {}
        if different:
            distances["sliced_wasserstein"] = sliced_wasserstein(
                parameters[name], parameters[reference], num_directions, seed
            )
        if different and min(len(few[name]), len(few[reference])) > 1:
            distances["mmd"] = mmd(few[name], few[reference], kernel)
        if train_data is not None and len(few[name]) > 1:
            distances["ksd"] = ksd(few[name], _scores(model, few[name], train_data))
        found = {key: d.value for key, d in distances.items()}
        spread = {key: d.standard_error for key, d in distances.items()}
        if different:
            squared = found["sliced_wasserstein"], spread["sliced_wasserstein"]
            found["sliced_wasserstein"], spread["sliced_wasserstein"] = _root(squared)
        rows[name] = {
            "draws": float(len(parameters[name])),
            "nll": float(scores.mean()),
            **{key: value for key, (value, _) in scored.items()},
            "ece": own.calibration(targets),
            **{key: over_data.get(key, (None, 0.0))[0] for key in _TO_REFERENCE},
            **{key: found.get(key) for key in ("sliced_wasserstein", "mmd", "ksd")},
            "temperature": None if warm is None else float(warm.nanmedian()),
            "ess": ess,
            "ess_per_second": None if ess is None else ess / each.seconds,
            "seconds": each.seconds,
        }
        errors[name] = {
            **spread,
            **{key: error for key, (_, error) in (over_data | scored).items()},
            "ece": own.calibration_error(targets, seed),
            "nll": _mean(scores)[1],
        }
        if warm is not None and different:
            errors[name]["temperature"] = float(resampled[name].nanmedian(1).values.std())
    return Comparison(
        rows,
        reference,
        eigenvalues,
        temperatures,
        errors,
        {name: each.std(0) for name, each in resampled.items()},
    )


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(values.numel())


def _root(square: tuple[float, float]) -> tuple[float, float]:
    """The square root of a value, with its standard error."""
    root = math.sqrt(max(square[0], 0.0))
    return root, square[1] / (2 * max(root, 1e-30))


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


@dataclass(frozen=True, eq=False)
class _Predictive:
    """The predictive distributions ``[B]`` of one set: class probabilities, or mixed normals."""

    mean: Tensor
    std: Tensor
    probs: Tensor | None
    classes: bool

    def to_reference(self, other: _Predictive) -> dict[str, tuple[float, float]]:
        """Distances to another's predictions and their standard errors over the inputs."""
        found = {}
        if self.probs is not None and other.probs is not None:
            same = (self.probs.argmax(-1) == other.probs.argmax(-1)).double()
            variation = 0.5 * (self.probs - other.probs).abs().sum(-1)
            found = {"agreement": _mean(same), "total_variation": _mean(variation)}
        square, error = _mean((self.mean - other.mean).square())
        root = math.sqrt(square)
        return found | {"function_distance": (root, error / (2 * max(root, 1e-30)))}

    def at(self, index: Tensor) -> _Predictive:
        probs = None if self.probs is None else self.probs[index]
        return _Predictive(self.mean[index], self.std[index], probs, self.classes)

    def calibration_error(self, targets: Tensor, seed: int) -> float:
        """The standard error of ``calibration`` by the bootstrap over the data."""
        generator, count = torch.Generator().manual_seed(seed), len(targets)
        picks = torch.randint(count, (_RESAMPLED, count), generator=generator)
        again = [self.at(pick).calibration(targets[pick]) for pick in picks]
        return float(torch.tensor(again).std())

    def calibration(self, targets: Tensor) -> float:
        if self.probs is not None:
            return calibration_error(self.probs, targets.long().reshape(len(self.probs)))
        levels = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
        place = torch.special.ndtr((targets.double().view_as(self.mean) - self.mean) / self.std)
        covered = [((place - 0.5).abs() < level / 2).double().mean() for level in levels]
        return float((torch.stack(covered) - levels).abs().mean())


def _shared_model(draws: Mapping[str, Draws]) -> ModelPotential:
    models = {name: each.potential for name, each in draws.items()}
    if any(model is None for model in models.values()):
        missing = [name for name, model in models.items() if model is None]
        raise ValueError(f"{missing} were loaded without potential: pvi.load(path, potential=...).")
    first_name, first = next(iter(models.items()))
    assert first is not None
    for name, model in models.items():
        assert model is not None
        if dict(model.fingerprint) != dict(first.fingerprint):
            raise ValueError(f"{first_name!r} and {name!r} are draws of different potentials.")
    if first.likelihood is None:
        raise ValueError("A comparison of predictions needs a potential made from a module.")
    return first


def _spaced(points: Tensor, num: int) -> Tensor:
    """At most ``num`` of the points, evenly spaced."""
    return points[torch.linspace(0, len(points) - 1, min(num, len(points))).long()]


def _scores(model: ModelPotential, particles: Tensor, train_data: Any) -> Tensor:
    """``grad log p [S, D]`` on all training data, in float64."""
    batch = Batch(as_tensors(train_data, model))
    parts = particles.to(model.device, model.dtype).split(64)
    slopes = [value_and_grad(model, part, batch, model.chunk_size).gradient for part in parts]
    return -torch.cat(slopes).double()


def _predictive(draws: Draws, inputs: Any, thin: int) -> _Predictive:
    found = draws.predict(inputs, thin=thin)
    probs = found.probs
    if probs is not None:
        probs = probs.double()
        likelihood = draws.potential.likelihood if draws.potential is not None else None
        if likelihood is not None and likelihood.binary:
            probs = probs.reshape(len(probs), -1)[:, :1]
            probs = torch.cat([1 - probs, probs], -1)
    return _Predictive(found.mean.double(), found.std.double(), probs, probs is not None)


def _hits(own: _Predictive, targets: Tensor) -> Tensor:
    """Right or wrong per datum, or squared errors."""
    if own.probs is not None:
        return (own.probs.argmax(-1) == targets.reshape(len(own.probs))).double()
    return (own.mean - targets.double().view_as(own.mean)).square().flatten(1).mean(1)


def _ess(draws: Draws, inputs: Any, num_probes: int) -> float | None:
    if draws.interacting or draws.particles.shape[1] < 4 or draws.attrs.get("sampler") == "swag":
        return None
    probe = pytree.tree_map(lambda leaf: leaf[:num_probes], inputs)
    return float(torch.from_numpy(draws.ess(of="predictions", inputs=probe)).nanmedian())


class _Spread(NamedTuple):
    """Squares of draws about their chain's mean along D directions, summed over blocks."""

    sums: Tensor
    counts: Tensor
    share: float
    """Of the draws, as degrees of freedom."""

    def variance(self) -> Tensor:
        return self.sums.sum(0) / (self.counts.sum() * self.share)

    def resampled(self, seed: int) -> Tensor:
        """``[R, D]`` with blocks drawn with replacement."""
        count, generator = len(self.counts), torch.Generator().manual_seed(seed)
        picks = torch.randint(count, (_RESAMPLED, count), generator=generator)
        weights = torch.nn.functional.one_hot(picks, count).sum(1).to(self.sums)
        return weights @ self.sums / ((weights @ self.counts) * self.share)[:, None]


def _within_chains(draws: Draws, thin: int, vectors: Tensor) -> _Spread | None:
    values = draws.particles[:, ::thin].double()
    length = values.shape[1]
    if draws.interacting or length < 2:
        return None
    squares = ((values - values.mean(1, keepdim=True)) @ vectors).square()
    labels = block_labels(values, 20).flatten()
    counts = torch.bincount(labels).double()
    sums = torch.zeros(len(counts), squares.shape[-1], dtype=torch.float64)
    sums.index_add_(0, labels, squares.flatten(0, 1))
    return _Spread(sums, counts, 1 - 1 / length)


def _center(model: ModelPotential, particles: Tensor, data: Any) -> Tensor:
    points = torch.stack([particles.mean(0), *particles[:: max(1, len(particles) // 16)]])
    with torch.no_grad():
        energy = torch.cat([model(p[None].to(model.dtype), Batch(data)) for p in points])
    return points[energy.argmin()].to(model.dtype)
