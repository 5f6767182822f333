"""Bayesian classification with a net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, final

import numpy as np
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from particlevi._checks import check_positive_int
from particlevi.potentials.likelihoods import Categorical
from particlevi.sklearn.estimator import Array, BayesianMLP, merged_rows
from particlevi.sklearn.net import Activation

__all__ = ["BayesianMLPClassifier"]


@final
class BayesianMLPClassifier(ClassifierMixin, BayesianMLP):  # type: ignore[misc,unused-ignore]
    """A posterior of nets ``y ~ Categorical(softmax(f(x)))``, as an estimator of scikit-learn.

    Inputs are standardised inside. Weights and biases have the prior ``Normal(0, prior_scale)``,
    and ``fit`` samples their posterior by ``pvi.sample(potential, data)``, which tunes itself and
    ends when predictions have converged or the time is over. Probabilities are means over at most
    1000 of the draws.

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
        classes_: the labels, sorted.
        draws_: all the rest of this package takes them; of the standardised data. Of a run without
            ``num_draws`` that has not converged, the second half.
        verdict_: what diagnostics say of them.
        ended_by_: what ended the run.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        ValueError: at ``fit``, a parameter out of its range, data that scikit-learn refuses, or
            labels of one class only.

    Examples:
        >>> import numpy as np
        >>> x = np.linspace(-2, 2, 60)[:, None]
        >>> net = BayesianMLPClassifier((8,), num_chains=4, num_warmup=200, num_draws=50)
        >>> import warnings
        >>> with warnings.catch_warnings():  # a run as short as this has not converged
        ...     warnings.simplefilter("ignore")
        ...     probs = net.fit(x, np.where(x[:, 0] > 0, "up", "down")).predict_proba(x)
        >>> probs.shape, str(net.predict([[1.5]])[0])
        ((60, 2), 'up')
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
            y: labels ``[N]``.
            sample_weight: ``[N]``, by which log-likelihoods are multiplied.
            max_seconds: in place of that of the estimator.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        X, y, weight = merged_rows(X, y, sample_weight)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"Labels of at least two classes are needed, got 1 class, {self.classes_}."
            )
        targets = torch.as_tensor(numbers.astype(np.int64))
        self._sampled(X, targets, weight, Categorical(), len(self.classes_), max_seconds)
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probabilities ``[B, C]`` of the classes, in the order of ``classes_``.

        Args:
            X: inputs ``[B, F]``.
        """
        parts = [outputs.softmax(-1).mean(0) for outputs in self._outputs(self._inputs(X))]
        found: Array = torch.cat(parts).numpy()
        return found

    def predict(self, X: Any) -> Array:
        """The most probable labels ``[B]``.

        Args:
            X: inputs ``[B, F]``.
        """
        probs = self.predict_proba(X)
        labels: Array = self.classes_[probs.argmax(1)]
        return labels

    def mutual_information(self, X: Any) -> Array:
        """What more data could take away of the uncertainty ``[B]``, in nats.

        Args:
            X: inputs ``[B, F]``.
        """
        parts = []
        for outputs in self._outputs(self._inputs(X)):
            probs = outputs.softmax(-1)
            mean = probs.mean(0)
            between = torch.xlogy(probs, probs).sum(-1).mean(0) - torch.xlogy(mean, mean).sum(-1)
            parts.append(between.clamp(min=0))
        found: Array = torch.cat(parts).numpy()
        return found

    def sample_y(self, X: Any, n_samples: int = 1, random_state: Any = 0) -> Array:
        """New labels ``[B, n_samples]``; each column is of one net, so that columns are joint.

        Args:
            X: inputs ``[B, F]``.
            n_samples: how many.
            random_state: of the nets that are picked, and of the labels.
        """
        check_positive_int("n_samples", n_samples)
        random = check_random_state(random_state)
        picks, parts = None, []
        for outputs in self._outputs(self._inputs(X)):
            if picks is None:
                picks = torch.as_tensor(random.randint(len(outputs), size=n_samples))
            edges = outputs[picks].softmax(-1).cumsum(-1)[..., :-1]
            level = torch.as_tensor(random.random_sample((n_samples, outputs.shape[1], 1)))
            parts.append((level > edges).sum(-1).mT)
        labels: Array = self.classes_[torch.cat(parts).numpy()]
        return labels
