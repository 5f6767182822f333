"""Convergence and the number of independent draws."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from particlevi.diagnostics import arviz
from particlevi.diagnostics._agreement import agreement
from particlevi.diagnostics.convergence import ESS_ERROR
from particlevi.diagnostics.verdict.findings import Verdict
from particlevi.diagnostics.views import View, series
from particlevi.drawset import DrawSet

__all__ = ["check_mixing", "least_ess"]

MAX_RHAT = 1.01
GROSS_RHAT = 1.1
"""More than chance gives right chains that are worth 400 draws, whatever their number."""
MIN_ESS = 400.0
_MOST_ERROR = 0.2
LEVEL = 0.01
MAX_COORDINATES = 200
_PROJECTIONS = 50
_MIN_LENGTH = 20


def least_ess(num: int, chains: int = 1, level: float = 0.03) -> float:
    """What the smallest of ``num`` estimates of an ESS of 400 exceeds with chance ``1 - level``.

    The error of an estimate grows where half a chain holds few independent draws, since the lag
    covariances are taken about the mean of the half. Measured over exact AR(1) sets worth 420
    draws, 2100 estimates each, one in a thousand of them is below .58, .57, .42, .42 and .50 of
    the truth for 2, 4, 10, 20 and 40 chains; this is below .48, .47, .40, .38 and .38.

    Args:
        num: of coordinates.
        chains: whose halves hold ``200 / chains`` independent draws each.
        level: chance of an estimate below.
    """
    from scipy.special import ndtri

    error = min(_MOST_ERROR, ESS_ERROR * math.sqrt(1 + 10 * 2 * chains / MIN_ESS))
    return MIN_ESS * max(0.25, 1 + error * float(ndtri(level / max(num, 1))))


def check_mixing(draws: DrawSet, inputs: Any, verdict: Verdict) -> None:
    """Whether chains agree, by more than R-hat 1.01, and whether 400 independent draws are there.

    Not converged: R-hat is above 1.01 and the chains differ by more than their memory explains
    (``particlevi.diagnostics.agreement``, at a level of 1 %), or R-hat is above 1.1. Too few: the
    smallest ESS is below 400 by more than the error of such an estimate.
    """
    chains, length, size = draws.particles.shape
    if length < arviz.MIN_DRAWS:
        verdict.add(
            "few draws",
            "untold",
            f"{length} draws per chain tell nothing about convergence.",
            f"Raise num_draws to {arviz.MIN_DRAWS} at the very least.",
        )
        return
    view: View = "parameters"
    if inputs is not None or draws.output_shape is not None:
        view = "predictions"
    elif size > MAX_COORDINATES:
        view = "projections"
    values = series(draws, view, inputs, _PROJECTIONS, "Convergence")
    sizes = arviz.ess(values).ravel()
    moving = sizes[~np.isnan(sizes)]
    ess, total = float(moving.min(initial=math.inf)), chains * length
    verdict.note("smallest ESS", ess, ESS_ERROR * ess)
    verdict.note("smallest ESS per second", ess / draws.seconds, ESS_ERROR * ess / draws.seconds)
    if chains > 1:
        rhat = float(np.nanmax(np.append(arviz.rhat(values), 1.0)))
        chance = agreement(values)
        verdict.note("largest R-hat", rhat)
        verdict.note("p of one law", chance)
        gross = rhat > GROSS_RHAT and length >= _MIN_LENGTH
        if gross or (rhat > MAX_RHAT and chance < LEVEL):
            why = (
                "their memory may be longer than the run"
                if chance >= LEVEL
                else f"more than their memory explains (p = {chance:.1g})"
            )
            verdict.add(
                "not converged",
                "wrong",
                f"Not converged: R-hat of the {view} reaches {rhat:.3f}: chains or their halves "
                f"differ, {why}.",
                "Raise num_warmup and num_draws, or start from a trained point. Of a net, judge "
                "predictions (inputs=...): weights need not agree between chains.",
                rhat=rhat,
                p=chance,
            )
    if ess < least_ess(len(moving), chains):
        longer = math.ceil(MIN_ESS / max(ess, 1.0))
        verdict.add(
            "low ESS",
            "uncertain",
            f"Too few independent draws: the smallest ESS of the {view} is {ess:.0f} of {total} "
            f"draws; {MIN_ESS:.0f} are needed for stable intervals.",
            f"Run about {longer} times as long (a larger thin costs no memory), or raise the "
            "step size if it is far below the stable range.",
            ess=ess,
        )
    if chains == 1:
        verdict.add(
            "one chain",
            "untold",
            "One chain cannot show that it has seen all of the posterior.",
            "Run 4 chains or more from different starts.",
        )
