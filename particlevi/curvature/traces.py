"""The trace of a matrix that is known by its products, with a standard error.

* ``"xtrace"``: with Q an orthonormal basis of ``A Omega``, the trace in the span of all test
  vectors but one, plus what that one says about the rest, averaged over which one is left out.
* ``"hutch++"``: the trace in the span of a third of the products, and Hutchinson's estimate of
  the rest. Its error is that of Hutchinson's part.
* ``"hutchinson"``: the mean of ``v' A v`` over random vectors.

For matrices with a decaying spectrum the first two need far fewer products. XTrace is the more
accurate; its estimates from different vectors are not independent, so its error is that of the
jackknife, which is too large where the accuracy grows fast with the number of products.

Reference: Epperly, Tropp and Webber, "XTrace: making the most of every sample in stochastic trace
estimation", 2024; Meyer, Musco, Musco and Woodruff, "Hutch++: optimal stochastic trace
estimation", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive_int, check_seed

__all__ = ["TraceEstimate", "TraceMethod", "estimate_trace"]

TraceMethod = Literal["xtrace", "hutch++", "hutchinson"]
"""Ways to estimate a trace."""

Products = Callable[[Tensor], Tensor]


class TraceEstimate(NamedTuple):
    """A trace, its standard error (0 where it is exact) and the products it took."""

    value: float
    standard_error: float
    num_products: int


def estimate_trace(
    products: Products,
    size: int,
    num_products: int = 60,
    method: TraceMethod = "hutch++",
    *,
    seed: int = 0,
) -> TraceEstimate:
    """The trace of a symmetric matrix.

    Args:
        products: ``A V [D, K]`` for columns ``V [D, K]``.
        size: D; with as many products or more, the trace is exact.
        num_products: in all, at least 6.
        method: see the list above.
        seed: of the test vectors.

    Raises:
        ValueError: arguments out of range, or products that are not finite.

    Examples:
        >>> values = 0.5 ** torch.arange(300, dtype=torch.float64)
        >>> found = estimate_trace(lambda v: values[:, None] * v, 300, 60)
        >>> round(found.value, 6)
        2.0
    """
    check_positive_int("size", size)
    check_positive_int("num_products", num_products, minimum=6)
    check_choice("method", method, ["xtrace", "hutch++", "hutchinson"])
    check_seed("seed", seed)

    def apply(columns: Tensor) -> Tensor:
        found = products(columns).detach().double().cpu()
        if found.shape != columns.shape or not torch.isfinite(found).all():
            raise ValueError(
                f"products must give finite columns {list(columns.shape)}, got {list(found.shape)}."
            )
        return found

    if num_products >= size:
        whole = apply(torch.eye(size, dtype=torch.float64))
        return TraceEstimate(float(whole.trace()), 0.0, int(size))
    generator = torch.Generator().manual_seed(seed)
    if method == "hutchinson":
        signs = _signs(size, num_products, generator)
        each = (signs * apply(signs)).sum(0)
        return _mean(each, num_products)
    if method == "hutch++":
        return _hutchpp(apply, size, num_products, generator)
    return _xtrace(apply, size, num_products, generator)


def _signs(size: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (size, count), generator=generator).double() * 2 - 1


def _mean(each: Tensor, num_products: int) -> TraceEstimate:
    return TraceEstimate(
        float(each.mean()), float(each.std()) / math.sqrt(len(each)), int(num_products)
    )


def _hutchpp(
    apply: Products, size: int, num_products: int, generator: torch.Generator
) -> TraceEstimate:
    third = num_products // 3
    basis = torch.linalg.qr(apply(_signs(size, third, generator)))[0]
    inside = float((basis * apply(basis)).sum())
    signs = _signs(size, num_products - 2 * third, generator)
    rest = signs - basis @ (basis.T @ signs)
    found = _mean((rest * apply(rest)).sum(0), num_products)
    return found._replace(value=inside + found.value)


def _xtrace(
    apply: Products, size: int, num_products: int, generator: torch.Generator
) -> TraceEstimate:
    """All leave-one-out estimates from one factorisation, in the coordinates of Q.

    Leaving test vector i out takes the direction ``Q s_i`` from the basis, with ``s_i`` the
    normalised i-th row of ``R^-1``; ``u = omega - Q c`` with ``c = w - s (s . w)`` is what is left
    of the vector outside of the smaller basis. Its length is scaled to the dimension of that space.
    The jackknife repeats it from all test vectors but one, again without new products.
    """
    count = num_products // 2
    omega = torch.randn(size, count, generator=generator, dtype=torch.float64)
    image = apply(omega)
    q, r = torch.linalg.qr(image)
    h_image = apply(q)
    h = q.T @ h_image
    cross = h_image.T @ omega
    w = q.T @ omega
    scale = r.diagonal().abs()
    if scale.min() <= 1e-13 * scale.max():
        # The matrix has no more than `count` directions, so Q holds all of them.
        return TraceEstimate(float(h.trace()), 0.0, 2 * count)
    s = torch.linalg.inv(r).T
    s = s / s.norm(dim=0)
    lengths = omega.square().sum(0)

    def left(i: Tensor, gone: Tensor, spare: int) -> Tensor:
        """The estimates of test vectors ``i [K]`` without directions ``gone [M, E, K]``."""
        inside = h.trace() - torch.einsum("aek,ab,bek->k", gone, h, gone)
        own = w[:, i]
        c = own - torch.einsum("aek,bek,bk->ak", gone, gone, own)
        square = ((own - c) * r[:, i]).sum(0) - (cross[:, i] * c).sum(0) + (c * (h @ c)).sum(0)
        length = lengths[i] - 2 * (own * c).sum(0) + c.square().sum(0)
        found: Tensor = inside + square * (size - count + spare) / length
        return found

    every = torch.arange(count)
    value = left(every, s[:, None], 1).mean()
    without = []
    for j in range(count):
        others = every[every != j]
        first = s[:, others]
        second = s[:, j : j + 1] - first * (first * s[:, j : j + 1]).sum(0)
        pair = torch.stack([first, second / second.norm(dim=0)], 1)
        without.append(left(others, pair, 2).mean())
    spread = torch.stack(without)
    error = ((count - 1) / count * (spread - spread.mean()).square().sum()).sqrt()
    return TraceEstimate(float(value), float(error), 2 * count)
