"""Stationary covariances that can be differentiated: solutions of both Lyapunov equations.

The gradient of a function of ``S`` with ``S = A S A' + N`` needs one more equation of the same
kind, ``Y = A' Y A + dL/dS``: then ``dL/dN = Y`` and ``dL/dA = 2 Y A S``. For ``A S + S A' = N`` it
is ``A' Y + Y A = dL/dS``, ``dL/dN = Y`` and ``dL/dA = -2 Y S``.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from particlevi.sgdvi._linear import solve_discrete
from particlevi.sgdvi.stationary import ou_covariance

__all__ = ["continuous_covariance", "discrete_covariance"]


class _Discrete(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Tensor, kick: Tensor) -> Tensor:
        found = torch.from_numpy(solve_discrete(step.detach().numpy(), kick.detach().numpy()))
        ctx.save_for_backward(step, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        step, found = ctx.saved_tensors
        upper = (gradients[0] + gradients[0].T) / 2
        y = torch.from_numpy(solve_discrete(step.T.numpy(), upper.numpy()))
        return 2 * y @ step @ found, y


class _Continuous(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, drift: Tensor, diffusion: Tensor) -> Tensor:
        found = ou_covariance(drift.detach(), diffusion.detach())
        ctx.save_for_backward(drift, found)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        drift, found = ctx.saved_tensors
        y = ou_covariance(drift.T, (gradients[0] + gradients[0].T) / 2)
        return -2 * y @ found, y


def discrete_covariance(step: Tensor, kick: Tensor) -> Tensor:
    """``S = A S A' + N`` for a stable ``A``, differentiable in both."""
    solve: Any = _Discrete.apply
    return cast(Tensor, solve(step, kick))


def continuous_covariance(drift: Tensor, diffusion: Tensor) -> Tensor:
    """``A S + S A' = N`` for a positive ``A``, differentiable in both."""
    solve: Any = _Continuous.apply
    return cast(Tensor, solve(drift, diffusion))
