"""What the sampler says of its moves: noise, rejections, exchanges."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from particlevi.diagnostics.verdict.findings import Verdict
from particlevi.drawset import DrawSet
from particlevi.samplers._noise import MOST_CLIPPED

__all__ = ["chains_at_rest", "check_moves"]

MIN_ACCEPTANCE = 0.4
MIN_SWAPS = 0.1
_FEWEST_TESTS = 10


def check_moves(draws: DrawSet, verdict: Verdict) -> None:
    """Noise beyond compensation, thermostats it drives, chains at rest, rejections, replicas."""
    _check_noise(draws, verdict)
    _check_rest(draws, verdict)
    _check_acceptance(draws, verdict)


def chains_at_rest(draws: DrawSet) -> list[int]:
    """Chains that refused all of ten tests or more: their draws have one potential."""
    if not {"acceptance", "potential"} <= draws.stats.keys():
        return []
    potential = draws.stats["potential"]
    tested = draws.stats.get("tested", torch.ones_like(potential))
    resting = (potential == potential[:, :1]).all(1) & (tested.sum(1) >= _FEWEST_TESTS)
    return resting.nonzero().flatten().tolist()


def _check_rest(draws: DrawSet, verdict: Verdict) -> None:
    resting = chains_at_rest(draws)
    if resting and len(resting) < len(draws):
        verdict.add(
            "at rest",
            "wrong",
            f"Chains {resting} accepted nothing and stand where they began: the density is "
            "narrower there than the step size, which suits the others.",
            "Take a smaller step size, begin elsewhere (initial=), or leave step_size out and "
            "raise num_warmup: the tuner sees to such chains.",
            chains=len(resting),
        )


def _check_noise(draws: DrawSet, verdict: Verdict) -> None:
    if "clipped" in draws.stats:
        share = float(draws.stats["clipped"].mean())
        verdict.note("noise beyond compensation", share)
        if share > MOST_CLIPPED:
            verdict.add(
                "noise",
                "wrong",
                f"Minibatch noise dominates: for {share:.0%} of the parameters it is more than "
                "the sampler injects, so that it cannot be taken out.",
                "Take a smaller step size, larger batches, more friction, or pvi.control_variate.",
                share=share,
            )
    free = draws.facts.thermostat
    if "thermostat" in draws.stats and free is not None:
        rest = float(draws.stats["thermostat"].mean())
        verdict.note("thermostat", rest)
        if rest > 3 * free:
            verdict.add(
                "noise",
                "wrong",
                f"Minibatch noise dominates: the thermostat rests at {rest:.3g}, the friction "
                f"without gradient noise would be {free:.3g}.",
                "Take larger minibatches, a smaller step size, or pvi.control_variate.",
                thermostat=rest,
                free=free,
            )


def _rate(acceptance: Tensor) -> tuple[float, float]:
    """The mean acceptance, NaN counted as none, and the share of NaN."""
    values = acceptance.double()
    return float(values.nan_to_num(0.0).mean()), float(values.isnan().double().mean())


def _check_acceptance(draws: DrawSet, verdict: Verdict) -> None:
    if "acceptance" in draws.stats:
        rate, lost = _rate(draws.stats["acceptance"])
        verdict.note("acceptance", rate)
        if rate < MIN_ACCEPTANCE or math.isnan(rate):
            note = f"; {lost:.0%} of the proposals had no finite energy" if lost else ""
            verdict.add(
                "rejections",
                "uncertain",
                f"Most proposals are rejected: the acceptance is {rate:.2f}{note}.",
                "Halve the step size, or test after fewer steps.",
                acceptance=rate,
                not_finite=lost,
            )
    if "swap_acceptance" in draws.stats:
        rate, _ = _rate(draws.stats["swap_acceptance"])
        verdict.note("swap acceptance", rate)
        if rate < MIN_SWAPS:
            verdict.add(
                "no exchange",
                "uncertain",
                f"Replicas hardly exchange places: the acceptance is {rate:.2f}.",
                "Put more temperatures between the lowest and the highest.",
                acceptance=rate,
            )
