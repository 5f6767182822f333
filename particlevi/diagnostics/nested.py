"""Nested R-hat: convergence of many short chains."""

from __future__ import annotations

from typing import Any

import numpy as np

from particlevi._checks import as_real_tensor, check_finite, check_positive_int

__all__ = ["nested_rhat"]


def nested_rhat(values: Any, num_superchains: int) -> np.ndarray[Any, Any]:
    """Nested R-hat: ``sqrt(1 + B / W)`` over groups of chains that began at one point.

    ``B`` is the variance of the means of the K superchains, ``W`` the mean over superchains of the
    variance of their M chains' means plus the mean variance within chains. Ordinary R-hat cannot
    fall below ``sqrt(1 + 1/T)`` or so with T draws per chain even when all is well; this one tends
    to ``sqrt(1 + 1/M)`` for one independent draw per chain, so that chains may be as short as one
    draw if there are many of them. It tells something only if chains of a superchain began at the
    same point and superchains at different ones.

    Source: Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and Gelman, "Nested R-hat: Assessing
    the convergence of Markov chain Monte Carlo when running many short chains", 2024.

    Args:
        values: ``[chain, draw, *shape]``; chains of one superchain follow each other.
        num_superchains: K, at least 2; it divides the number of chains.

    Returns:
        ``[*shape]``.

    Raises:
        ValueError: a number of superchains that does not fit, or one draw of one chain each.

    >>> values = np.random.default_rng(0).normal(size=(400, 1, 2))
    >>> bool((nested_rhat(values, 4) < 1.02).all())
    True
    """
    check_positive_int("num_superchains", num_superchains, minimum=2)
    found = as_real_tensor("values", values, "[chain, draw, *shape]")
    if found.ndim < 2:
        raise ValueError(f"values must be [chain, draw, *shape], got {list(found.shape)}.")
    check_finite("values", found, "Leave out chains that diverged.")
    values = found.double().cpu().numpy()
    chains, draws = values.shape[:2]
    size = chains // num_superchains
    if chains % num_superchains or size * draws < 2:
        raise ValueError(
            f"num_superchains must divide the {chains} chains and leave more than one draw in "
            f"each, got {num_superchains}."
        )
    nested = values.reshape(num_superchains, size, draws, *values.shape[2:])
    chain_means = nested.mean(2)
    means = chain_means.mean(1)
    between = means.var(0, ddof=1)
    within = np.zeros_like(means)
    if size > 1:
        within += chain_means.var(1, ddof=1)
    if draws > 1:
        within += nested.var(2, ddof=1).mean(1)
    ratio: np.ndarray[Any, Any] = np.sqrt(1 + between / within.mean(0))
    return ratio
