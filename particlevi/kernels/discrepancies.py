"""How far a sample is from a distribution or from another sample, with tests of fit.

* ``ksd``: the kernel Stein discrepancy of a sample to a density known by its scores alone.
* ``mmd``, ``sliced_wasserstein``: between two samples.

Each sum runs a block of rows at a time, so that no n x n matrix is formed. Each test draws its own
null distribution: wild bootstrap for the KSD, permutations of the pooled sample for the others.
Tests assume independent draws; thin a chain, or use several, first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_finite, check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi.kernels.kernels import Radial, as_radial, imq
from particlevi.kernels.reduction import PROFILES, row_blocks

__all__ = [
    "Discrepancy",
    "FitTest",
    "ksd",
    "ksd_test",
    "mmd",
    "mmd_test",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
    "stein_matrix",
]


@dataclass(frozen=True, repr=False)
class Discrepancy(Shown):
    """An estimate of a squared discrepancy, and its standard error over draws of the sample.

    The standard error holds away from the null hypothesis, where the estimate is asymptotically
    normal; at the null it is not, and the test is the thing to use.
    """

    value: float
    standard_error: float


@dataclass(frozen=True, eq=False, repr=False)
class FitTest(Shown):
    """A test of fit.

    Attributes:
        statistic: the estimate.
        p_value: ``(1 + #{null >= statistic}) / (1 + B)``.
        null: the B draws of the null distribution.
    """

    statistic: float
    p_value: float
    null: Tensor


def _test(statistic: Tensor, null: Tensor) -> FitTest:
    above = int((null >= statistic).sum())
    return FitTest(float(statistic), (1 + above) / (1 + len(null)), null)


def _checked(name: str, sample: Tensor, minimum: int) -> None:
    if not isinstance(sample, Tensor) or sample.ndim != 2 or len(sample) < minimum:
        got = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise ValueError(f"{name} must be a tensor [n, D] with n >= {minimum}, got {got}.")
    if not sample.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {sample.dtype}: use {name}.float().")
    check_finite(name, sample, "Leave those draws out.")


def stein_matrix(
    x: Tensor, scores: Tensor, y: Tensor, scores_y: Tensor, kernel: Radial, width: Tensor
) -> Tensor:
    """The Stein kernel ``[P, Q]``, whose mean over two draws of the target is 0.

    ``h(x, y) = k s_x.s_y + s_x.grad_y k + s_y.grad_x k + tr grad_x grad_y k``; for
    ``k = f(u), u = |x - y|^2 / b``, that is
    ``f s_x.s_y - (2 f'/b) (s_x - s_y).(x - y) - (2 D f' + 4 u f'') / b``.

    Args:
        x: points ``[P, D]``.
        scores: ``grad log p`` there.
        y: points ``[Q, D]``, centred as x is.
        scores_y: ``grad log p`` there.
        kernel: ``rbf`` or ``imq``.
        width: the bandwidth b, 0-d.
    """
    profile, dim = PROFILES[kernel.kind], x.shape[1]
    squares = x.square().sum(1, keepdim=True) + y.square().sum(1)
    u = squares.addmm_(x, y.T, alpha=-2).clamp_(min=0).div_(width)
    value = profile.value(u)
    slope, curvature = profile.slope(value), profile.curvature(value)
    cross = (scores * x).sum(1, keepdim=True) + (scores_y * y).sum(1)
    cross = cross - scores @ y.T - x @ scores_y.T
    trace = (2 * dim * slope - 4 * u * curvature) / width
    return value * (scores @ scores_y.T) + 2 / width * slope * cross + trace


def _over_rows(num: int, block: Callable[[slice], Tensor]) -> Tensor:
    return torch.cat([block(rows) for rows in row_blocks(num)])


def _prepared(
    x: Tensor, scores: Tensor, kernel: Radial | None
) -> tuple[Radial, Tensor, Tensor, Tensor]:
    _checked("x", x, 2)
    if not isinstance(scores, Tensor) or scores.shape != x.shape:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"scores must be grad log p at the draws, {list(x.shape)}, got {got}.")
    check_finite("scores", scores, "Leave those draws out.")
    chosen = as_radial(kernel, imq)
    return chosen, x - x.mean(0), scores.to(x), chosen.width(x)


def ksd(
    x: Tensor, scores: Tensor, kernel: Radial | None = None, statistic: str = "U"
) -> Discrepancy:
    """The squared kernel Stein discrepancy of a sample to the density with the given scores.

    ``U = sum_{i != j} h(x_i, x_j) / (n (n - 1))``, unbiased, or ``V = sum_ij h(x_i, x_j) / n^2``,
    never negative; h is the Stein kernel. Zero mean if and only if the sample is from the density;
    with the IMQ kernel it also sees a sample that does not spread enough.

    With scores from independent minibatches for every draw, ``-g(x_i)``, U stays unbiased and V
    gains their variance.

    Source: Liu, Lee and Jordan, "A kernelized Stein discrepancy for goodness-of-fit tests", 2016;
    Gorham and Mackey, "Measuring sample quality with kernels", 2017; Gorham, Raj and Mackey,
    "Stochastic Stein discrepancies", 2020.

    Args:
        x: draws ``[n, D]``.
        scores: ``grad log p`` at the draws, that is, minus the gradient of the potential.
        kernel: ``pvi.kernels.imq()`` if absent, its bandwidth from the draws.
        statistic: ``"U"`` or ``"V"``.

    Raises:
        ValueError: shapes that do not fit, values that are not finite.

    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> exact, narrow = ksd(x, -x), ksd(0.5 * x, -0.5 * x)
    >>> abs(exact.value) < 0.05, narrow.value > 0.1
    (True, True)
    """
    check_choice("statistic", statistic, ["U", "V"])
    chosen, points, scores, width = _prepared(x, scores, kernel)
    num = len(x)

    def rows_of(rows: slice) -> Tensor:
        block = stein_matrix(points[rows], scores[rows], points, scores, chosen, width)
        if statistic == "U":
            block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = 0
        return block.double().sum(1)

    means = _over_rows(num, rows_of) / (num - 1 if statistic == "U" else num)
    return Discrepancy(float(means.mean()), 2 * float(means.std()) / math.sqrt(num))


def ksd_test(
    x: Tensor,
    scores: Tensor,
    kernel: Radial | None = None,
    num_bootstrap: int = 500,
    seed: int = 0,
) -> FitTest:
    """Whether a sample is from the density with the given scores, by the KSD's U-statistic.

    The null distribution is that of ``sum_{i != j} e_i e_j h_ij / (n (n - 1))`` with independent
    signs ``e``, the wild bootstrap of a degenerate U-statistic.

    Source: Chwialkowski, Strathmann and Gretton, "A kernel test of goodness of fit", 2016; Liu, Lee
    and Jordan, "A kernelized Stein discrepancy for goodness-of-fit tests", 2016.

    Args:
        x: independent draws ``[n, D]``.
        scores: ``grad log p`` at the draws.
        kernel: ``pvi.kernels.imq()`` if absent.
        num_bootstrap: B.
        seed: of the signs.

    >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    >>> ksd_test(x, -x).p_value > 0.05, ksd_test(0.5 * x, -0.5 * x).p_value < 0.05
    (True, True)
    """
    check_positive_int("num_bootstrap", num_bootstrap)
    check_seed("seed", seed)
    chosen, points, scores, width = _prepared(x, scores, kernel)
    num = len(x)
    generator = torch.Generator().manual_seed(int(seed))
    signs = torch.randint(0, 2, (num, num_bootstrap), generator=generator).to(x) * 2 - 1
    signs = torch.cat([signs.new_ones(num, 1), signs], 1)

    def rows_of(rows: slice) -> Tensor:
        block = stein_matrix(points[rows], scores[rows], points, scores, chosen, width)
        block[torch.arange(len(block)), torch.arange(rows.start, rows.stop)] = 0
        return (signs[rows] * (block @ signs)).double().sum(0, keepdim=True)

    sums = _over_rows(num, rows_of).sum(0) / (num * (num - 1))
    return _test(sums[0], sums[1:])


def _pooled(x: Tensor, y: Tensor, minimum: int) -> Tensor:
    _checked("x", x, minimum)
    _checked("y", y, minimum)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same columns, got {x.shape[1]} and {y.shape[1]}.")
    return torch.cat([x, y.to(x)])


def mmd(x: Tensor, y: Tensor, kernel: Radial | None = None, statistic: str = "U") -> Discrepancy:
    """The squared maximum mean discrepancy between two samples.

    ``V = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``; U leaves the pairs of a draw with itself
    out and is unbiased.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test", 2012.

    Args:
        x: draws ``[n, D]``.
        y: draws ``[m, D]``.
        kernel: ``pvi.kernels.rbf()`` if absent, its bandwidth from both samples together.
        statistic: ``"U"`` or ``"V"``.

    >>> import particlevi as pvi
    >>> x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [2.0]])
    >>> mmd(x, y, pvi.kernels.rbf(1.0), statistic="V").value
    0.0
    """
    check_choice("statistic", statistic, ["U", "V"])
    chosen = as_radial(kernel)
    pool = _pooled(x, y, 2)
    width = chosen.width(pool)
    n, m = len(x), len(y)
    pool = pool - pool.mean(0)
    own = 1 if statistic == "U" else 0

    def rows_of(rows: slice) -> Tensor:
        block = chosen(pool[rows], pool, width).double()
        return torch.stack([block[:, :n].sum(1), block[:, n:].sum(1)], 1)

    sums = _over_rows(n + m, rows_of)
    within_x = (sums[:n, 0] - own) / (n - own)
    within_y = (sums[n:, 1] - own) / (m - own)
    across_x, across_y = sums[:n, 1] / m, sums[n:, 0] / n
    value = within_x.mean() + within_y.mean() - across_x.mean() - across_y.mean()
    spread = (within_x - across_x).var() / n + (within_y - across_y).var() / m
    return Discrepancy(float(value), 2 * float(spread.sqrt()))


def mmd_test(
    x: Tensor, y: Tensor, kernel: Radial | None = None, num_permutations: int = 500, seed: int = 0
) -> FitTest:
    """Whether two samples are from one distribution, by the MMD and permutations of the pool.

    Exact at any sample size for exchangeable draws.

    Source: Gretton, Borgwardt, Rasch, Schölkopf and Smola, "A kernel two-sample test", 2012.

    Args:
        x: independent draws ``[n, D]``.
        y: independent draws ``[m, D]``.
        kernel: ``pvi.kernels.rbf()`` if absent.
        num_permutations: B.
        seed: of the permutations.
    """
    check_positive_int("num_permutations", num_permutations)
    chosen = as_radial(kernel)
    pool = _pooled(x, y, 2)
    width = chosen.width(pool)
    n, m = len(x), len(y)
    pool = pool - pool.mean(0)
    first = _splits(n, m, num_permutations, seed).to(pool)

    def rows_of(rows: slice) -> Tensor:
        block = chosen(pool[rows], pool, width)
        products = block @ first
        mine = first[rows]
        total = block.sum(1, keepdim=True)
        xx = (mine * products).sum(0, keepdim=True)
        xy = ((1 - mine) * products).sum(0, keepdim=True)
        everything = total.sum().expand_as(xx)
        return torch.stack([xx, xy, everything], 1).double()

    xx, xy, everything = _over_rows(n + m, rows_of).sum(0)
    yy = everything - xx - 2 * xy
    values = (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)
    return _test(values[0], values[1:])


def _splits(n: int, m: int, count: int, seed: int) -> Tensor:
    """Columns of which n rows are 1, the first column the first n: ``[n + m, 1 + count]``."""
    check_seed("seed", seed)
    generator = torch.Generator().manual_seed(int(seed))
    order = torch.rand(n + m, count, generator=generator).argsort(0)
    return torch.cat([(torch.arange(n + m) < n)[:, None], order < n], 1)


def _projected(pool: Tensor, num_projections: int, seed: int) -> Tensor:
    check_positive_int("num_projections", num_projections)
    check_seed("seed", seed)
    generator = torch.Generator().manual_seed(int(seed))
    directions = torch.randn(pool.shape[1], num_projections, generator=generator, dtype=pool.dtype)
    lengths = torch.linalg.vector_norm(directions, dim=0)
    projected: Tensor = pool @ (directions / lengths).to(pool.device)
    return projected


def _wasserstein(a: Tensor, b: Tensor) -> Tensor:
    """Squared 2-Wasserstein distances between the columns of ``a [n, L]`` and ``b [m, L]``."""
    a, b = a.sort(0).values, b.sort(0).values
    if len(a) == len(b):
        return (a - b).square().mean(0)
    n, m = len(a), len(b)
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    i, j = (ends - 1) // m, (ends - 1) // n
    weights = (lengths.double() / (n * m)).to(a)
    return weights @ (a[i] - b[j]).square()


def sliced_wasserstein(
    x: Tensor, y: Tensor, num_projections: int = 100, seed: int = 0
) -> Discrepancy:
    """The squared sliced 2-Wasserstein distance between two samples.

    The mean over random directions of the squared 2-Wasserstein distance between the projections,
    which is that between their quantile functions; the standard error is over directions.

    Source: Bonneel, Rabin, Peyré and Pfister, "Sliced and Radon Wasserstein barycenters of
    measures", 2015.

    Args:
        x: draws ``[n, D]``.
        y: draws ``[m, D]``.
        num_projections: L.
        seed: of the directions.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> sliced_wasserstein(x, x + 2).value
    4.0
    """
    pool = _projected(_pooled(x, y, 1), num_projections, seed)
    values = _wasserstein(pool[: len(x)], pool[len(x) :]).double()
    error = float(values.std()) / math.sqrt(num_projections) if num_projections > 1 else math.nan
    return Discrepancy(float(values.mean()), error)


def sliced_wasserstein_test(
    x: Tensor, y: Tensor, num_projections: int = 50, num_permutations: int = 200, seed: int = 0
) -> FitTest:
    """Whether two samples are from one distribution, by the sliced Wasserstein distance.

    Exact at any sample size for exchangeable draws: the null distribution is that over
    permutations of the pooled sample.

    Args:
        x: independent draws ``[n, D]``.
        y: independent draws ``[m, D]``.
        num_projections: L.
        num_permutations: B.
        seed: of directions and permutations.
    """
    check_positive_int("num_permutations", num_permutations)
    pool = _projected(_pooled(x, y, 1), num_projections, seed)
    splits = _splits(len(x), len(y), num_permutations, seed + 1)
    values = torch.stack([_wasserstein(pool[s], pool[~s]).mean() for s in splits.T])
    return _test(values[0], values[1:])
