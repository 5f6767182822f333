"""The stationary law of SGD around a minimum, where it is a Gaussian.

With Hessian ``F`` and per-sample gradient covariance ``C`` of the mean loss, both constant,
learning rate ``eta`` and batch size ``b``, small steps follow::

    dx = -F x dt + sqrt(2 T C) dW,    T = eta / (2 b),    eta of time per step

whose stationary law is ``exp(-Phi / T) = Normal(0, S)``. The effective potential
``Phi = x' U x / 2`` is in general not the loss ``x' F x / 2``::

    F S + S F' = 2 T C,    U = T S^-1,    F = (C + Q) U,    Q = (F S - S F') / (2 T) = -Q'

``Q`` vanishes if and only if ``F`` and ``C`` commute; otherwise trajectories loop along
``j(x) = -Q U x``, which neither Phi nor the stationary density can see. ``exact_law`` is the law
of the discrete steps themselves.

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018; Mandt, Hoffman and Blei, "Stochastic gradient
descent as approximate Bayesian inference", 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_nonnegative
from particlevi._shown import Shown
from particlevi.noise.scalings import FreshBatching, temperature
from particlevi.sgdvi._checks import as_real
from particlevi.sgdvi._linear import (
    Array,
    as_matrix,
    check_one_size,
    check_positive_drift,
    check_stable_steps,
    is_symmetric,
    momentum_steps,
    solve_discrete,
    symmetric_part,
)

__all__ = ["StationaryLaw", "checked_matrices", "exact_law", "ou_covariance", "stationary_law"]


def ou_covariance(drift: Tensor, diffusion: Tensor) -> Tensor:
    """``S [D, D]`` with ``A S + S A' = B``: of ``dx = -A x dt + B^(1/2) dW`` at stationarity.

    Raises:
        ValueError: a drift without a stationary law (an eigenvalue without positive real part).
    """
    a, b = as_matrix("drift", drift), as_matrix("diffusion", diffusion)
    check_one_size(a, b)
    if is_symmetric(a):
        rates, vectors = np.linalg.eigh((a + a.T) / 2)
        check_positive_drift(rates.min())
        inner = vectors.T @ b @ vectors / (rates[:, None] + rates[None, :])
        return torch.from_numpy(symmetric_part(vectors @ inner @ vectors.T))
    from scipy.linalg import solve_continuous_lyapunov

    check_positive_drift(np.linalg.eigvals(a).real.min())
    return torch.from_numpy(symmetric_part(solve_continuous_lyapunov(a, b)))


@dataclass(frozen=True, eq=False, repr=False)
class StationaryLaw(Shown):
    """A Gaussian stationary law and the circulation that goes with it.

    Attributes:
        mean: ``[D]``.
        covariance: ``S [D, D]``.
        temperature: T, as ``particlevi.noise.temperature`` gives it.
        hessian: ``F`` with the weight decay, ``[D, D]``.
        noise: ``C [D, D]``.
        potential_hessian: ``U = T S^+``, the Hessian of the effective potential, ``[D, D]``; on
            ``null_directions`` the potential is infinite and ``U`` is not defined, here 0.
        circulation: the antisymmetric ``Q [D, D]``.
        irreversibility: ``|Q|_F / |C|_F``; 0 for reversible dynamics.
        null_directions: orthonormal ``[D, K]``, along which SGD does not move at all.
    """

    mean: Tensor
    covariance: Tensor
    temperature: float
    hessian: Tensor
    noise: Tensor
    potential_hessian: Tensor
    circulation: Tensor
    irreversibility: float
    null_directions: Tensor

    @property
    def rank(self) -> int:
        """The number of directions in which SGD moves."""
        return len(self.mean) - self.null_directions.shape[1]

    def potential(self, points: Tensor) -> Tensor:
        """The effective potential ``[...]`` at points ``[..., D]``; infinite off the support."""
        shift = points.to(self.mean) - self.mean
        value = 0.5 * torch.einsum("...i,ij,...j->...", shift, self.potential_hessian, shift)
        off = (shift @ self.null_directions).norm(dim=-1) > 1e-9 * (1 + shift.norm(dim=-1))
        return torch.where(off, torch.inf, value)

    def current(self, points: Tensor) -> Tensor:
        """``j(x) = -Q U x``, the circulating part of the drift, ``[..., D]``."""
        shift = points.to(self.mean) - self.mean
        return -shift @ (self.circulation @ self.potential_hessian).T

    def entropy_production(self) -> float:
        """``tr(C^+ Q U Q')`` in nats per unit of time, ``eta`` per step; 0 if reversible.

        Infinite where the current leads out of the directions that have noise: the reverse of such
        a step cannot happen.
        """
        values, vectors = torch.linalg.eigh(self.noise)
        noisy = values > values.max() * len(values) * torch.finfo(values.dtype).eps
        roots = torch.linalg.eigh(self.potential_hessian)
        root = roots.eigenvectors * roots.eigenvalues.clamp(min=0).sqrt()
        flow = vectors.T @ self.circulation @ root
        rounding = 1e-9 * float(self.noise.norm() * root.norm())
        if float(flow[~noisy].norm()) > rounding:
            return math.inf
        return float((flow[noisy].square() / values[noisy, None]).sum())


def stationary_law(
    hessian: Tensor,
    noise: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    minimum: Tensor | None = None,
    num_data: int | None = None,
    batching: FreshBatching = "replacement",
) -> StationaryLaw:
    """The law of SGD for small learning rates: solve ``F S + S F' = 2 T C``.

    The effective potential and the circulation depend on neither the rate nor the batch size.

    Source: Chaudhari and Soatto 2018, Lemma 20.

    Args:
        hessian: ``F [D, D]`` of the mean loss. Any stable drift matrix is taken.
        noise: per-sample gradient covariance ``C [D, D]`` of the mean loss, divisor N.
        learning_rate: ``eta`` on the mean loss; ``step_size * N`` in ``sample``.
        batch_size: b.
        momentum: m in [0, 1); it enters the temperature alone.
        weight_decay: ``w`` in ``f + w |x|^2 / 2``; it adds to ``F``.
        minimum: of the loss without decay, ``[D]``; the origin if absent. With decay the mean is
            ``(F + w)^-1 F minimum``.
        num_data: N; needed for subsets.
        batching: see ``particlevi.noise.batch_factor``.

    Raises:
        ValueError: matrices of other shapes, a noise that is no covariance, or an unstable drift.

    Examples:
        >>> law = stationary_law(
        ...     torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2), learning_rate=0.1, batch_size=10
        ... )
        >>> law.covariance.diag()
        tensor([0.0050, 0.0013], dtype=torch.float64)
        >>> law.irreversibility
        0.0
    """
    f, c, mean = checked_matrices(hessian, noise, weight_decay, minimum)
    level = temperature(
        learning_rate, batch_size, momentum=momentum, batching=batching, num_data=num_data
    )
    check_some_noise(level)
    s = ou_covariance(torch.from_numpy(f), torch.from_numpy(2 * level * c)).numpy()
    return gaussian_law(mean, s, level, f, c, (f @ s - s @ f.T) / (2 * level))


def exact_law(
    hessian: Tensor,
    noise: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    minimum: Tensor | None = None,
    num_data: int | None = None,
    batching: FreshBatching = "replacement",
) -> StationaryLaw:
    """The law of SGD's discrete steps where ``F`` and ``C`` are constant, at any stable rate.

    With ``v' = m v + F x + w x + xi``, ``x' = x - eta v'`` and ``Cov xi = C / b``, the covariance
    of ``(x, v)`` solves ``P = A P A' + N``; without momentum ``S = (I - eta F) S (I - eta F)' +
    eta^2 C / b``. The circulation is that of successive iterates, ``Q = -(L - L') / (2 T t)``
    with ``L = Cov(x_k+1, x_k)``, the temperature ``T = t / (2 b)`` and the time per step
    ``t = eta / (1 - m)``; without momentum this is ``(F S - S F') / (2 T)``.

    Exact for a constant ``C`` only. Where the noise grows with the distance from the minimum, as
    that of least squares does, SGD spreads further and diverges at lower rates than this law says.
    Then take ``least_squares_law``, or for a net the ``C`` that is averaged over draws
    (``particlevi.noise.average``). For shuffled epochs see ``epoch_law``.

    Args:
        hessian: ``F [D, D]``, as for ``stationary_law``.
        noise: ``C [D, D]``.
        learning_rate: ``eta`` on the mean loss.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        weight_decay: adds to ``F``.
        minimum: of the loss without decay, ``[D]``.
        num_data: N; needed for subsets.
        batching: see ``particlevi.noise.batch_factor``.

    Raises:
        ValueError: as ``stationary_law``, or a learning rate beyond stability.

    Examples:
        >>> law = exact_law(torch.eye(1), torch.eye(1), learning_rate=1.0, batch_size=1)
        >>> round(law.covariance.item(), 12)
        1.0
    """
    f, c, mean = checked_matrices(hessian, noise, weight_decay, minimum)
    level = temperature(
        learning_rate, batch_size, momentum=momentum, batching=batching, num_data=num_data
    )
    check_some_noise(level)
    time, size = learning_rate / (1 - momentum), len(f)
    step, inject = momentum_steps(f, learning_rate, momentum)
    check_stable_steps(step, learning_rate)
    joint = solve_discrete(step, 2 * level / time * inject @ c @ inject.T)
    lagged = (step @ joint)[:size, :size]
    q = (lagged.T - lagged) / (2 * level * time)
    return gaussian_law(mean, joint[:size, :size], level, f, c, q)


def check_some_noise(level: float) -> None:
    """The temperature is not 0, as it is for batches of all data."""
    if level == 0:
        raise ValueError("A batch of all data has no noise, so there is no law to speak of.")


def gaussian_law(
    mean: Array, s: Array, level: float, f: Array, c: Array, q: Array
) -> StationaryLaw:
    """The law with mean, covariance ``S``, temperature, ``F``, ``C`` and circulation ``Q``."""
    s = symmetric_part(s)
    values, vectors = np.linalg.eigh(s)
    threshold = values.max() * len(s) * np.finfo(s.dtype).eps
    inside = values > threshold
    kept = vectors[:, inside]
    u = level * (kept / values[inside]) @ kept.T
    size = float(np.linalg.norm(c))
    return StationaryLaw(
        mean=torch.from_numpy(mean),
        covariance=torch.from_numpy(s),
        temperature=level,
        hessian=torch.from_numpy(f),
        noise=torch.from_numpy(c),
        potential_hessian=torch.from_numpy(symmetric_part(u)),
        circulation=torch.from_numpy((q - q.T) / 2),
        irreversibility=float(np.linalg.norm(q)) / size if size else 0.0,
        null_directions=torch.from_numpy(vectors[:, ~inside].copy()),
    )


def checked_matrices(
    hessian: Any, noise: Any, weight_decay: float, minimum: Any
) -> tuple[Array, Array, Array]:
    """``F`` with the decay, ``C`` and the mean, or an error that says what is wrong."""
    f, c = as_matrix("hessian", hessian), as_matrix("noise", noise)
    check_one_size(f, c)
    check_nonnegative("weight_decay", weight_decay)
    if not is_symmetric(c):
        raise ValueError("noise must be a covariance, but it is not symmetric.")
    c = symmetric_part(c)
    values = np.linalg.eigvalsh(c)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < -1e-6 * max(highest, 0.0) or highest <= 0:
        raise ValueError(
            "noise must be a covariance matrix other than 0, got eigenvalues from "
            f"{lowest:.3g} to {highest:.3g}."
        )
    f = symmetric_part(f) if is_symmetric(f) else f
    decayed = f + weight_decay * np.eye(len(f))
    check_positive_drift(np.linalg.eigvals(decayed).real.min())
    if minimum is None:
        return decayed, c, np.zeros(len(f))
    start = as_real("minimum", minimum, "[D]").numpy()
    if start.shape != (len(f),):
        raise ValueError(f"minimum must have shape [{len(f)}], got {list(start.shape)}.")
    return decayed, c, np.linalg.solve(decayed, f @ start)
