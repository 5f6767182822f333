"""Whether chains, and the halves of each, have one law: a test that knows their memory.

R-hat compares the spread of chains with that within them, and exceeds any fixed limit where there
are few independent draws, also of chains that are right. Here the same spread is held against what
the chains' memory explains. The values are replaced by the normal quantiles of their ranks (as in
R-hat), each half of a chain is cut into b batches, and

    F = b Var(means of the 2P halves) / mean over halves of Var(means of their batches)

follows the F distribution with ``2P - 1`` and ``2P (b - 1)`` degrees of freedom, if batches are
longer than the memory. One chain of many that lies apart is lost in that mean; it is seen by the
largest distance of a chain's mean from the mean of all, over its error from the same batches,
which is at most ``P`` times as likely as Student's t. The values' distances from their median are
tested in both ways too, so that chains of different width are seen.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from particlevi._checks import as_real_tensor, check_finite

__all__ = ["agreement"]

_BATCHES = 4
_BLOCK = 2**21


def agreement(values: Tensor | npt.NDArray[np.float64]) -> float:
    """The p-value of one law for all halves of chains, over all coordinates (Bonferroni).

    Args:
        values: ``[P, T, ...]``, of at least 2 chains of at least 4 draws.

    Returns:
        The p-value; 1 if nothing moves.

    Raises:
        ValueError: fewer chains or draws, or values that are no finite real numbers.

    Examples:
        >>> generator = np.random.default_rng(0)
        >>> chains = generator.normal(size=(4, 100, 3))
        >>> agreement(chains) > 0.01
        True
        >>> agreement(chains + np.arange(4).reshape(4, 1, 1)) < 1e-6
        True
    """
    found = as_real_tensor("values", values, "[P, T, ...]")
    if found.ndim < 2 or found.shape[0] < 2 or found.shape[1] < 4:
        raise ValueError(
            "values must be [P, T, ...] of at least 2 chains of at least 4 draws, got "
            f"{list(found.shape)}."
        )
    check_finite("values", found, "Leave out chains that diverged.")
    flat = found.double().cpu().numpy().reshape(*found.shape[:2], -1)
    size = flat.shape[-1]
    step = max(1, _BLOCK // (flat.shape[0] * flat.shape[1]))
    parts = [flat[..., start : start + step] for start in range(0, size, step)]
    smallest = min(float(_p_values(part).min()) for part in parts)
    chance: float = min(1.0, 4 * size * smallest)
    return chance


def _p_values(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of location and spread, by all halves and by the chain furthest off, ``[2, 2, K]``."""
    center = np.median(values, axis=(0, 1))
    return np.stack([_of_means(_normal_scores(v)) for v in (values, np.abs(values - center))])


def _normal_scores(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import ndtri
    from scipy.stats import rankdata

    count = values.shape[0] * values.shape[1]
    ranks = rankdata(values.reshape(count, -1), axis=0).reshape(values.shape)
    scores: npt.NDArray[np.float64] = ndtri((ranks - 0.375) / (count + 0.25))
    return scores


def _of_means(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    from scipy.special import fdtrc, stdtr

    chains, draws, size = values.shape
    batches = _BATCHES if draws >= 2 * _BATCHES else 2
    length = draws // (2 * batches)
    last = values[:, draws - 2 * batches * length :]
    means = last.reshape(2 * chains, batches, length, size).mean(2)
    between = batches * means.mean(1).var(0, ddof=1)
    within = means.var(1, ddof=1).mean(0)
    freedom = 2 * chains * (batches - 1)
    own = last.mean(1)
    off = np.abs(own - own.mean(0)).max(0)
    error = np.sqrt(within / (2 * batches) * (1 - 1 / chains))
    furthest = 2 * chains * stdtr(freedom, -_ratio(off, error))
    return np.stack([fdtrc(2 * chains - 1, freedom, _ratio(between, within)), furthest])


def _ratio(
    above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Of coordinates that stand still: infinite where they differ, else 0."""
    still = np.where(above > 0, np.inf, 0.0)
    return np.divide(above, below, out=still, where=below > 0)
