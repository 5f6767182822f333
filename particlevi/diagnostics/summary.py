"""A run in a few lines: what was chosen and why, what was reached, what it took."""

from __future__ import annotations

import math

import numpy as np

from particlevi.diagnostics import convergence
from particlevi.diagnostics.views import View
from particlevi.drawset import DrawSet

__all__ = ["summary"]

_MOST_PARAMETERS = 200


def summary(draws: DrawSet) -> str:
    """What was chosen and why, achieved ESS and R-hat, energy error, implied bias, seconds.

    Args:
        draws: from ``sample``.
    """
    chains, num_draws = draws.particles.shape[:2]
    lines = [
        f"{draws.attrs.get('sampler', draws.facts.kind)}: {chains} chains of {num_draws} draws, "
        f"{draws.num_steps} steps, {draws.seconds:.1f} s"
    ]
    tuning = draws.attrs.get("tuning")
    if isinstance(tuning, dict):
        lines += [f"- {reason}" for reason in tuning.get("reasons", ())]
        lines.append(_tuned(tuning))
    lines.append(_achieved(draws))
    if draws.diverged:
        lines.append(f"Lost: chains {sorted(draws.diverged)}.")
    if draws.attrs.get("ended_by"):
        lines.append(f"Ended by {draws.attrs['ended_by']}.")
    return "\n".join(lines)


def _tuned(tuning: dict[str, object]) -> str:
    words = {
        "step_size": "step size {:.3g}",
        "trajectory_length": "trajectory length {:.3g}",
        "decoherence_length": "decoherence length {:.3g}",
        "directions": "wide directions {:.0f}",
        "acceptance": "acceptance {:.2f}",
        "energy_error": "energy error per dimension {:.2g}",
        "implied_bias": "which implies second moments off by {:.1%} on a Gaussian",
        "start_seconds": "of all seconds {:.1f} for the start",
    }
    found = [
        text.format(value)
        for key, text in words.items()
        if isinstance(value := tuning.get(key), (int, float)) and math.isfinite(value)
    ]
    return f"Tuned by {tuning.get('tuner')}: {', '.join(found)}."


def _achieved(draws: DrawSet) -> str:
    if draws.interacting or draws.particles.shape[1] < 4:
        return "ESS and R-hat are of chains of at least 4 draws."
    few = draws.particles.shape[-1] <= _MOST_PARAMETERS
    of: View = "parameters" if few else "projections"
    smallest = float(np.fmin.reduce(convergence.ess(draws, of), axis=None))
    text = f"Of {'parameters' if few else 'random projections'}: smallest ESS {smallest:.0f}"
    if len(draws.particles) < 2:
        return f"{text}."
    largest = float(np.fmax.reduce(convergence.rhat(draws, of), axis=None))
    return f"{text}, largest R-hat {largest:.3f}."
