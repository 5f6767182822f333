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

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import (
    check_finite,
    check_fraction,
    check_nonnegative,
    check_positive,
)
from particlevi.noise.scalings import batch_factor

Array = np.ndarray[Any, Any]

__all__ = [
    "StationaryLaw",
    "exact_law",
    "ou_covariance",
    "stationary_law",
]


def ou_covariance(drift: Tensor, diffusion: Tensor) -> Tensor:
    """``S [D, D]`` with ``A S + S A' = B``: of ``dx = -A x dt + B^(1/2) dW`` at stationarity.

    Raises:
        ValueError: a drift without a stationary law (an eigenvalue without positive real part).
    """
    a, b = _square("drift", drift), _square("diffusion", diffusion)
    _same_size(a, b)
    if _symmetric(a):
        rates, vectors = np.linalg.eigh((a + a.T) / 2)
        _check_stable(rates.min())
        inner = vectors.T @ b @ vectors / (rates[:, None] + rates[None, :])
        return torch.from_numpy(_sym(vectors @ inner @ vectors.T))
    from scipy.linalg import solve_continuous_lyapunov

    _check_stable(np.linalg.eigvals(a).real.min())
    return torch.from_numpy(_sym(solve_continuous_lyapunov(a, b)))


@dataclass(frozen=True, eq=False)
class StationaryLaw:
    """A Gaussian stationary law and the circulation that goes with it.

    Attributes:
        mean: ``[D]``.
        covariance: ``S [D, D]``.
        temperature: ``T = eta/(2b)``, times the finite-population factor without replacement.
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
        """``tr(C^+ Q U Q')`` in nats per unit of time, ``eta`` per step; 0 if reversible."""
        flow = self.circulation @ self.potential_hessian @ self.circulation.T
        inverse = torch.linalg.pinv(self.noise, hermitian=True)
        return float((inverse * flow).sum())


def stationary_law(
    hessian: Tensor,
    noise: Tensor,
    *,
    learning_rate: float,
    batch_size: int,
    weight_decay: float = 0.0,
    minimum: Tensor | None = None,
    num_data: int | None = None,
    replacement: bool = True,
) -> StationaryLaw:
    """The law of SGD for small learning rates: solve ``F S + S F' = 2 T C``.

    The effective potential and the circulation depend on neither the rate nor the batch size.

    Source: Chaudhari and Soatto 2018, Lemma 20.

    Args:
        hessian: ``F [D, D]`` of the mean loss. Any stable drift matrix is taken.
        noise: per-sample gradient covariance ``C [D, D]`` of the mean loss, divisor N.
        learning_rate: ``eta`` on the mean loss; ``step_size * N`` in ``sample``.
        batch_size: b.
        weight_decay: ``w`` in ``f + w |x|^2 / 2``; it adds to ``F``.
        minimum: of the loss without decay, ``[D]``; the origin if absent. With decay the mean is
            ``(F + w)^-1 F minimum``.
        num_data: N; needed without replacement.
        replacement: see ``batch_factor``.

    Raises:
        ValueError: matrices of other shapes, a noise that is no covariance, or an unstable drift.

    >>> law = stationary_law(
    ...     torch.diag(torch.tensor([1.0, 4.0])), torch.eye(2), learning_rate=0.1, batch_size=10
    ... )
    >>> law.covariance.diag()
    tensor([0.0050, 0.0013], dtype=torch.float64)
    >>> law.irreversibility
    0.0
    """
    f, c, mean = _checked(hessian, noise, weight_decay, minimum)
    check_positive("learning_rate", learning_rate)
    temperature = 0.5 * learning_rate * batch_factor(batch_size, num_data, replacement)
    if temperature == 0:
        raise ValueError("A batch of all data has no noise, so there is no law to speak of.")
    s = ou_covariance(torch.from_numpy(f), torch.from_numpy(2 * temperature * c)).numpy()
    return _law(mean, s, temperature, f, c, (f @ s - s @ f.T) / (2 * temperature))


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
    replacement: bool = True,
) -> StationaryLaw:
    """The law of SGD's discrete steps, for any stable learning rate.

    With ``v' = m v + F x + w x + xi``, ``x' = x - eta v'`` and ``Cov xi = C / b``, the covariance
    of ``(x, v)`` solves ``P = A P A' + N``; without momentum ``S = (I - eta F) S (I - eta F)' +
    eta^2 C / b``. The circulation is that of successive iterates, ``Q = -(L - L') / (2 T t)``
    with ``L = Cov(x_k+1, x_k)``, the temperature ``T = t / (2 b)`` and the time per step
    ``t = eta / (1 - m)``; without momentum this is ``(F S - S F') / (2 T)``.

    Args:
        hessian: ``F [D, D]``, as for ``stationary_law``.
        noise: ``C [D, D]``.
        learning_rate: ``eta`` on the mean loss.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.
        weight_decay: adds to ``F``.
        minimum: of the loss without decay, ``[D]``.
        num_data: N; needed without replacement.
        replacement: see ``batch_factor``.

    Raises:
        ValueError: as ``stationary_law``, or a learning rate beyond stability.

    >>> law = exact_law(torch.eye(1), torch.eye(1), learning_rate=1.0, batch_size=1)
    >>> round(law.covariance.item(), 12)
    1.0
    """
    f, c, mean = _checked(hessian, noise, weight_decay, minimum)
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    eta, size, one = learning_rate, len(f), np.eye(len(f))
    factor = batch_factor(batch_size, num_data, replacement)
    if factor == 0:
        raise ValueError("A batch of all data has no noise, so there is no law to speak of.")
    if momentum == 0:
        step, kick = one - eta * f, eta * eta * factor * c
    else:
        step = np.block([[one - eta * f, -eta * momentum * one], [f, momentum * one]])
        kick = factor * np.block([[eta * eta * c, -eta * c], [-eta * c, c]])
    radius = np.abs(np.linalg.eigvals(step)).max()
    if radius >= 1:
        raise ValueError(
            f"The steps have no stationary law: the largest factor per step is {radius:.4g}, it "
            f"must be below 1. Lower learning_rate (got {eta}) below "
            f"2 (1 + momentum) / (largest curvature), and see that no curvature is <= 0."
        )
    joint = _solve_discrete(step, kick)
    time = eta / (1 - momentum)
    lagged = (step @ joint)[:size, :size]
    temperature = 0.5 * time * factor
    q = (lagged.T - lagged) / (2 * temperature * time)
    return _law(mean, joint[:size, :size], temperature, f, c, q)


