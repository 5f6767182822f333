"""The exact law of SGD on linear least squares, whose noise grows with the distance.

For ``f = (1/N) sum_k (a_k . w - y_k)^2 / 2 + wd |w|^2 / 2`` the gradient of datum k at the distance
``u = w - w*`` from the minimum is ``H_k u + e_k`` with ``H_k = a_k a_k' + wd I`` and mean
``e = 0``. With ``F`` the mean of ``H_k``, the per-sample covariance averaged over the law of ``u``
depends on its second moment ``M`` alone::

    C(M) = E_k[(H_k - F) M (H_k - F)] + E_k[e_k e_k']

and ``M`` is the covariance of ``exact_law`` at ``C = C(M)``: a linear equation. In the eigenbasis
of ``F`` the law is a number for each pair of directions, ``M_ij = l_ij k C(M)_ij``, with ``k`` the
``batch_factor``; in Kronecker form::

    (I - K) vec M = k diag(l) vec E[e e'],    K = k diag(l) E[(H_k - F) (x) (H_k - F)]

The law exists if and only if the steps with constant noise are stable and the
largest eigenvalue of ``K`` is below 1. Full-batch descent is stable for ``eta l_max < 2 (1 + m)``;
the limit here is lower, and lowest for small batches and features of heavy tails. Derived here.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_finite, check_fraction, check_nonnegative, check_positive
from particlevi.noise.scalings import FreshBatching, batch_factor, temperature
from particlevi.sgdvi._linear import Array, momentum_steps
from particlevi.sgdvi.stationary import StationaryLaw, check_some_noise, exact_law

__all__ = ["largest_rate", "least_squares_law"]

_MOST_DIRECTIONS = 60
_BISECTIONS = 100


def least_squares_law(
    features: Tensor,
    targets: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batching: FreshBatching = "replacement",
) -> StationaryLaw:
    """The mean and covariance of SGD on ``(1/N) sum_k (a_k . w - y_k)^2 / 2``, exactly.

    The law is not Gaussian, but its first two moments are these. ``noise`` of what is returned is
    ``C`` averaged over the law.

    Args:
        features: ``a_k``, ``[N, D]``, of full rank or with ``weight_decay``; D of at most 60.
        targets: ``[N]``.
        learning_rate: ``eta`` on the mean loss, with the factor 1/2 above.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        weight_decay: as above.
        batching: see ``particlevi.noise.batch_factor``.

    Raises:
        ValueError: data that do not fit, too many directions, or a learning rate at which the
            second moment diverges; the largest that does not is given (see ``largest_rate``).

    Examples:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> y = torch.tensor([1.0, 1.0, 2.0])
        >>> law = least_squares_law(x, y, learning_rate=0.01, batch_size=1)
        >>> round(law.covariance.item(), 7)
        0.000185
    """
    problem = _Problem(features, targets, weight_decay, batch_size, batching)
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    settings = {"batching": batching, "num_data": problem.num_data, "momentum": momentum}
    check_some_noise(temperature(learning_rate, batch_size, **settings))
    radius = problem.radius(learning_rate, momentum)
    if radius >= 1:
        limit = problem.largest_rate(momentum)
        raise ValueError(
            f"At learning_rate {learning_rate:.6g} the second moment of SGD diverges, by a factor "
            f"of up to {radius:.4g}: lower it below {limit:.6g}, or take larger batches."
        )
    noise = problem.noise(problem.moment(learning_rate, momentum))
    return exact_law(
        torch.from_numpy(problem.hessian),
        torch.from_numpy(noise),
        learning_rate=learning_rate,
        batch_size=batch_size,
        minimum=torch.from_numpy(problem.minimum),
        **settings,
    )


def largest_rate(
    features: Tensor,
    *,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batching: FreshBatching = "replacement",
) -> float:
    """The learning rate up to which the second moment of SGD on least squares is finite.

    By bisection, to 9 digits. Below ``2 (1 + m) / (largest curvature)``, the limit of full-batch
    descent, the more so the smaller the batch.

    Args:
        features: ``a_k``, ``[N, D]``.
        batch_size: b.
        momentum: m in [0, 1).
        weight_decay: as for ``least_squares_law``.
        batching: likewise.

    Raises:
        ValueError: arguments out of range, or features of scales so different that no rate is
            found.

    Examples:
        With one feature: ``eta E[a^4] < 2 E[a^2]``.

        >>> round(largest_rate(torch.tensor([[1.0], [2.0]]), batch_size=1), 6)
        0.588235
    """
    check_fraction("momentum", momentum)
    right = isinstance(features, Tensor) and features.ndim == 2
    targets = torch.zeros(len(features)) if right else features
    return _Problem(features, targets, weight_decay, batch_size, batching).largest_rate(momentum)


class _Problem:
    """Least squares in the eigenbasis of its Hessian."""

    def __init__(
        self, features: Any, targets: Any, decay: float, batch_size: int, batching: FreshBatching
    ) -> None:
        a, y = _checked(features, targets, decay)
        self.num_data, self.size = a.shape
        self.factor = batch_factor(batch_size, self.num_data, batching)
        self.hessian = a.T @ a / self.num_data + decay * np.eye(self.size)
        self.rates, self.vectors = np.linalg.eigh(self.hessian)
        if self.rates[-1] != 0 and not 1e-100 < self.rates[-1] < 1e100:
            raise ValueError(
                f"The largest curvature is {self.rates[-1]:.3g}, outside of 1e-100 ... 1e100: "
                "rescale the features, or choose another weight_decay."
            )
        if self.rates[0] <= 1e-12 * self.rates[-1]:
            raise ValueError(
                f"The features [{self.num_data}, {self.size}] have no full rank, so there is no "
                "stationary law: pass weight_decay, or leave features out."
            )
        self.minimum = np.linalg.solve(self.hessian, a.T @ y / self.num_data)
        rest = a * (a @ self.minimum - y)[:, None] + decay * self.minimum
        self.rest = self.vectors.T @ (rest.T @ rest / self.num_data) @ self.vectors
        self.turned = a @ self.vectors
        self.decay = decay

    def noise(self, moment: Array) -> Array:
        """``C(M)`` in the coordinates of the features, for ``M`` in the eigenbasis."""
        inside = self.rest + self._spread(moment)
        return np.asarray(self.vectors @ inside @ self.vectors.T)

    def _spread(self, moment: Array) -> Array:
        """``E[(H_k - F) M (H_k - F)]``; the decay cancels."""
        along = np.einsum("ni,ij,nj->n", self.turned, moment, self.turned)
        curved = self.rates - self.decay
        square = (self.turned * along[:, None]).T @ self.turned / self.num_data
        return np.asarray(square - curved[:, None] * moment * curved)

    def _pairs(self, rate: float, momentum: float) -> Array:
        """``l [D, D]``: the covariance of the positions for noise of covariance 1 in each pair."""
        if momentum == 0:
            keep = 1 - rate * self.rates
            return np.asarray(rate**2 / (1 - keep[:, None] * keep))
        parts = [momentum_steps(np.array([[f]]), rate, momentum) for f in self.rates]
        steps = np.stack([step for step, _ in parts])
        kick = np.stack([g[:, 0] for _, g in parts])
        count = self.size
        products = np.einsum("iac,jbd->ijabcd", steps, steps).reshape(count, count, 4, 4)
        sources = np.einsum("ia,jb->ijab", kick, kick).reshape(count, count, 4, 1)
        return np.asarray(np.linalg.solve(np.eye(4) - products, sources)[:, :, 0, 0])

    def _kronecker(self, rate: float, momentum: float) -> tuple[Array, Array]:
        """``K`` and the source over the pairs ``i <= j``."""
        i, j = np.triu_indices(self.size)
        double = np.where(i == j, 1.0, 2.0)
        products = self.turned[:, i] * self.turned[:, j]
        fourth = products.T @ products / self.num_data * double
        curved = self.rates - self.decay
        fourth[np.diag_indices(len(i))] -= curved[i] * curved[j]
        response = self.factor * self._pairs(rate, momentum)[i, j]
        return response[:, None] * fourth, response * self.rest[i, j]

    def radius(self, rate: float, momentum: float) -> float:
        """The largest eigenvalue of ``K``; infinite where noise-free steps are not stable."""
        steps = [momentum_steps(np.array([[f]]), rate, momentum)[0] for f in self.rates]
        if max(np.abs(np.linalg.eigvals(step)).max() for step in steps) >= 1:
            return math.inf
        return float(np.abs(np.linalg.eigvals(self._kronecker(rate, momentum)[0])).max())

    def moment(self, rate: float, momentum: float) -> Array:
        """``M [D, D]`` in the eigenbasis."""
        matrix, source = self._kronecker(rate, momentum)
        found = np.linalg.solve(np.eye(len(source)) - matrix, source)
        moment = np.zeros((self.size, self.size))
        i, j = np.triu_indices(self.size)
        moment[i, j] = moment[j, i] = found
        return moment

    def largest_rate(self, momentum: float) -> float:
        """Where ``radius`` reaches 1."""
        low, high = 0.0, 2 * (1 + momentum) / float(self.rates[-1])
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.radius(middle, momentum) < 1 else (low, middle)
            if high - low <= 1e-9 * high:
                return low
        raise ValueError(
            f"No learning rate above {high:.2g} was found at which the second moment is finite: "
            "the features differ too much in scale. Standardise them."
        )


def _checked(features: Any, targets: Any, decay: float) -> tuple[Array, Array]:
    check_nonnegative("weight_decay", decay)
    for name, value, ndim in (("features", features, 2), ("targets", targets, 1)):
        if not isinstance(value, Tensor) or value.ndim != ndim or value.is_complex():
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            shape = "[N, D]" if ndim == 2 else "[N]"
            raise ValueError(f"{name} must be a real tensor {shape}, got {got}.")
        check_finite(name, value, "Remove or impute those rows.")
    if len(features) < 2 or features.shape[1] < 1 or len(features) != len(targets):
        raise ValueError(
            "features [N, D] and targets [N] must have one length of at least 2, got "
            f"{list(features.shape)} and {list(targets.shape)}."
        )
    if features.shape[1] > _MOST_DIRECTIONS:
        raise ValueError(
            f"The Kronecker form takes at most {_MOST_DIRECTIONS} features, got "
            f"{features.shape[1]}: project them, or take exact_law with C averaged over draws."
        )
    a, y = (torch.as_tensor(each).detach().cpu().double().numpy() for each in (features, targets))
    return a, y
