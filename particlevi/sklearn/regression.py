"""Bayesian regression with a net whose outputs are mean and scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self, final

import numpy as np
import torch
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from torch import Tensor

from particlevi._checks import check_fraction, check_positive_int, is_number
from particlevi.potentials.likelihoods import MeanScaleGaussian
from particlevi.sklearn.estimator import Array, BayesianMLP, merged_rows, moments
from particlevi.sklearn.net import Activation

__all__ = ["BayesianMLPRegressor"]

_BISECTIONS = 60


@final
class BayesianMLPRegressor(RegressorMixin, BayesianMLP):  # type: ignore[misc,unused-ignore]
    """A posterior of nets ``y ~ Normal(m(x), s(x))``, as an estimator of scikit-learn.

    Inputs and targets are standardised inside. Weights and biases have the prior
    ``Normal(0, prior_scale)``, and ``fit`` samples their posterior by ``pvi.sample(potential,
    data)``, which tunes itself and ends when predictions have converged or the time is over. A
    prediction is the mixture of ``Normal(m_s(x), s_s(x))`` over at most 1000 of the draws.

    Args:
        hidden_layer_sizes: widths of the hidden layers.
        activation: ``"silu"``, ``"tanh"`` or ``"relu"``.
        prior_scale: standard deviation of the prior of every weight and bias.
        num_chains: P, each from a start of its own.
        max_seconds: that ``fit`` may take, about; None for no end but convergence.
        num_warmup: steps before the first draw; chosen if absent.
        num_draws: T of each chain; until predictions have converged if absent.
        compile: steps in compiled code, faster after the half minute in which a C++ compiler
            makes it; torch keeps it on disk. If absent, where ``max_seconds`` is 120 or more and
            there is a compiler.
        random_state: as in scikit-learn. A run that ``max_seconds`` ends is not repeatable.

    Attributes:
        draws_: all the rest of this package takes them; of the standardised data. Of a run without
            ``num_draws`` that has not converged, the second half.
        verdict_: what diagnostics say of them.
        ended_by_: what ended the run.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        ValueError: at ``fit``, a parameter out of its range or data that scikit-learn refuses.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(-2, 2, 60)[:, None]
        >>> net = BayesianMLPRegressor((8,), num_chains=4, num_warmup=200, num_draws=50)
        >>> import warnings
        >>> with warnings.catch_warnings():  # a run as short as this has not converged
        ...     warnings.simplefilter("ignore")
        ...     mean, std = net.fit(x, 2 * x[:, 0]).predict(x, return_std=True)
        >>> mean.shape, std.shape, net.predict_interval(x, 0.9).shape
        ((60,), (60,), (60, 2))
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (16, 16),
        *,
        activation: Activation = "silu",
        prior_scale: float = 1.0,
        num_chains: int = 8,
        max_seconds: float | None = 60.0,
        num_warmup: int | None = None,
        num_draws: int | None = None,
        compile: bool | None = None,
        random_state: Any = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.prior_scale = prior_scale
        self.num_chains = num_chains
        self.max_seconds = max_seconds
        self.num_warmup = num_warmup
        self.num_draws = num_draws
        self.compile = compile
        self.random_state = random_state

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, max_seconds: float | None = None
    ) -> Self:
        """Sample the posterior.

        Args:
            X: inputs ``[N, F]``.
            y: targets ``[N]``.
            sample_weight: ``[N]``, by which log-likelihoods are multiplied.
            max_seconds: in place of that of the estimator.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        X, y, weight = merged_rows(X, y.astype(np.float64), sample_weight)
        (self._y_center,), (self._y_spread,) = moments(y[:, None], weight)
        scaled = torch.as_tensor((y - self._y_center) / self._y_spread, dtype=torch.float32)
        self._sampled(X, scaled[:, None], weight, MeanScaleGaussian(), 2, max_seconds)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Means ``[B]`` of new targets, and with ``return_std`` their standard deviations.

        Args:
            X: inputs ``[B, F]``.
            return_std: give both.
        """
        means, stds = [], []
        for mean, scale in self._components(self._inputs(X)):
            center = mean.mean(0)
            means.append(center)
            stds.append(((mean - center).square() + scale.square()).mean(0).sqrt())
        found: Array = torch.cat(means).numpy()
        return (found, torch.cat(stds).numpy()) if return_std else found

    def predict_quantiles(self, X: Any, quantiles: Sequence[float]) -> Array:
        """Quantiles ``[B, Q]`` of new targets, those of the mixture over draws.

        Args:
            X: inputs ``[B, F]``.
            quantiles: in (0, 1).
        """
        for each in quantiles:
            if not is_number(each) or not 0 < each < 1:
                raise ValueError(f"quantiles must be numbers in (0, 1), got {quantiles!r}.")
        parts = [
            torch.stack([_quantile(mean, scale, float(q)) for q in quantiles], 1)
            for mean, scale in self._components(self._inputs(X))
        ]
        found: Array = torch.cat(parts).numpy()
        return found

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Array:
        """Lower and upper ends ``[B, 2]`` of the central interval of new targets.

        Args:
            X: inputs ``[B, F]``.
            coverage: the probability of the interval.
        """
        check_fraction("coverage", coverage)
        return self.predict_quantiles(X, [0.5 - 0.5 * coverage, 0.5 + 0.5 * coverage])

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """New targets ``[B, n_samples]``; each column is of one net, so that columns are joint.

        Args:
            X: inputs ``[B, F]``.
            n_samples: how many.
            random_state: of the nets that are picked, and of the noise.
        """
        check_positive_int("n_samples", n_samples)
        random = check_random_state(random_state)
        picks: Tensor | None = None
        parts = []
        for mean, scale in self._components(self._inputs(X)):
            if picks is None:
                picks = torch.as_tensor(random.randint(len(mean), size=n_samples))
            noise = torch.as_tensor(random.standard_normal((n_samples, mean.shape[1])))
            parts.append((mean[picks] + scale[picks] * noise).mT)
        found: Array = torch.cat(parts).numpy()
        return found

    def log_density(self, X: Any, y: Any) -> Array:
        """Log predictive densities ``[B]`` of targets, in nats; the NLL is minus their mean.

        Args:
            X: inputs ``[B, F]``.
            y: targets ``[B]``, in their own units.
        """
        inputs = self._inputs(X)
        targets = torch.as_tensor(np.asarray(y, dtype=np.float64))
        if targets.shape != (len(inputs),):
            raise ValueError(f"y must be [{len(inputs)}], got {list(targets.shape)}.")
        parts, start = [], 0
        for mean, scale in self._components(inputs):
            part = targets[start : start + mean.shape[1]]
            law = torch.distributions.Normal(mean, scale, validate_args=False)
            parts.append(law.log_prob(part).logsumexp(0) - math.log(len(mean)))
            start += mean.shape[1]
        found: Array = torch.cat(parts).numpy()
        return found

    def _components(self, X: Array) -> Any:
        """Means and scales ``[S, b]`` of the mixture, in the targets' own units."""
        for outputs in self._outputs(X):
            mean, log_scale = outputs[..., 0], outputs[..., 1]
            yield self._y_center + self._y_spread * mean, self._y_spread * log_scale.exp()


def _quantile(mean: Tensor, scale: Tensor, prob: float) -> Tensor:
    """The quantile ``[b]`` of the mixture of ``Normal(mean, scale) [S, b]``, by bisection."""
    at = torch.special.ndtri(torch.tensor(prob, dtype=mean.dtype))
    low, high = (mean + at * scale).amin(0), (mean + at * scale).amax(0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = torch.special.ndtr((middle - mean) / scale).mean(0) < prob
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    found: Tensor = 0.5 * (low + high)
    return found
