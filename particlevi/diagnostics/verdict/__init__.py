"""A verdict on a run: what is wrong, by how much, and what to change.

Over right runs, a finding of something wrong comes in fewer than 1 of 10: every check has a level
or a margin that is written where it is made.
"""

from __future__ import annotations

from typing import Any

from particlevi.data import DataLike
from particlevi.diagnostics.verdict.findings import Finding, FindingKind, Severity, Verdict
from particlevi.diagnostics.verdict.fit import check_fit
from particlevi.diagnostics.verdict.heat import check_heat
from particlevi.diagnostics.verdict.mixing import check_mixing
from particlevi.diagnostics.verdict.moves import check_moves
from particlevi.drawset import DrawSet, check_draws

__all__ = ["Finding", "FindingKind", "Severity", "Verdict", "diagnose"]


def diagnose(
    draws: DrawSet, data: DataLike = None, *, inputs: Any = None, thin: int = 1
) -> Verdict:
    """Judge a run by divergences, convergence, ESS, temperatures, acceptance and fit.

    Args:
        draws: from ``sample``.
        data: as given to ``sample``: adds the configurational temperature and the fit of the
            training data, on all of them. (A density without data needs none.)
        inputs: probe inputs: convergence and ESS are those of the model's outputs there, the view
            that does not depend on which hidden unit is which. Otherwise they are those of the
            parameters, or of 50 random projections if there are more than 200.
        thin: for the configurational temperature and the fit, use every ``thin``-th draw.
    """
    check_draws(draws)
    verdict = Verdict()
    _check_end(draws, verdict)
    if draws.interacting:
        verdict.add(
            "no chains",
            "untold",
            "These particles interact, so R-hat, ESS and temperatures say nothing about them.",
            "Compare predictions with those of a chain method, or with more particles; "
            "pvi.check_collapse tells whether they are too close together.",
        )
    elif draws.facts.kind == "chains":
        check_mixing(draws, inputs, verdict)
        check_heat(draws, data, thin, verdict)
        check_moves(draws, verdict)
    check_fit(draws, data, thin, verdict)
    return verdict


def _check_end(draws: DrawSet, verdict: Verdict) -> None:
    lost, kept = len(draws.diverged), len(draws)
    if lost:
        verdict.note("diverged", lost)
        verdict.add(
            "diverged",
            "wrong",
            f"{lost} of {lost + kept} chains diverged, the first at step "
            f"{min(draws.diverged.values())}; the others are not a fair sample of starts.",
            "Try a tenth of the step size, or starts nearer to the mode; "
            "pvi.suggest_step_size tells the stable range.",
            diverged=lost,
        )
    if "diverging" in draws.stats and bool((draws.stats["diverging"] > 0).any()):
        steep = draws.stats["diverging"] > 0
        share = float(steep.double().mean())
        verdict.note("divergent transitions", share)
        verdict.add(
            "diverging",
            "wrong",
            f"Divergent transitions in {int(steep.sum())} of {steep.numel()} draws: the energy ran "
            "away where the posterior curves strongly, and such places are sampled too rarely.",
            "Take a smaller step size, or coordinates in which the scales do not depend on each "
            "other (a non-centred hierarchy).",
            share=share,
        )
    if draws.interrupted:
        verdict.add(
            "interrupted",
            "uncertain",
            f"The run was interrupted after {draws.num_steps} steps.",
            "Resume it from its checkpoint, if it has one.",
        )
