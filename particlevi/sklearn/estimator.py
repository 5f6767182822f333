"""What the regressor and the classifier share: data in, a posterior sampled, outputs out."""

from __future__ import annotations

import os
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from particlevi._checks import check_choice, check_flag, check_positive, check_positive_int
from particlevi._warning import warn
from particlevi.diagnostics.verdict import Verdict
from particlevi.draws import Draws
from particlevi.errors import NotConvergedWarning, ParticleviWarning
from particlevi.potentials.likelihoods import Likelihood
from particlevi.potentials.module import from_module
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.priors import Normal
from particlevi.running.converged import converged, probe_inputs
from particlevi.running.monitor import Look, Rule, max_seconds
from particlevi.running.sampling import sample
from particlevi.sklearn.net import ACTIVATIONS, Activation, make_net, outputs_of
from particlevi.sklearn.start import trained

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "particlevi.sklearn needs scikit-learn 1.6 or later: pip install particlevi[sklearn]."
    ) from error

__all__ = ["Array", "BayesianMLP", "PosteriorWarning"]

Array: TypeAlias = npt.NDArray[Any]

_FEW_PARAMETERS = 100
_THIN_OF_A_NET = 16
_LONG_ENOUGH_TO_COMPILE = 120.0
_MOST_DRAWS = 1000
_ROWS = 256


class PosteriorWarning(ConvergenceWarning, ParticleviWarning):  # type: ignore[misc,unused-ignore]
    """The posterior was not reached, as far as diagnostics can tell; the verdict says why."""


class _Deadline:
    """Ends a run when its time is over, and keeps where its particles were then."""

    def __init__(self, seconds: float):
        self.rule = max_seconds(seconds)
        self.position: Tensor | None = None

    def __call__(self, look: Look) -> str | None:
        reason = self.rule(look)
        if reason is not None:
            self.position = look.position.clone()
        return reason


