"""The tail index of gradient noise, and what it is made of.

The sum of m independent copies of a strictly alpha-stable X has the law of ``m^(1/alpha) X``, so::

    1/alpha = (E log|X_1 + ... + X_m| - E log|X|) / log m

For finite variance the right side tends to 1/2 as m grows. What is summed decides what is measured.
Sums over minibatches of one coordinate see its tails, and no scale. Sums over neighbouring
coordinates of one minibatch, as in the paper, see the spread of scales across coordinates too:
Gaussian coordinates whose log standard deviations have standard deviation s give
``1/(1/2 + s^2/log m)`` instead of 2.

Reference: Simsekli, Sagun and Gurbuzbalaban, "A tail-index analysis of stochastic gradient noise in
deep neural networks", 2019; Mohammadi, Mohammadpour and Ogata, "On estimating the tail index and
the spectral measure of multivariate alpha-stable distributions", 2015; Hill, "A simple general
approach to inference about the tail of a distribution", 1975.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from particlevi._checks import (
    check_flag,
    check_fraction,
    check_positive_int,
    check_seed,
    is_integer,
)
from particlevi._shown import Shown
from particlevi.noise.samples import Array, check_samples, varying

__all__ = ["TailIndex", "hill", "tail_index"]

_LEAST = 50
_RESAMPLES = 999
_MOST_GROUPS = 500
_GAUSSIAN_MEDIAN = 0.6744897501960817


@dataclass(frozen=True, eq=False, repr=False)
class TailIndex(Shown):
    """What ``tail_index`` gives. 2 is Gaussian or of finite variance; nothing is clamped to it.

    Attributes:
        alpha: per coordinate over minibatches, averaged over coordinates: tails, and no scales.
        interval: of ``alpha``, by a bootstrap over blocks of minibatches.
        null: ``alpha`` of Gaussian noise with the same scales and correlations, one per sample.
        p_value: probability of such an ``alpha`` or a smaller one under Gaussian noise.
        pooled: over neighbouring coordinates, as published: tails and scales together.
        pooled_null: ``pooled`` of the Gaussian noise: what scales alone make of it.
        standardised: the same with every coordinate divided by its median absolute value.
        standardised_null: of the Gaussian noise.
        per_coordinate: of each coordinate ``[K]``, noisy.
        hill: Hill's estimate from the largest 5 % of the standardised values, a cross-check; of a
            Gaussian it is large and not 2.
        hill_null: of the Gaussian noise.
        block_size: minibatches in a sum.
        num_dropped: coordinates left out, which are zero or constant in half of the minibatches.
    """

    alpha: float
    interval: tuple[float, float]
    null: Array
    p_value: float
    pooled: float
    pooled_null: Array
    standardised: float
    standardised_null: Array
    per_coordinate: Array
    hill: float
    hill_null: Array
    block_size: int
    num_dropped: int

    def __str__(self) -> str:
        low, high = self.interval
        rows = [f"alpha {self.alpha:.3f} ({low:.3f} to {high:.3f}) per coordinate"]
        for name, value, null in (
            ("per coordinate", self.alpha, self.null),
            ("standardised", self.standardised, self.standardised_null),
            ("pooled", self.pooled, self.pooled_null),
            ("Hill", self.hill, self.hill_null),
        ):
            band = ""
            if len(null):
                ends = np.quantile(null, [0.025, 0.975])
                band = f", Gaussian of the same scales {ends[0]:.3f} to {ends[1]:.3f}"
            rows.append(f"{name:>14}: {value:.3f}{band}")
        return "\n".join(rows)


def tail_index(
    samples: Tensor | Array,
    *,
    block_size: int | None = None,
    center: bool = True,
    confidence: float = 0.95,
    num_null: int = 99,
    seed: int = 0,
) -> TailIndex:
    """The tail index of noise vectors, beside that of Gaussian noise with the same scales.

    An ``alpha`` below 2 does not say that the variance is infinite: Student t with 3 degrees of
    freedom gives 1.66 in sums of 10 and 1.81 in sums of 1000.

    Args:
        samples: independent noise vectors ``[M, K]``, at least 50; ``[M]`` is one coordinate.
            Exact zeros within a coordinate are left out of the mean of logarithms.
        block_size: m, minibatches in a sum; ``sqrt(M)`` if absent. Samples beyond the last whole
            block are left out.
        center: subtract the median of every coordinate. An offset of a tenth of the standard
            deviation would give 1.34 in sums of 1000.
        confidence: of the interval.
        num_null: Gaussian samples; with 0 there is no null law, and ``p_value`` is NaN.
        seed: of the bootstrap and the Gaussian samples.

    Raises:
        ValueError: too few samples, values that are not finite, blocks that leave fewer than two
            sums, or noise that never varies.

    Examples:
        >>> import torch
        >>> cauchy = torch.distributions.Cauchy(0.0, 1.0)
        >>> with torch.random.fork_rng():
        ...     _ = torch.manual_seed(0)
        ...     found = tail_index(cauchy.sample((2000, 50)), num_null=19)
        >>> round(found.alpha, 1)
        1.0
    """
    check_flag("center", center)
    check_fraction("confidence", confidence)
    check_seed("seed", seed)
    if not is_integer(num_null) or num_null:
        check_positive_int("num_null", num_null, minimum=19)
    values = check_samples(samples, _LEAST)
    total = values.shape[1]
    values, _ = varying(values)
    middle = np.median(values, 0)
    # More than half of the values of such a coordinate are the same number: its law has an atom.
    values = values[:, np.median(np.abs(values - middle), 0) > 0]
    if not values.shape[1]:
        raise ValueError(
            "Every coordinate has the same value in half of the minibatches or more, so there are "
            "no tails to speak of: the gradient is sparse, take other parameters."
        )
    if center:
        values = values - np.median(values, 0)
    size = math.isqrt(len(values)) if block_size is None else block_size
    check_positive_int("block_size", size, minimum=2)
    if len(values) // size < 2:
        raise ValueError(
            f"block_size={size} leaves fewer than two sums of the M={len(values)} samples: take "
            f"at most {len(values) // 2}."
        )
    rng = np.random.default_rng(int(seed))
    blocks, each = _inverse(values, size)
    wide = math.isqrt(values.size) if block_size is None else size
    found = _estimates(values, size, wide)
    num_null = int(num_null)
    null = np.array([_estimates(v, size, wide) for v in _gaussian(values, num_null, rng)])
    null = null.reshape(num_null, 4)
    below = (null[:, 0] <= found[0]).sum() + 1
    return TailIndex(
        alpha=found[0],
        interval=_interval(blocks, confidence, rng),
        null=null[:, 0],
        p_value=float(below) / (num_null + 1) if num_null else math.nan,
        pooled=found[1],
        pooled_null=null[:, 1],
        standardised=found[2],
        standardised_null=null[:, 2],
        per_coordinate=1 / each,
        hill=found[3],
        hill_null=null[:, 3],
        block_size=int(size),
        num_dropped=total - values.shape[1],
    )


def _estimates(values: Array, size: int, wide: int) -> tuple[float, float, float, float]:
    """``alpha`` per coordinate, pooled and standardised, and Hill's."""
    standard = values / np.median(np.abs(values), 0)
    flat, even = (v.reshape(-1, 1) for v in (values, standard))
    return (
        1 / float(_inverse(values, size)[0].mean()),
        1 / float(_inverse(flat, wide)[0].mean()),
        1 / float(_inverse(even, wide)[0].mean()),
        hill(standard),
    )


