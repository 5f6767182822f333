"""What SGD's iterates do in discrete time where the gradient is linear: one Gaussian chain.

With Hessian ``F``, preconditioner ``H``, momentum ``m`` and rate ``eta``::

    v' = m v + F x + xi,    x' = x - eta H v',    Cov xi = k C + J

``k`` is the ``batch_factor`` and ``J`` the covariance of noise that is added to the gradient. In
coordinates ``z = (x, H v)`` this is ``z' = A z + G xi`` with ``A`` and ``G`` constant, so that
everything follows from ``A`` and from the stationary covariance ``P = A P A' + G Cov(xi) G'``::

    Cov(x_t+k, x_t)      = (A^k P)_xx
    Cov of T-averages    = (P + M P + P M')_xx / T,     M = sum_k (1 - k/T) A^k
    tau of w . x         = 1 + 2 sum_k w' (A^k P)_xx w / w' P_xx w
    variance of w . x over runs from one point, after n steps = w' (P - A^n P A'^n)_xx w

SGLD on ``U`` with step size h and temperature T is ``eta = h N`` and ``J = 2 T / (N eta) I``.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference",
2017, for small rates; Wang, Ding and Huggins, "Accurate large-sample uncertainty quantification
using stochastic gradient Markov chain Monte Carlo", 2026, for averages and times in discrete time.
The forms here are derived anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import (
    check_fraction,
    check_nonnegative,
    check_positive,
    check_positive_int,
    is_number,
)
from particlevi._shown import Shown
from particlevi.noise.scalings import FreshBatching, batch_factor
from particlevi.sgdvi._checks import as_directions, as_real
from particlevi.sgdvi._linear import (
    Array,
    as_matrix,
    check_stable_steps,
    is_symmetric,
    momentum_steps,
    solve_discrete,
    symmetric_part,
)
from particlevi.sgdvi.epochs import epoch_law
from particlevi.sgdvi.free_energy import Moments
from particlevi.sgdvi.stationary import checked_matrices

__all__ = ["GaussianChain", "epoch_chain", "rate_schedule_moments", "sgd_chain"]

_MOST_DOUBLINGS = 60


@dataclass(frozen=True, eq=False, repr=False)
class GaussianChain(Shown):
    """A stationary Gaussian chain ``z' = A z + noise`` whose first D coordinates are positions.

    Attributes:
        step: ``A [Z, Z]``.
        joint: ``P [Z, Z]``, the stationary covariance of ``z``.
        num_params: D.
    """

    step: Tensor
    joint: Tensor
    num_params: int

    @property
    def covariance(self) -> Tensor:
        """Of the positions, ``[D, D]``."""
        return self._positions(self.joint)

    def _positions(self, matrix: Tensor) -> Tensor:
        return matrix[: self.num_params, : self.num_params]

    def autocovariance(self, lag: int) -> Tensor:
        """``E[x_t+lag x_t'] [D, D]``; ``lag`` in steps, from 0."""
        check_positive_int("lag", lag, minimum=0)
        return self._positions(torch.linalg.matrix_power(self.step, int(lag)) @ self.joint)

    def every(self, thin: int) -> GaussianChain:
        """The chain of every ``thin``-th iterate."""
        check_positive_int("thin", thin)
        return GaussianChain(
            torch.linalg.matrix_power(self.step, int(thin)), self.joint, self.num_params
        )

    def average_covariance(self, window: int) -> Tensor:
        """Of means over ``window`` successive iterates, ``[D, D]``."""
        check_positive_int("window", window)
        return self._positions(average_covariance(self.step, self.joint, int(window)))

    def autocorrelation_time(self, directions: Tensor | None = None) -> Tensor:
        """Integrated autocorrelation time in steps of each ``w . x``, ``[K]``.

        A mean over n iterates has ``tau / n`` times their variance, for large n. Below 1 where
        successive iterates lie on opposite sides.

        Args:
            directions: ``w`` as columns ``[D, K]``; the coordinates if absent.
        """
        w = self._directions(directions)
        one = torch.eye(len(self.step), dtype=torch.float64)
        lagged = self._positions(torch.linalg.solve(one - self.step, self.step @ self.joint))
        spread = _along(self.covariance, w)
        return 1 + 2 * _along(lagged, w) / spread

    def steps_to_stationarity(
        self, directions: Tensor | None = None, tolerance: float = 0.01
    ) -> Tensor:
        """Steps until runs from one point are spread as they will be, ``[K]``.

        The first n at which the variance of ``w . x`` over runs that start at one point (with no
        velocity) is within ``tolerance`` of its stationary value. The squared bias of their mean
        is then at most ``tolerance`` times the stationary variance for a start that is one
        standard deviation off in the metric ``P^-1``.

        Args:
            directions: ``w`` as columns ``[D, K]``; the coordinates if absent.
            tolerance: relative, in (0, 1).
        """
        if not is_number(tolerance) or not 0 < tolerance < 1:
            raise ValueError(f"tolerance must be a number in (0, 1), got {tolerance!r}.")
        w = self._directions(directions)
        whole = _along(self.covariance, w)

        def missing(power: Tensor) -> Tensor:
            rows = w.T @ power[: self.num_params]
            return torch.einsum("ki,ij,kj->k", rows, self.joint, rows) / whole

        powers = [self.step]
        while (missing(powers[-1]) > tolerance).any():
            if len(powers) > _MOST_DOUBLINGS:
                raise ValueError("The chain hardly moves: no number of steps makes it stationary.")
            powers.append(powers[-1] @ powers[-1])
        found = torch.empty(w.shape[1], dtype=torch.float64)
        for k in range(w.shape[1]):
            found[k] = _first(powers, w[:, k : k + 1], self, float(whole[k]), tolerance)
        return found

    def _directions(self, directions: Tensor | None) -> Tensor:
        if directions is None:
            return torch.eye(self.num_params, dtype=torch.float64)
        return as_directions("directions", directions, self.num_params)


def _along(matrix: Tensor, w: Tensor) -> Tensor:
    found: Tensor = torch.einsum("ik,ij,jk->k", w, matrix, w)
    return found


def _first(
    powers: list[Tensor], w: Tensor, chain: GaussianChain, whole: float, tolerance: float
) -> int:
    """The least n with ``w' A^n P A'^n w <= tolerance w' P w``, which falls in n, by bisection."""
    row = w.T @ torch.eye(len(chain.step), dtype=torch.float64)[: chain.num_params]
    count = 0
    for j in reversed(range(len(powers))):
        further = row @ powers[j]
        if float(further @ chain.joint @ further.T) > tolerance * whole:
            row, count = further, count + 2**j
    return count + 1


def average_covariance(step: Tensor, joint: Tensor, window: int) -> Tensor:
    """Of means of ``z`` over ``window`` successive steps, ``[Z, Z]``; differentiable."""
    one = torch.eye(len(step), dtype=step.dtype)
    power = torch.linalg.matrix_power(step, window)
    inner = window * one - torch.linalg.solve(one - step, one - power)
    weights = step @ torch.linalg.solve(one - step, inner) / window
    cross = weights @ joint
    found: Tensor = (joint + cross + cross.T) / window
    return found


def preconditioned(
    hessian: Any, noise: Any, preconditioner: Any, injected: Any
) -> tuple[Array, Array, Array, Array]:
    """``F``, ``C``, ``H`` and ``J`` as matrices ``[D, D]`` of one size.

    Raises:
        ValueError: matrices that do not fit, or that are no covariances.
    """
    f, c, _ = checked_matrices(hessian, noise, 0.0, None)
    h = as_square("preconditioner", preconditioner, len(f), 1.0)
    j = as_square("injected", injected, len(f), 0.0)
    if np.linalg.eigvalsh(h).min() <= 0:
        raise ValueError("preconditioner must be positive definite.")
    if np.linalg.eigvalsh(j).min() < -1e-9 * max(np.abs(j).max(), 1e-300):
        raise ValueError("injected must be a covariance, but it has negative eigenvalues.")
    return f, c, h, j


def as_square(name: str, value: Any, size: int, default: float) -> Array:
    """A number, a diagonal ``[D]`` or a symmetric matrix ``[D, D]`` as a matrix."""
    if value is None:
        return default * np.eye(size)
    if is_number(value):
        check_nonnegative(name, value)
        return float(value) * np.eye(size)
    tensor = as_real(name, value, "[D, D], [D] or a number")
    if tensor.ndim == 0:
        tensor = tensor * torch.ones(size, dtype=torch.float64)
    if tensor.ndim == 1:
        tensor = torch.diag(tensor)
    matrix = as_matrix(name, tensor)
    if len(matrix) != size or not is_symmetric(matrix):
        raise ValueError(
            f"{name} must be a symmetric matrix [{size}, {size}], its diagonal or a number, got "
            f"{list(matrix.shape)}."
        )
    return symmetric_part(matrix)


def sgd_chain(
    hessian: Tensor,
    noise: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    preconditioner: Tensor | float | None = None,
    injected: Tensor | float | None = None,
    batching: FreshBatching = "replacement",
    num_data: int | None = None,
) -> GaussianChain:
    """The iterates of SGD, or SGLD, with momentum and preconditioner, at any stable rate.

    Exact where ``F`` and ``C`` are constant. Noise that grows with the distance is taken into
    account, for least squares exactly, by the ``C`` that is averaged over the law itself.

    Args:
        hessian: ``F [D, D]`` of the mean loss, decay and prior included.
        noise: per-sample gradient covariance ``C [D, D]`` of the mean loss, divisor N.
        learning_rate: ``eta`` on the mean loss.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        preconditioner: ``H [D, D]``, its diagonal ``[D]`` or a number; 1 if absent.
        injected: ``J [D, D]``, its diagonal or a number: the covariance of noise that is added to
            the mean gradient at every step. SGLD at temperature T has ``2 T / (N eta)``.
        batching: see ``particlevi.noise.batch_factor``; for epochs see ``epoch_chain``.
        num_data: N; needed for subsets.

    Raises:
        ValueError: matrices that do not fit, no noise at all, or a rate beyond stability.

    Examples:
        >>> f, c = torch.diag(torch.tensor([1.0, 0.1])), torch.eye(2)
        >>> chain = sgd_chain(f, c, learning_rate=0.1, batch_size=10)
        >>> chain.covariance.diag()
        tensor([0.0053, 0.0503], dtype=torch.float64)
        >>> chain.autocorrelation_time()
        tensor([ 19., 199.], dtype=torch.float64)
        >>> chain.steps_to_stationarity()
        tensor([ 22., 230.], dtype=torch.float64)
    """
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    factor = batch_factor(batch_size, num_data, batching)
    f, c, h, j = preconditioned(hessian, noise, preconditioner, injected)
    total = factor * c + j
    if not total.any():
        raise ValueError("A batch of all data has no noise: inject some, or there is no law.")
    step, inject = momentum_steps(h @ f, float(learning_rate), float(momentum))
    check_stable_steps(step, learning_rate)
    joint = solve_discrete(step, inject @ (h @ total @ h) @ inject.T)
    return GaussianChain(torch.from_numpy(step), torch.from_numpy(joint), len(f))


def epoch_chain(
    hessian: Tensor,
    noise: Tensor,
    *,
    num_data: int,
    learning_rate: float,
    batch_size: int,
    preconditioner: Tensor | float | None = None,
) -> GaussianChain:
    """The iterates at the ends of shuffled epochs, one step of the chain per epoch.

    Orders of different epochs are independent, so ``x' = (I - eta H F)^n x + noise`` with n
    batches per epoch and the covariance of ``epoch_law``. A short last batch is left out.

    Args:
        hessian: ``F [D, D]``.
        noise: ``C [D, D]``.
        num_data: N.
        learning_rate: ``eta`` on the mean loss.
        batch_size: b, below N.
        preconditioner: ``H [D, D]``, its diagonal or a number.

    Raises:
        ValueError: as ``epoch_law``.

    Examples:
        >>> f, c = torch.diag(torch.tensor([1.0, 0.1])), torch.eye(2)
        >>> chain = epoch_chain(f, c, num_data=100, learning_rate=0.1, batch_size=10)
        >>> chain.autocorrelation_time()
        tensor([ 2.0707, 19.9166], dtype=torch.float64)
    """
    f, c, h, _ = preconditioned(hessian, noise, preconditioner, None)
    law = epoch_law(
        torch.from_numpy(h @ f),
        torch.from_numpy(symmetric_part(h @ c @ h)),
        num_data=num_data,
        learning_rate=learning_rate,
        batch_size=batch_size,
        drop_last=True,
    )
    step = np.linalg.matrix_power(np.eye(len(f)) - learning_rate * h @ f, law.num_batches)
    return GaussianChain(torch.from_numpy(step), law.end, len(f))


def rate_schedule_moments(
    hessian: Tensor,
    noise: Tensor,
    *,
    rates: Tensor,
    batch_size: int,
    mean: Tensor,
    covariance: Tensor | None = None,
    momentum: float = 0.0,
) -> Moments:
    """Mean and covariance of SGD's iterates along a schedule of learning rates, exactly.

    Args:
        hessian: ``F [D, D]``.
        noise: ``C [D, D]``.
        rates: ``eta`` of each step, ``[T]``, at least 0; stable or not.
        batch_size: b, of independent data.
        mean: where the runs start, relative to the minimum, ``[D]``; without velocity.
        covariance: of the starts, ``[D, D]``; none if absent.
        momentum: m in [0, 1).

    Returns:
        Moments after each of the T steps.

    Raises:
        ValueError: matrices or rates that do not fit.

    Examples:
        >>> one = torch.eye(1)
        >>> rates = torch.tensor([0.5, 0.25])
        >>> rate_schedule_moments(one, one, rates=rates, batch_size=1, mean=torch.ones(1)).mean
        tensor([[0.5000],
                [0.3750]], dtype=torch.float64)
    """
    check_fraction("momentum", momentum)
    f, c, start = checked_matrices(hessian, noise, 0.0, mean)
    steps = as_real("rates", rates, "[T]")
    if steps.ndim != 1 or not len(steps) or (steps < 0).any():
        raise ValueError(f"rates must be a tensor [T] of at least 0, got {list(steps.shape)}.")
    size, factor = len(f), batch_factor(batch_size)
    spread = as_square("covariance", covariance, size, 0.0)
    width = size if momentum == 0 else 2 * size
    m, p = np.zeros(width), np.zeros((width, width))
    m[:size], p[:size, :size] = start, spread
    means, spreads = [], []
    for rate in steps.tolist():
        step, inject = momentum_steps(f, rate, momentum)
        m = step @ m
        p = step @ p @ step.T + factor * inject @ c @ inject.T
        check_nonnegative("the variance along the schedule", float(np.trace(p)))
        means.append(m[:size].copy())
        spreads.append(symmetric_part(p[:size, :size]))
    return Moments(torch.from_numpy(np.stack(means)), torch.from_numpy(np.stack(spreads)))
