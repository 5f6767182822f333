"""The search for SGD's preconditioner, given the law that it should sample; see ``designs``."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from particlevi.sgdvi._linear import Array, symmetric_part
from particlevi.sgdvi._lyapunov import continuous_covariance, discrete_covariance
from particlevi.sgdvi.chains import average_covariance, epoch_chain
from particlevi.sgdvi.preconditioners import Family, family

__all__ = [
    "InverseProblem",
    "Law",
    "any_matrix",
    "covariance_kl",
    "epoch_scale",
    "required_noise",
]

Law = Literal["exact", "small_rates"]
"""The law of the discrete steps, or its limit for small rates."""

_UNSTABLE = 1e30


def covariance_kl(covariance: Tensor, target: Tensor) -> Tensor:
    """``KL(Normal(0, S) || Normal(0, T))`` in nats; differentiable in ``S``."""
    product = torch.linalg.solve(target, covariance)
    found: Tensor = 0.5 * (product.trace() - torch.linalg.slogdet(product)[1] - len(target))
    return found


def required_noise(
    hessian: Array, target: Array, preconditioner: Array, momentum: float = 0.0
) -> Array:
    """The gradient noise ``W [D, D]`` with which ``S`` is stationary; not always positive.

    Args:
        hessian: ``F [D, D]``.
        target: ``S [D, D]``.
        preconditioner: ``H [D, D]``, rate absorbed.
        momentum: m.
    """
    f, s, h, m = hessian, target, preconditioner, momentum
    g = h @ f @ s
    twice = h @ f @ g
    kick = (1 - m) * (g + g.T) - (1 + m**2) / (1 - m**2) * h @ f @ s @ f @ h
    kick = kick + m / (1 - m**2) * (twice + twice.T)
    inverse = np.linalg.inv(h)
    return symmetric_part(inverse @ kick @ inverse)


class InverseProblem:
    """One inverse problem: matrices, momentum, averaging and the law that is inverted."""

    def __init__(
        self,
        f: Array,
        c: Array,
        own: Array,
        s: Array,
        momentum: float,
        averaging: int,
        law: Law,
        growth: float = 1.0,
    ) -> None:
        self.f, self.c, self.own, self.target = f, c, own, s
        self.momentum, self.averaging, self.law, self.growth = momentum, averaging, law, growth
        self.tensors = [torch.from_numpy(each.copy()) for each in (f, own, s)]

    def full(self, add: bool) -> Array:
        """``H`` of any form; with ``add``, for the noise with what ``injection`` adds."""
        from scipy.linalg import solve_continuous_lyapunov

        f, s, m = self.f, self.target, self.momentum
        drift, curved = f @ s, f @ s @ f
        # H = 2 F^-1 / (1 + k) under noise k F S F, without momentum: 1 / growth of Newton's step.
        least = (2 * self.growth - 1) * (1 - m) / (1 + m) * curved
        noise = self.own + (_missing(self.own, least) if add else 0.0)
        second = (1 + m**2) / (1 - m**2) * curved if self.law == "exact" else 0.0 * curved
        x = solve_continuous_lyapunov((1 - m) * drift, noise + second)
        # With momentum the equation in H^-1 is not linear: iterate on its last term.
        for _ in range(200 if m else 0):
            cross = f @ np.linalg.solve(x, f @ s @ x)
            right = noise + second - m / (1 - m**2) * (cross + cross.T)
            again = symmetric_part(solve_continuous_lyapunov((1 - m) * drift, right))
            moved, x = np.abs(again - x).max(), 0.5 * (again + x)
            if moved <= 1e-14 * np.abs(x).max():
                break
        x = symmetric_part(x)
        values = np.linalg.eigvalsh(x)
        if values.min() <= 1e-14 * values.max():
            raise ValueError(
                f"No preconditioner makes SGD with momentum {m} sample this target: lower "
                "momentum, let injected=True, or choose a target nearer to the posterior."
            )
        return symmetric_part(np.linalg.inv(x))

    def rough(self) -> Array:
        """A stable start for averages: Newton's direction at a small rate."""
        values, vectors = np.linalg.eigh(self.f)
        return np.asarray(0.3 * (vectors / values) @ vectors.T)

    def start(self) -> Array:
        """A preconditioner from which to search: that of any form without momentum."""
        plain = InverseProblem(self.f, self.c, self.own, self.target, 0.0, 1, self.law)
        return (1 - self.momentum) * plain.full(True)

    def divergence(self, h: Tensor) -> Tensor:
        """``KL(draws || target)``, differentiable in ``H``; raises where ``H`` is not stable."""
        f, own, s = self.tensors
        size, m = len(f), self.momentum
        drift, kick = h @ f, h @ own @ h.T
        if self.law == "small_rates":
            return covariance_kl(continuous_covariance(drift, kick), s)
        one = torch.eye(size, dtype=torch.float64)
        step, joint = one - drift, kick
        if m:
            step = torch.cat(
                [torch.cat([one - drift, -m * one], 1), torch.cat([drift, m * one], 1)], 0
            )
            joint = torch.cat([torch.cat([kick, -kick], 1), torch.cat([-kick, kick], 1)], 0)
        radius = float(np.abs(np.linalg.eigvals(step.detach().numpy())).max())
        if not radius < 1 - 1e-12:
            raise _Unstable
        p = discrete_covariance(step, joint)
        if self.averaging > 1:
            p = average_covariance(step, p, self.averaging)
        return covariance_kl(p[:size, :size], s)

    def search(self, members: Family, near: Array) -> Array:
        """The member of a family with the least divergence, by L-BFGS."""
        from scipy.optimize import minimize

        def value_and_slope(numbers: Array) -> tuple[float, Array]:
            a = torch.from_numpy(np.array(numbers, dtype=np.float64)).requires_grad_()
            try:
                value = self.divergence(members.matrix(a))
            except (_Unstable, ValueError, RuntimeError):
                return _UNSTABLE, np.zeros_like(numbers)
            if not torch.isfinite(value):
                return _UNSTABLE, np.zeros_like(numbers)
            (slope,) = torch.autograd.grad(value, a)
            return float(value.detach()), slope.numpy()

        scale = 1.0
        for _ in range(60):
            start = members.start(torch.from_numpy(scale * near)).numpy()
            if value_and_slope(start)[0] < _UNSTABLE:
                break
            scale *= 0.5
        found = minimize(
            value_and_slope,
            start,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 300, "ftol": members.tolerance, "gtol": 1e-10, "maxcor": 30},
        )
        with torch.no_grad():
            return np.asarray(members.matrix(torch.from_numpy(found.x)).numpy())

    def fastest(self, members: Family, found: Array) -> Array:
        """The preconditioner of a family that reaches the target with injected noise the soonest.

        Of the one that is best for SGD's noise alone and some that are cheap to write down, each
        at its largest feasible rate; ``found`` itself where the target cannot be reached.
        """
        near = self.start()
        curves = np.diag(1 / np.diag(self.f))
        shapes = [found, np.eye(len(found)), np.diag(1 / np.diag(np.linalg.inv(near))), curves]
        best, slowest = found, 0.0
        for shape in shapes:
            member = members.matrix(members.start(torch.from_numpy(shape))).detach().numpy()
            scaled = self.largest_scale(member)
            rate = 0.0 if scaled is None else float(np.linalg.eigvals(scaled @ self.f).real.min())
            if scaled is not None and rate > slowest:
                best, slowest = scaled, rate
        return best

    def largest_scale(self, h: Array) -> Array | None:
        """The largest multiple of ``H`` with which the target only needs *more* noise, if any."""
        largest = float(np.abs(np.linalg.eigvals(h @ self.f)).max())
        h = h / largest

        def feasible(scale: float) -> bool:
            if scale >= 2 * (1 + self.momentum) / (2 * self.growth - 1):
                return False
            lacking = required_noise(self.f, self.target, scale * h, self.momentum) - self.own
            return bool(np.linalg.eigvalsh(lacking).min() >= -1e-12 * np.abs(lacking).max())

        scales = [2.0**power for power in range(1, -40, -1)]
        low = next((scale for scale in scales if feasible(scale)), None)
        if low is None:
            return None
        high = 2 * low
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if feasible(middle) else (low, middle)
        return low * h

    def injection(self, h: Array) -> Array | None:
        """The noise that is still lacking, its positive part; None where it does not help."""
        lacking = required_noise(self.f, self.target, h, self.momentum) - self.own
        values, vectors = np.linalg.eigh(lacking)
        kept = np.where(values > 1e-9 * np.abs(self.own + lacking).max(), values, 0.0)
        extra = symmetric_part((vectors * kept) @ vectors.T)
        if not kept.any() or self._reached(h, extra) > self._reached(h, 0 * extra):
            return None
        return extra

    def _reached(self, h: Array, extra: Array) -> float:
        whole = InverseProblem(
            self.f, self.c, self.own + extra, self.target, self.momentum, self.averaging, self.law
        )
        try:
            return float(whole.divergence(torch.from_numpy(h)))
        except _Unstable:
            return _UNSTABLE


