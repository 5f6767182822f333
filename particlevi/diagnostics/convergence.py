"""Effective sample sizes, R-hat and Monte-Carlo errors of what a user looks at."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from particlevi.diagnostics import arviz
from particlevi.diagnostics.nested import nested_rhat
from particlevi.diagnostics.views import View, cost, series
from particlevi.drawset import DrawSet

__all__ = ["ESS_ERROR", "autocorrelation_time", "ess", "mcse", "rhat"]

Array = npt.NDArray[np.float64]

ESS_ERROR = 0.16
"""Relative standard error of an ESS of some hundreds, measured over AR(1) chains of many kinds."""


def ess(
    draws: DrawSet,
    of: View = "parameters",
    *,
    inputs: Any = None,
    method: arviz.EssMethod = "bulk",
    prob: float | None = None,
    num: int = 100,
    per: Literal["second", "gradient"] | None = None,
) -> Array:
    """Effective sample sizes; see ``Draws.ess``."""
    sizes = arviz.ess(series(draws, of, inputs, num, "ESS"), method=method, prob=prob)
    return sizes if per is None else sizes / cost(draws, per)


def mcse(
    draws: DrawSet,
    of: View = "parameters",
    *,
    inputs: Any = None,
    method: arviz.McseMethod = "mean",
    prob: float | None = None,
    num: int = 100,
) -> Array:
    """Monte-Carlo standard errors; see ``Draws.mcse``."""
    values = series(draws, of, inputs, num, "A Monte-Carlo error")
    return arviz.mcse(values, method=method, prob=prob)


def rhat(
    draws: DrawSet,
    of: View = "parameters",
    *,
    inputs: Any = None,
    num: int = 100,
    superchains: int | None = None,
) -> Array:
    """Rank-normalised split R-hat, or the nested one; see ``Draws.rhat``."""
    values = series(draws, of, inputs, num, "R-hat")
    if superchains is None:
        return arviz.rhat(values)
    return nested_rhat(values.double().cpu(), superchains)


def autocorrelation_time(
    draws: DrawSet, of: View = "parameters", *, inputs: Any = None, num: int = 100
) -> Array:
    """Integrated autocorrelation times in draws; see ``Draws.autocorrelation_time``."""
    values = series(draws, of, inputs, num, "An autocorrelation time")
    return arviz.integrated_autocorrelation_time(values)
