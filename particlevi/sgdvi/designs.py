"""How to run SGD so that it samples a given Gaussian: the inverse of its stationary law.

SGD with preconditioner ``H`` (rate absorbed), momentum m and total gradient noise ``W = k C + J``
has stationary covariance ``S`` if and only if, with ``G = H F S``::

    H W H = (1 - m)(G + G') - (1 + m^2)/(1 - m^2) G S^-1 G'
            + m/(1 - m^2) (H F G + G' F H)

Given ``S`` this is linear in ``W``: any target is reached by injecting ``J = W - k C`` wherever
that is no negative matrix. Without momentum it is also linear in ``X = H^-1``::

    (F S) X + X (F S)' = F S F + k C

so that SGD's own noise samples *any* Gaussian under the right preconditioner. For the posterior,
``S = (N F)^-1``, with momentum too::

    H = 2 (1 - m) [N k C + (1 - m)/(1 + m) F]^-1

whose limit for small rates is Mandt, Hoffman and Blei's ``(2b/N) C^-1``. Preconditioners of a
simpler family, averages of iterates and epochs minimise ``KL(Normal(0, S(H)) || target)`` by
L-BFGS, with gradients through the Lyapunov equation.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference",
2017, for small rates; the rest is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import (
    check_choice,
    check_flag,
    check_fraction,
    check_positive,
    check_positive_int,
)
from particlevi._shown import Shown
from particlevi.noise.scalings import batch_factor
from particlevi.sgdvi._linear import Array, as_matrix, is_symmetric, symmetric_part
from particlevi.sgdvi.chains import GaussianChain, epoch_chain, sgd_chain
from particlevi.sgdvi.inverse import InverseProblem, Law, any_matrix, covariance_kl, epoch_scale
from particlevi.sgdvi.preconditioners import Structure, family
from particlevi.sgdvi.stationary import checked_matrices

__all__ = ["Design", "Order", "cheapest", "design"]

Order = Literal["replacement", "subset", "epoch"]
"""How batches are drawn, as in ``sample``."""

_MOST_PARAMS = 2000


@dataclass(frozen=True, eq=False, repr=False)
class Design(Shown):
    """Settings of SGD and what they give.

    Attributes:
        learning_rate: ``eta`` on the mean loss.
        preconditioner: ``H [D, D]``, of mean diagonal 1.
        momentum: m.
        batch_size: b.
        batching: how batches are drawn.
        injected: ``J [D, D]``, the covariance of noise added to the mean gradient; None if none.
        averaging: iterates that are averaged to one draw.
        thin: steps from one draw to the next, ``averaging`` included.
        steps_per_epoch: steps for one step of the chain with epochs, else 1.
        chain: the law of the iterates; with epochs of one iterate per epoch.
        covariance: of draws, ``[D, D]``.
        target: what it should be, ``[D, D]``.
        kl: ``KL(draws || target)`` in nats.
        autocorrelation_time: of the iterates in steps, the longest over the target's axes.
        gradients_per_effective_sample: per-datum gradients for one independent draw of the slowest
            axis, if every iterate is used (every average, with averaging).
    """

    learning_rate: float
    preconditioner: Tensor
    momentum: float
    batch_size: int
    batching: Order
    injected: Tensor | None
    averaging: int
    thin: int
    steps_per_epoch: int
    chain: GaussianChain
    covariance: Tensor
    target: Tensor
    kl: float
    autocorrelation_time: float
    gradients_per_effective_sample: float


def design(
    hessian: Tensor,
    noise: Tensor,
    target: Tensor,
    *,
    batch_size: int,
    num_data: int | None = None,
    momentum: float = 0.0,
    batching: Order = "replacement",
    preconditioner: Structure = "full",
    injected: bool = True,
    averaging: int = 1,
    law: Law = "exact",
    shapes: Sequence[tuple[int, ...]] | None = None,
    curvature_growth: float = 1.0,
) -> Design:
    """Settings of SGD whose draws are closest to ``Normal(minimum, target)``.

    With ``injected``, noise is added where SGD's own is too small: under a full preconditioner in
    the directions where it would otherwise take steps of more than Newton's, under the others as
    much as the target needs, at the largest rate at which that is possible (Langevin dynamics, of
    which SGD's noise is a part). Without, the preconditioner and rate are chosen for SGD's noise
    alone, as they are for averages and epochs.

    Args:
        hessian: ``F [D, D]`` of the mean loss, prior included.
        noise: per-sample gradient covariance ``C [D, D]``, at best averaged over the target.
        target: ``S [D, D]``.
        batch_size: b.
        num_data: N; needed for subsets and epochs.
        momentum: m in [0, 1).
        batching: of independent data, subsets, or epochs; draws of epochs are those at their ends.
        preconditioner: the family.
        injected: whether noise may be added; see above.
        averaging: iterates that are averaged to one draw.
        law: ``"small_rates"`` leaves out what is of higher order in the rate.
        shapes: of the tensors, for the Kronecker family; one vector if absent.
        curvature_growth: how many times larger than ``hessian`` the curvature gets where the
            target's draws lie, at most; where noise may be added, steps are so many times shorter.

    Raises:
        ValueError: matrices that do not fit, or a combination that is not implemented.

    Examples:
        The posterior of two parameters, from SGD's own noise:

        >>> f, c = torch.diag(torch.tensor([1.0, 4.0])), torch.diag(torch.tensor([2.0, 1.0]))
        >>> found = design(f, c, torch.linalg.inv(100 * f.double()), batch_size=5, num_data=100)
        >>> found.preconditioner.diag() * found.learning_rate
        tensor([0.0488, 0.0833], dtype=torch.float64)
        >>> abs(found.kl) < 1e-12
        True
    """
    f, c, _ = checked_matrices(hessian, noise, 0.0, None)
    s = _checked_target(target, f)
    check_fraction("momentum", momentum)
    check_choice("preconditioner", preconditioner, get_args(Structure))
    check_choice("batching", batching, get_args(Order))
    check_choice("law", law, ["exact", "small_rates"])
    check_flag("injected", injected)
    check_positive_int("averaging", averaging)
    check_positive("curvature_growth", curvature_growth)
    if curvature_growth < 1:
        raise ValueError(f"curvature_growth must be at least 1, got {curvature_growth}.")
    _check_combination(batching, momentum, averaging, law)
    tensors = _checked_shapes(shapes, len(f))
    own = batch_factor(batch_size, num_data, _independent(batching)) * c
    growth = float(curvature_growth)
    problem = InverseProblem(f, c, own, s, float(momentum), int(averaging), law, growth)
    add = injected and averaging == 1 and batching != "epoch" and law == "exact"
    extra: Array | None = None
    if averaging > 1:
        members = (
            any_matrix(len(f))
            if preconditioner == "full"
            else family(preconditioner, len(f), tensors)
        )
        h = problem.search(members, problem.rough())
    elif preconditioner == "full":
        h = problem.full(add)
    else:
        members = family(preconditioner, len(f), tensors)
        h = problem.search(members, problem.start())
        h = problem.fastest(members, h) if add else h
    if add:
        extra = problem.injection(h)
    if batching == "epoch":
        h = epoch_scale(f, c, s, h, batch_size, num_data)
    return _finish(problem, h, extra, int(batch_size), batching, num_data)


def _checked_target(target: Any, f: Array) -> Array:
    s = as_matrix("target", target)
    if s.shape != f.shape or not is_symmetric(s) or np.linalg.eigvalsh(s).min() <= 0:
        raise ValueError(
            f"target must be a positive-definite covariance [{len(f)}, {len(f)}], got "
            f"{list(s.shape)} with eigenvalues from {np.linalg.eigvals(s).real.min():.3g}."
        )
    if len(f) > _MOST_PARAMS:
        raise ValueError(
            f"The laws are those of dense matrices with at most {_MOST_PARAMS} parameters, got "
            f"{len(f)}: restrict the plan to some layers or to an invariant_subspace."
        )
    if not is_symmetric(f):
        raise ValueError("hessian must be symmetric; a preconditioner is found, not given.")
    return symmetric_part(s)


def _checked_shapes(
    shapes: Sequence[tuple[int, ...]] | None, size: int
) -> Sequence[tuple[int, ...]]:
    found = [(size,)] if shapes is None else shapes
    right = isinstance(found, Sequence) and all(isinstance(shape, tuple) for shape in found)
    if not right or sum(math.prod(shape) for shape in found) != size:
        raise ValueError(f"shapes must be those of tensors with {size} numbers in all: {shapes}.")
    return found


def _check_combination(batching: Order, momentum: float, averaging: int, law: Law) -> None:
    if batching == "epoch" and (momentum > 0 or averaging > 1 or law != "exact"):
        raise ValueError(
            "Plans for epochs take neither momentum, averaging nor the law of small rates: use "
            'batching="subset", whose batches are independent.'
        )
    if law == "small_rates" and (momentum > 0 or averaging > 1):
        raise ValueError('law="small_rates" takes neither momentum nor averaging: use "exact".')


def _independent(batching: Order) -> Any:
    return "subset" if batching == "epoch" else batching


def _finish(
    problem: InverseProblem,
    h: Array,
    extra: Array | None,
    batch_size: int,
    batching: Order,
    num_data: int | None,
) -> Design:
    rate = float(np.trace(h)) / len(h)
    unit = torch.from_numpy(h / rate)
    matrices = torch.from_numpy(problem.f), torch.from_numpy(problem.c)
    if batching == "epoch":
        assert num_data is not None
        chain = epoch_chain(
            *matrices,
            num_data=num_data,
            learning_rate=rate,
            batch_size=batch_size,
            preconditioner=unit,
        )
        steps_per = num_data // batch_size
    else:
        chain = sgd_chain(
            *matrices,
            learning_rate=rate,
            batch_size=batch_size,
            momentum=problem.momentum,
            preconditioner=unit,
            injected=None if extra is None else torch.from_numpy(extra),
            batching=_independent(batching),
            num_data=num_data,
        )
        steps_per = 1
    target = torch.from_numpy(problem.target)
    axes = torch.linalg.eigh(target).eigenvectors
    slowest = max(float(chain.autocorrelation_time(axes).max()), 1.0)
    if problem.averaging > 1:
        covariance = chain.average_covariance(problem.averaging)
        ratio = torch.einsum("ik,ij,jk->k", axes, chain.covariance, axes)
        averaged = torch.einsum("ik,ij,jk->k", axes, covariance, axes)
        # A long mean has variance tau / n of an iterate, or tau_T T / n of an average.
        blocks = chain.autocorrelation_time(axes) * ratio / averaged / problem.averaging
        cost = max(float(blocks.max()), 1.0) * problem.averaging * batch_size
        thin = problem.averaging
    else:
        covariance = chain.covariance
        cost = slowest * steps_per * batch_size
        thin = max(1, math.ceil(slowest)) * steps_per
    return Design(
        learning_rate=rate,
        preconditioner=unit,
        momentum=problem.momentum,
        batch_size=batch_size,
        batching=batching,
        injected=None if extra is None else torch.from_numpy(extra),
        averaging=problem.averaging,
        thin=thin,
        steps_per_epoch=steps_per,
        chain=chain,
        covariance=covariance,
        target=target,
        kl=max(float(covariance_kl(covariance, target)), 0.0),
        autocorrelation_time=slowest * steps_per,
        gradients_per_effective_sample=cost,
    )


def cheapest(found: Sequence[Design]) -> Design:
    """Of designs about as close to the target as the closest, the one with the least cost.

    Of costs that differ by less than a quarter, the one with the fewest steps.
    """
    size = len(found[0].target)
    least = min(each.kl for each in found)
    near = [each for each in found if each.kl <= 1.01 * least + 1e-3 * size]
    cost = min(each.gradients_per_effective_sample for each in near)
    cheap = [each for each in near if each.gradients_per_effective_sample <= 1.25 * cost]
    return max(cheap, key=lambda each: each.batch_size)