def _solve_discrete(step: Array, kick: Array) -> Array:
    """``P = A P A' + N`` by doubling: the sum of ``A^k N A'^k`` over ``k < 2^j`` for growing j."""
    total, power = kick, step
    for _ in range(64):
        added = power @ total @ power.T
        total = total + added
        if np.abs(added).max() <= 1e-17 * np.abs(total).max():
            break
        power = power @ power
    return _sym(total)


def _law(
    mean: Array,
    s: Array,
    temperature: float,
    f: Array,
    c: Array,
    q: Array,
) -> StationaryLaw:
    s = _sym(s)
    values, vectors = np.linalg.eigh(s)
    threshold = values.max() * len(s) * np.finfo(s.dtype).eps
    inside = values > threshold
    kept = vectors[:, inside]
    u = temperature * (kept / values[inside]) @ kept.T
    size = float(np.linalg.norm(c))
    return StationaryLaw(
        mean=torch.from_numpy(mean),
        covariance=torch.from_numpy(s),
        temperature=temperature,
        hessian=torch.from_numpy(f),
        noise=torch.from_numpy(c),
        potential_hessian=torch.from_numpy(_sym(u)),
        circulation=torch.from_numpy((q - q.T) / 2),
        irreversibility=float(np.linalg.norm(q)) / size if size else 0.0,
        null_directions=torch.from_numpy(vectors[:, ~inside].copy()),
    )


def _checked(
    hessian: Any, noise: Any, weight_decay: float, minimum: Any
) -> tuple[Array, Array, Array]:
    f, c = _square("hessian", hessian), _square("noise", noise)
    _same_size(f, c)
    check_nonnegative("weight_decay", weight_decay)
    if not _symmetric(c):
        raise ValueError("noise must be a covariance, but it is not symmetric.")
    c = _sym(c)
    values = np.linalg.eigvalsh(c)
    if values.min() < -1e-6 * max(values.max(), 0.0) or values.max() <= 0:
        raise ValueError(
            "noise must be a covariance matrix other than 0, got eigenvalues from "
            f"{values.min():.3g} to {values.max():.3g}."
        )
    f = _sym(f) if _symmetric(f) else f
    decayed = f + weight_decay * np.eye(len(f))
    _check_stable(np.linalg.eigvals(decayed).real.min())
    if minimum is None:
        return decayed, c, np.zeros(len(f))
    start = torch.as_tensor(minimum).detach().cpu().double().numpy()
    if start.shape != (len(f),):
        raise ValueError(f"minimum must have shape [{len(f)}], got {list(start.shape)}.")
    return decayed, c, np.linalg.solve(decayed, f @ start)


def _check_stable(slowest: float) -> None:
    if slowest <= 0:
        raise ValueError(
            f"There is no stationary law: the smallest curvature is {slowest:.3g}, it must be "
            "above 0. Add weight_decay, or restrict both matrices to directions of positive "
            "curvature (see invariant_subspace)."
        )


def _square(name: str, matrix: Any) -> Array:
    tensor = torch.as_tensor(matrix).detach().cpu().double()
    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1] or len(tensor) == 0:
        raise ValueError(f"{name} must be a matrix [D, D], got {list(tensor.shape)}.")
    check_finite(name, tensor, "Estimate it again.")
    return tensor.numpy()


def _same_size(a: Array, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(f"Both matrices must have one size, got {a.shape} and {b.shape}.")


def _symmetric(matrix: Array) -> bool:
    return bool(np.abs(matrix - matrix.T).max() <= 1e-6 * np.abs(matrix).max())


def _sym(matrix: Array) -> Array:
    return np.asarray((matrix + matrix.T) / 2)