def _inverse(values: Array, size: int) -> tuple[Array, Array]:
    """``1/alpha`` of every block ``[M/m]``, averaged over coordinates, and per coordinate ``[K]``.

    Blocks are independent and have one law, so that the spread of the first is an error bar.
    """
    count = len(values) // size
    kept = values[: count * size].reshape(count, size, -1)
    single = np.nanmean(_log(kept), 1)
    found = (_log(kept.sum(1)) - single) / math.log(size)
    return np.nanmean(found, 1), np.nanmean(found, 0)


def _log(values: Array) -> Array:
    """``log|x|``, NaN at exact zeros."""
    size = np.abs(values)
    found: Array = np.log(size, out=np.full_like(size, np.nan), where=size > 0)
    return found


def _interval(blocks: Array, confidence: float, rng: np.random.Generator) -> tuple[float, float]:
    """A bootstrap-t interval of the mean of blocks, turned into one of ``alpha``."""
    groups = min(len(blocks), _MOST_GROUPS)
    blocks = blocks[: len(blocks) // groups * groups].reshape(groups, -1).mean(1)
    drawn = blocks[rng.integers(groups, size=(_RESAMPLES, groups))]
    spread = drawn.std(1, ddof=1)
    z = (drawn.mean(1) - blocks.mean()) / np.where(spread > 0, spread, np.inf)
    low, high = np.quantile(z, [(1 - confidence) / 2, (1 + confidence) / 2])
    scale = blocks.std(ddof=1)
    ends = blocks.mean() - high * scale, blocks.mean() - low * scale
    return 1 / ends[1], 1 / ends[0] if ends[0] > 0 else math.inf


def _gaussian(values: Array, count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Gaussian samples with the correlations of the values, and their median absolute values."""
    if not count:
        return
    num_samples, size = values.shape
    standard = (values - values.mean(0)) / values.std(0)
    scale = np.median(np.abs(values), 0) / _GAUSSIAN_MEDIAN
    if size > num_samples:
        root = standard * (scale / math.sqrt(num_samples))
    else:
        eigenvalues, vectors = np.linalg.eigh(standard.T @ standard / num_samples)
        root = (vectors * np.sqrt(eigenvalues.clip(0))).T * scale
    for _ in range(count):
        yield rng.standard_normal((num_samples, len(root))) @ root


def hill(samples: Tensor | Array, fraction: float = 0.05) -> float:
    """Hill's estimate of the tail index, from the largest absolute values.

    ``1/alpha`` is the mean of ``log(x_i / x_k)`` over the values above the k-th largest. It speaks
    of tails that are powers; for others it depends on the fraction.

    Args:
        samples: any shape, finite; values of different scales fake a tail.
        fraction: of the values, in (0, 1).

    Raises:
        TypeError: neither a tensor nor an array.
        ValueError: fewer than two values in the tail, values that are not finite, or the tail
            begins at zero or is made of equal values.

    Examples:
        >>> x = np.random.default_rng(0).pareto(1.5, 100_000) + 1
        >>> abs(hill(x, 0.1) - 1.5) < 0.05
        True
    """
    check_fraction("fraction", fraction)
    if isinstance(samples, (Tensor, np.ndarray)):
        samples = samples.reshape(-1)
    size = np.abs(check_samples(samples, 2)[:, 0])
    count = int(fraction * size.size)
    if count < 2:
        raise ValueError(
            f"fraction={fraction} of {size.size} values are {count}: the tail needs at least 2."
        )
    top = np.partition(size, size.size - count - 1)[size.size - count - 1 :]
    threshold = top[0]
    if threshold <= 0:
        raise ValueError("The tail begins at zero: take a smaller fraction or drop zeros.")
    excess = float(np.log(top[1:] / threshold).mean())
    if excess <= 0:
        raise ValueError("The values in the tail are equal, so that it has no index.")
    return 1 / excess