class BayesianMLP(BaseEstimator):  # type: ignore[misc,unused-ignore]
    """The part of the estimators that does not depend on the kind of target."""

    hidden_layer_sizes: int | Sequence[int]
    activation: Activation
    prior_scale: float
    num_chains: int
    max_seconds: float | None
    num_warmup: int | None
    num_draws: int | None
    compile: bool | None
    random_state: Any

    draws_: Draws
    n_features_in_: int

    def _inputs(self, X: Any) -> Array:
        """Checked inputs of a fitted estimator, ``[B, F]``."""
        check_is_fitted(self, "draws_")
        checked: Array = validate_data(self, X, reset=False, dtype=np.float64)
        return checked

    def _check_parameters(self) -> None:
        for size in self._widths():
            check_positive_int("hidden_layer_sizes", size)
        check_choice("activation", self.activation, list(ACTIVATIONS))
        check_positive("prior_scale", self.prior_scale)
        check_positive_int("num_chains", self.num_chains)
        if self.max_seconds is not None:
            check_positive("max_seconds", self.max_seconds)
        if self.compile is not None:
            check_flag("compile", self.compile)
        for name in ("num_warmup", "num_draws"):
            if getattr(self, name) is not None:
                check_positive_int(name, getattr(self, name))

    def _sampled(
        self,
        X: Array,
        targets: Tensor,
        weight: Array | None,
        likelihood: Likelihood,
        num_outputs: int,
        budget: float | None,
    ) -> None:
        """Sample the posterior of the net's weights given standardised inputs."""
        began = time.perf_counter()
        self._center, self._spread = moments(X, weight)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        inputs = torch.as_tensor((X - self._center) / self._spread, dtype=torch.float32)
        self._num_data, self._num_outputs, self._likelihood = len(X), num_outputs, likelihood
        self._seed = seed
        potential = self._potential()
        target: Any = targets
        if weight is not None:
            target = {"target": targets, "weight": torch.as_tensor(weight, dtype=torch.float32)}
        data = (inputs, target)
        probe = probe_inputs(potential, data)
        limit = self.max_seconds if budget is None else budget
        initial, thin = None, None
        large = potential.num_params > _FEW_PARAMETERS
        if large and self.num_draws is None:
            thin = _THIN_OF_A_NET
        if large:
            weights = None if weight is None else target["weight"]
            chains = int(self.num_chains)
            initial = trained(potential, inputs, targets, weights, chains, limit, seed)
        rules: list[Rule] = [] if self.num_draws is not None else [converged(probe=probe)]
        deadline: _Deadline | None = None
        if limit is not None:
            spent = time.perf_counter() - began
            deadline = _Deadline(max(limit - spent, 0.05 * limit))
            rules.append(deadline)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotConvergedWarning)  # the verdict tells it below
            draws = sample(
                potential,
                data,
                num_particles=int(self.num_chains) if initial is None else None,
                initial=initial,
                num_warmup=self.num_warmup,
                num_draws=self.num_draws,
                thin=thin,
                seed=seed,
                compile=self._compiles(large, limit),
                monitor=rules,
                progress=False,
            )
        if not draws.particles.shape[1] and deadline is not None and deadline.position is not None:
            ends = deadline.position.unsqueeze(1)
            kept = Draws.from_tensor(ends, potential, kind="independent", seconds=draws.seconds)
            draws = replace(kept, attrs=draws.attrs)
        self.draws_ = draws
        self.verdict_: Verdict = draws.diagnose(inputs=probe, verbose=False)
        if thin is not None and "not converged" in {each.kind for each in self.verdict_.findings}:
            self.draws_ = draws[:, draws.particles.shape[1] // 2 :]
            self.verdict_ = self.draws_.diagnose(inputs=probe, verbose=False)
        self._judge()

    def _compiles(self, large: bool, limit: float | None) -> bool:
        """Whether steps are compiled: as asked for, else where a run is long enough to gain by it.

        And where there is a C++ compiler.
        """
        if self.compile is not None:
            return self.compile
        long = self.num_draws is None and (limit is None or limit >= _LONG_ENOUGH_TO_COMPILE)
        return large and long and shutil.which(os.environ.get("CXX", "g++")) is not None

    def _judge(self) -> None:
        """Warn where the posterior was not reached."""
        self.ended_by_: Any = self.draws_.attrs.get("ended_by", "")
        if self.draws_.facts.kind == "independent":
            self.verdict_.add(
                "few draws",
                "wrong",
                "The time was over before the first draw: predictions are those of the starts.",
                "Raise max_seconds, or take fewer hidden units.",
            )
        found = [f for f in self.verdict_.findings if f.severity in ("wrong", "uncertain")]
        if found:
            listed = "\n".join(map(str, found))
            warn(
                f"The posterior was not reached:\n{listed}\nA larger max_seconds, or fewer hidden "
                "units, is the way on; draws_ and verdict_ hold the rest.",
                PosteriorWarning,
            )

    def _potential(self) -> ModelPotential:
        widths, outputs = self._widths(), self._num_outputs
        net = make_net(len(self._center), widths, outputs, self.activation, self._seed)
        return from_module(net, self._likelihood, Normal(self.prior_scale), self._num_data)

    def _widths(self) -> list[Any]:
        sizes: Any = self.hidden_layer_sizes
        return list(sizes) if isinstance(sizes, Iterable) else [sizes]

    def _outputs(self, X: Array) -> Iterator[Tensor]:
        """The net's outputs ``[S, b, K]`` in float64, for one stretch of the inputs at a time."""
        flat = self.draws_.flat()
        picks = torch.linspace(0, len(flat) - 1, min(len(flat), _MOST_DRAWS)).round().long()
        tensors = list(self._layout(flat[picks].double()).values())
        weights = list(zip(tensors[::2], tensors[1::2], strict=True))
        inputs = torch.as_tensor((X - self._center) / self._spread, dtype=torch.float64)
        for part in inputs.split(_ROWS):
            yield outputs_of(weights, part, self.activation)

    def _layout(self, particles: Tensor) -> Mapping[str, Tensor]:
        found: Mapping[str, Tensor] = self.draws_.model().unravel(particles)
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Draws leave their potential behind in a pickle: it is made again."""
        super().__setstate__(state)
        if "draws_" in self.__dict__:
            self.draws_ = replace(self.draws_, potential=self._potential())


def moments(values: Array, weight: Array | None) -> tuple[Array, Array]:
    """Mean and standard deviation of each column; 1 in place of a deviation of zero."""
    mean = np.average(values, axis=0, weights=weight)
    spread = np.sqrt(np.average((values - mean) ** 2, axis=0, weights=weight))
    negligible = spread <= 10 * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(negligible, 1.0, spread)


def merged_rows(X: Array, y: Array, sample_weight: Any) -> tuple[Array, Array, Array | None]:
    """Every row once, in an order of its own, and how much it counts; None where that is 1.

    So rows that stand there twice are one of weight 2, to the last bit, and the order in which rows
    are given does not matter.

    Raises:
        ValueError: negative weights, or none above zero.
    """
    weight: Array = _check_sample_weight(sample_weight, X, dtype=np.float64)
    if (weight < 0).any() or not (weight > 0).any():
        raise ValueError("sample_weight must be of at least 0, and some above it.")
    X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
    rows = np.column_stack([X, np.unique(y, return_inverse=True)[1]])
    _, first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    total = np.bincount(which.reshape(-1), weight)
    return X[first], y[first], None if (total == 1).all() else total
