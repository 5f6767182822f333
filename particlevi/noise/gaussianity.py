"""Whether the noise of SGD's gradient is Gaussian, tested on three families of directions.

Shapiro and Wilk's W and Anderson and Darling's A^2 are averaged over directions. Directions are
correlated, so that such an average has no table: its law under Gaussian noise is that of samples
drawn from the Gaussian with the same covariance (a parametric bootstrap).

Reference: Panigrahi, Somani, Goyal and Netrapalli, "Non-Gaussianity of stochastic gradient noise",
2019; Royston, "Remark AS R94: a remark on algorithm AS 181: the W-test for normality", 1995.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed
from particlevi._shown import Shown
from particlevi.noise.samples import Array, check_samples, varying

__all__ = [
    "MOST_SAMPLES",
    "FamilyTest",
    "Gaussianity",
    "anderson_darling",
    "compare_with_gaussian",
    "gaussianity",
    "normal_scores",
    "shapiro_wilk",
]

MOST_SAMPLES = 5000
_LEAST = 20


@dataclass(frozen=True, eq=False, repr=False)
class FamilyTest(Shown):
    """The two tests on one family of directions.

    Attributes:
        shapiro: W, the average over directions; 1 is Gaussian, smaller is not.
        shapiro_null: its mean under Gaussian noise of the same covariance.
        shapiro_p: probability of such a W or a smaller one under Gaussian noise.
        anderson: A^2, the average over directions; larger is less Gaussian.
        anderson_null: its mean under Gaussian noise.
        anderson_p: probability of such an A^2 or a larger one.
        num_directions: in the family.
        num_samples: M, noise vectors that were used.
        ordered: the samples of a direction, standardised and sorted, averaged over directions,
            ``[M]``: what a QQ plot shows.
        ordered_null: the central 95 % of the same under Gaussian noise, ``[2, M]``.
    """

    shapiro: float
    shapiro_null: float
    shapiro_p: float
    anderson: float
    anderson_null: float
    anderson_p: float
    num_directions: int
    num_samples: int
    ordered: Array
    ordered_null: Array


@dataclass(frozen=True, eq=False, repr=False)
class Gaussianity(Shown):
    """What ``gaussianity`` gives.

    Attributes:
        p_value: of the most deviant of all tests, corrected for there being several.
        families: by name, ``"random"`` projections, ``"coordinates"``, ``"eigenvectors"``.
        num_bootstrap: Gaussian samples behind the p-values, which are multiples of
            ``1/(num_bootstrap + 1)``.
        num_constant: coordinates that never vary; they are left out.
    """

    p_value: float
    families: Mapping[str, FamilyTest]
    num_bootstrap: int
    num_constant: int

    def __str__(self) -> str:
        rows = [f"p = {self.p_value:.3g} over all tests (Gaussian noise of the same covariance)"]
        for name, test in self.families.items():
            rows.append(
                f"{name:>12}: W {test.shapiro:.4f} (Gaussian {test.shapiro_null:.4f}, "
                f"p {test.shapiro_p:.3g}), A2 {test.anderson:.3f} "
                f"(Gaussian {test.anderson_null:.3f}, p {test.anderson_p:.3g})"
            )
        return "\n".join(rows)


def gaussianity(
    samples: Tensor | Array,
    *,
    num_directions: int = 30,
    num_bootstrap: int = 199,
    seed: int = 0,
) -> Gaussianity:
    """Whether noise vectors are Gaussian.

    A random projection of many coordinates is nearly Gaussian whatever they are, and coordinates
    miss a heavy tail in another direction. So three families are tested: random projections,
    coordinates, and the top eigenvectors of the covariance. Eigenvectors are found on one half of
    the samples and tested on the other, since a direction chosen for its outliers is no fair test.

    Args:
        samples: independent noise vectors ``[M, K]``, 20 to 5000 of them; ``[M]`` is one
            coordinate. Their mean does not matter. Minibatches of one epoch are not independent.
        num_directions: in each family, at most; there are at most M/2 - 1 eigenvectors.
        num_bootstrap: Gaussian samples of the same covariance; each costs about what the tests do.
        seed: of directions and of the Gaussian samples.

    Raises:
        ValueError: too few samples or more than 5000 (of which the weights of W are not known),
            values that are not finite, or noise that never varies.

    Examples:
        >>> heavy = np.random.default_rng(0).exponential(size=(200, 3))
        >>> gaussianity(heavy, num_bootstrap=99).p_value
        0.01
    """
    check_positive_int("num_directions", num_directions)
    check_seed("seed", seed)
    values, num_constant = varying(check_samples(samples, _LEAST, MOST_SAMPLES))
    rng = np.random.default_rng(int(seed))
    num_samples, size = values.shape
    values = values / values.std(0)
    half = num_samples // 2
    random = rng.standard_normal((size, num_directions))
    chosen = rng.permutation(size)[:num_directions]
    order = rng.permutation(num_samples)
    first, second = values[order[:half]], values[order[half:]]
    # Right singular vectors of the first half are the eigenvectors of its covariance.
    top = np.linalg.svd(first - first.mean(0), full_matrices=False)[2]
    top = top[: min(num_directions, half - 1, size)]
    families = {
        "random": values @ random,
        "coordinates": values[:, chosen],
        "eigenvectors": second @ top.T,
    }
    every = np.concatenate([values @ random, values[:, chosen], values @ top.T], 1)
    return compare_with_gaussian(families, every, num_bootstrap, rng, num_constant)


def compare_with_gaussian(
    families: Mapping[str, Array],
    every: Array,
    num_bootstrap: int,
    rng: np.random.Generator,
    num_constant: int = 0,
) -> Gaussianity:
    """The tests on projections that are made already.

    Args:
        families: projections ``[M, n]`` by name; one may have fewer samples than others.
        every: all projections ``[M, n_1 + n_2 + ...]``, in the same order, whose covariance the
            Gaussian samples get.
        num_bootstrap: Gaussian samples.
        rng: of them.
        num_constant: for the result.
    """
    check_positive_int("num_bootstrap", num_bootstrap, minimum=19)
    scaled = every - every.mean(0)
    spread = scaled.std(0)
    scaled = scaled / np.where(spread > 0, spread, 1)
    eigenvalues, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
    root = vectors * np.sqrt(eigenvalues.clip(0))
    kept = eigenvalues > 1e-12 * eigenvalues[-1]
    root = root[:, kept]
    observed, ordered = _statistics(list(families.values()))
    widths = [part.shape[1] for part in families.values()]
    lengths = [len(part) for part in families.values()]
    edges = np.cumsum([0, *widths])
    null, ordered_null = [], []
    for _ in range(num_bootstrap):
        drawn = rng.standard_normal((max(lengths), root.shape[1])) @ root.T
        parts = [
            drawn[:length, start:stop]
            for length, start, stop in zip(lengths, edges[:-1], edges[1:], strict=True)
        ]
        statistics, curves = _statistics(parts)
        null.append(statistics)
        ordered_null.append(curves)
    both = np.concatenate([observed[None], np.array(null)])
    p_values = (both[1:] >= both[0]).sum(0) + 1.0
    p_values /= num_bootstrap + 1
    # The largest of several deviations, in units of its own spread, has a law of its own.
    largest = ((both - both.mean(0)) / (both.std(0) + 1e-300)).max(1)
    p_value = float((largest[1:] >= largest[0]).sum() + 1) / (num_bootstrap + 1)
    means = both[1:].mean(0)
    found = {}
    for i, name in enumerate(families):
        w, a = 2 * i, 2 * i + 1
        found[name] = FamilyTest(
            shapiro=float(-observed[w]),
            shapiro_null=float(-means[w]),
            shapiro_p=float(p_values[w]),
            anderson=float(observed[a]),
            anderson_null=float(means[a]),
            anderson_p=float(p_values[a]),
            num_directions=widths[i],
            num_samples=lengths[i],
            ordered=ordered[i],
            ordered_null=np.quantile([curves[i] for curves in ordered_null], [0.025, 0.975], 0),
        )
    return Gaussianity(p_value, found, num_bootstrap, num_constant)


def _statistics(parts: list[Array]) -> tuple[Array, list[Array]]:
    """``-W`` and ``A^2`` of each family, larger if less Gaussian; its mean sorted samples."""
    rows: list[Any] = []
    curves: list[Array] = []
    for part in parts:
        ordered = np.sort(part, axis=0)
        rows += [-shapiro_wilk(ordered).mean(), anderson_darling(ordered).mean()]
        curves.append(((ordered - ordered.mean(0)) / ordered.std(0, ddof=1)).mean(1))
    return np.array(rows), curves


def shapiro_wilk(ordered: Array) -> Array:
    """W of columns ``[M, n]`` that are sorted, ``[n]``, with the weights of Royston 1995."""
    weights = _weights(len(ordered))
    centered = ordered - ordered.mean(0)
    found: Array = (weights @ centered) ** 2 / (centered**2).sum(0)
    return found


def normal_scores(size: int) -> Array:
    """About the means of the order statistics of ``size`` standard normals (Blom)."""
    from scipy.special import ndtri

    found: Array = ndtri((np.arange(1, size + 1) - 0.375) / (size + 0.25))
    return found


def _weights(size: int) -> Array:
    middle = normal_scores(size)
    total = middle @ middle
    u = size**-0.5
    last = middle[-1] / total**0.5 + np.polyval(
        [-2.706056, 4.434685, -2.071190, -0.147981, 0.221157, 0], u
    )
    next_last = middle[-2] / total**0.5 + np.polyval(
        [-3.582633, 5.682633, -1.752461, -0.293762, 0.042981, 0], u
    )
    rest = total - 2 * middle[-1] ** 2 - 2 * middle[-2] ** 2
    weights = middle / np.sqrt(rest / (1 - 2 * last**2 - 2 * next_last**2))
    weights[[0, 1, -2, -1]] = [-last, -next_last, next_last, last]
    found: Array = weights
    return found


def anderson_darling(ordered: Array) -> Array:
    """A^2 of columns ``[M, n]`` that are sorted, with mean and variance estimated, ``[n]``."""
    from scipy.special import log_ndtr

    size = len(ordered)
    z = (ordered - ordered.mean(0)) / ordered.std(0, ddof=1)
    factor = (2 * np.arange(1, size + 1) - 1)[:, None]
    found: Array = -size - (factor * (log_ndtr(z) + log_ndtr(-z[::-1]))).mean(0)
    return found