class _Unstable(Exception):
    """A preconditioner beyond stability."""


def any_matrix(size: int) -> Family:
    """Every positive-definite matrix, by its Cholesky factor."""
    whole = family("kronecker", size, [(size,)])

    def start(h: Tensor) -> Tensor:
        root = torch.linalg.cholesky(h)
        rows, columns = torch.tril_indices(size, size, -1)
        return torch.cat([root.diagonal().log(), root[rows, columns]])

    return Family(whole.matrix, start)


def _missing(noise: Array, least: Array) -> Array:
    """What brings ``noise`` up to ``least`` in every direction of the metric ``least``."""
    root = np.linalg.cholesky(least)
    inner = np.linalg.solve(root, np.linalg.solve(root, noise).T)
    values, vectors = np.linalg.eigh(symmetric_part(inner))
    lacking = np.clip(1.0 - values, 0.0, None)
    columns = root @ vectors
    return symmetric_part((columns * lacking) @ columns.T)


def epoch_scale(
    f: Array, c: Array, s: Array, h: Array, batch_size: int, num_data: int | None
) -> Array:
    """The multiple of ``H`` with the least divergence of epochs' ends, by bounded search."""
    from scipy.optimize import minimize_scalar

    if num_data is None:
        raise ValueError('batching="epoch" needs num_data.')
    target = torch.from_numpy(s)

    def value(power: float) -> float:
        try:
            chain = epoch_chain(
                torch.from_numpy(f),
                torch.from_numpy(c),
                num_data=num_data,
                learning_rate=2.0**power,
                batch_size=batch_size,
                preconditioner=torch.from_numpy(h),
            )
            found = float(covariance_kl(chain.covariance, target))
        except ValueError:
            return _UNSTABLE
        return found if math.isfinite(found) else _UNSTABLE

    coarse = min(np.arange(-6.0, 8.0), key=value)
    best = minimize_scalar(value, bounds=(coarse - 1, coarse + 1), method="bounded")
    return np.asarray(2.0**best.x * h)
