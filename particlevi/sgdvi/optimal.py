"""Constant-rate SGD as an approximation of a Gaussian posterior: the best rate and preconditioner.

With Hessian ``F`` and per-sample gradient covariance ``C`` of the mean loss (prior included), N
data and batch size ``b``, the posterior is ``Normal(0, (N F)^-1)`` and SGD's law
``Normal(0, S)``. Their divergence, in nats, is::

    KL(SGD || posterior) = (1/2) [N tr(F S) - log det(N F S) - D]

For small learning rates ``tr(F S) = eta tr(C) / (2b)`` whatever ``F`` is, and the divergence is
least at ``eta* = 2 b D / (N tr C)``.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian
inference", 2017; formulas derived anew and checked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_flag, check_fraction, check_positive, check_positive_int
from particlevi.sgdvi._checks import as_real
from particlevi.sgdvi._linear import Array, as_matrix, check_one_size
from particlevi.sgdvi.stationary import exact_law, stationary_law

__all__ = [
    "effective_temperatures",
    "kl_to_posterior",
    "optimal_preconditioner",
    "optimal_rate",
]


def optimal_rate(noise: Tensor, *, num_data: int, batch_size: int, momentum: float = 0.0) -> float:
    """``eta* = 2 (1 - m) b D / (N tr C)``, at which SGD's law is closest to the posterior.

    Exact for the small-rate law without momentum; with it, of first order in the rate.

    Source: Mandt, Hoffman and Blei 2017.

    Args:
        noise: per-sample gradient covariance ``C [D, D]`` of the mean loss, or its diagonal
            ``[D]``.
        num_data: N.
        batch_size: b.
        momentum: m in [0, 1), as in ``torch.optim.SGD``.

    >>> optimal_rate(torch.eye(3), num_data=100, batch_size=10)
    0.2
    """
    check_positive_int("num_data", num_data)
    check_positive_int("batch_size", batch_size)
    check_fraction("momentum", momentum)
    diagonal = _diagonal(noise)
    trace = float(diagonal.sum())
    check_positive("the trace of noise", trace)
    return 2.0 * (1.0 - momentum) * batch_size * len(diagonal) / (num_data * trace)


def optimal_preconditioner(
    noise: Tensor, *, num_data: int, batch_size: int, diagonal: bool = False
) -> Tensor:
    """``H* = (2b/N) C^-1``: with steps ``-H g`` the small-rate law is the posterior itself.

    The learning rate is absorbed in ``H``. With ``diagonal``, ``H*_kk = 2b / (N C_kk)``: exact
    where ``F`` and ``C`` are diagonal, elsewhere an approximation that leaves some divergence.

    Source: Mandt, Hoffman and Blei 2017.

    Args:
        noise: ``C [D, D]``, or its diagonal ``[D]`` with ``diagonal``.
        num_data: N.
        batch_size: b.
        diagonal: whether only ``H``'s diagonal ``[D]`` is wanted.

    Raises:
        ValueError: a covariance without full rank: no preconditioner makes SGD move where it has
            no noise.

    >>> optimal_preconditioner(torch.tensor([1.0, 4.0]), num_data=10, batch_size=5, diagonal=True)
    tensor([1.0000, 0.2500], dtype=torch.float64)
    """
    check_positive_int("num_data", num_data)
    check_positive_int("batch_size", batch_size)
    check_flag("diagonal", diagonal)
    scale = 2.0 * batch_size / num_data
    if diagonal:
        entries = _diagonal(noise)
        if (entries <= 0).any():
            raise ValueError("noise has directions without noise: leave those parameters out.")
        return scale / entries
    matrix = torch.from_numpy(as_matrix("noise", noise))
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if values.min() <= values.max() * len(values) * torch.finfo(torch.float64).eps:
        raise ValueError(
            f"noise has no inverse: its eigenvalues reach from {values.min():.3g} to "
            f"{values.max():.3g}. Work in the subspace that has noise."
        )
    inverse: Tensor = (vectors / values) @ vectors.T
    return scale * inverse


def kl_to_posterior(
    hessian: Tensor,
    noise: Tensor,
    *,
    num_data: int,
    learning_rates: Tensor,
    batch_size: int,
    preconditioner: Tensor | None = None,
    momentum: float = 0.0,
    exact: bool = False,
) -> Tensor:
    """``KL(SGD's law || posterior)`` in nats at each learning rate, ``[...]``.

    Source: Mandt, Hoffman and Blei 2017.

    Args:
        hessian: ``F [D, D]`` of the mean loss with the prior.
        noise: ``C [D, D]``.
        num_data: N.
        learning_rates: ``eta``, any shape.
        batch_size: b.
        preconditioner: ``H [D, D]`` or its diagonal ``[D]``, in steps ``-eta H g``.
        momentum: m in [0, 1); of the small-rate law it enters the temperature alone.
        exact: the law of the discrete steps in place of the small-rate law; infinite where the
            rate is not stable.

    >>> rates = torch.tensor([0.1, 0.2, 0.4])
    >>> one = torch.eye(3)
    >>> kl_to_posterior(one, one, num_data=100, learning_rates=rates, batch_size=10)
    tensor([0.2897, 0.0000, 0.4603], dtype=torch.float64)
    """
    check_positive_int("num_data", num_data)
    check_flag("exact", exact)
    check_fraction("momentum", momentum)
    check_positive_int("batch_size", batch_size)
    f, c = (torch.from_numpy(m) for m in _pair("hessian", hessian, "noise", noise))
    drift, kick = f, c
    if preconditioner is not None:
        h = as_real("preconditioner", preconditioner, "[D, D] or [D]")
        h = torch.diag(h) if h.ndim == 1 else h
        if h.shape != f.shape:
            raise ValueError(
                f"preconditioner must be [{len(f)}, {len(f)}] or its diagonal, got {list(h.shape)}."
            )
        drift, kick = h @ f, h @ c @ h.T
    rates = as_real("learning_rates", learning_rates, "of any shape")
    if rates.numel() == 0 or (rates <= 0).any():
        raise ValueError("learning_rates must be at least one number, all above 0.")
    found = [
        _kl(f, drift, kick, num_data, float(rate), batch_size, momentum, exact)
        for rate in rates.flatten()
    ]
    return torch.tensor(found, dtype=torch.float64).view(rates.shape)


def _kl(
    f: Tensor,
    drift: Tensor,
    kick: Tensor,
    num_data: int,
    rate: float,
    batch_size: int,
    momentum: float,
    exact: bool,
) -> float:
    settings: dict[str, Any] = {
        "learning_rate": rate,
        "batch_size": batch_size,
        "momentum": momentum,
    }
    if exact:
        limit = np.abs(np.linalg.eigvals(drift.numpy())).max()
        if rate * limit >= 2 * (1 + momentum):
            return float("inf")
        law = exact_law(drift, kick, **settings)
    else:
        law = stationary_law(drift, kick, **settings)
    if law.null_directions.shape[1]:
        return float("inf")
    product = num_data * f @ law.covariance
    return float(0.5 * (product.trace() - torch.linalg.slogdet(product)[1] - len(f)))


def effective_temperatures(covariance: Tensor, hessian: Tensor, num_data: int) -> Tensor:
    """SGD's variance over the posterior's along each eigenvector of the Hessian, ``[D]``.

    ``N l_i v_i' S v_i`` for eigenpairs ``(l_i, v_i)`` of ``F``, smallest first; 1 everywhere if
    SGD samples the posterior, NaN where the curvature is not positive.

    Args:
        covariance: ``S [D, D]`` of SGD's draws.
        hessian: ``F [D, D]`` of the mean loss with the prior.
        num_data: N.

    >>> effective_temperatures(torch.eye(2) / 50, torch.eye(2), num_data=100)
    tensor([2., 2.], dtype=torch.float64)
    """
    check_positive_int("num_data", num_data)
    f, s = (torch.from_numpy(m) for m in _pair("hessian", hessian, "covariance", covariance))
    values, vectors = torch.linalg.eigh((f + f.T) / 2)
    spread = torch.einsum("ik,ij,jk->k", vectors, s, vectors)
    return torch.where(values > 0, num_data * values * spread, torch.nan)


def _pair(first: str, a: Tensor, second: str, b: Tensor) -> tuple[Array, Array]:
    """Two matrices of one size."""
    found = as_matrix(first, a), as_matrix(second, b)
    check_one_size(*found)
    return found


def _diagonal(noise: Tensor) -> Tensor:
    tensor = as_real("noise", noise, "[D, D] or its diagonal [D]")
    if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
        return tensor.diagonal()
    if tensor.ndim == 1 and len(tensor):
        return tensor
    raise ValueError(f"noise must be [D, D] or its diagonal [D], got {list(tensor.shape)}.")
