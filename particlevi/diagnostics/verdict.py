"""A verdict on a run: what is wrong, by how much, and what to change."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from particlevi.diagnostics import arviz, temperatures
from particlevi.samplers._noise import MOST_CLIPPED

__all__ = ["Finding", "Verdict", "diagnose"]

MAX_RHAT = 1.01
MIN_ESS = 400.0
MIN_ACCEPTANCE = 0.4
MIN_SWAPS = 0.1
MAX_COORDINATES = 200
# A temperature is off if it is so by more than both of these.
TEMPERATURE_Z = 4.0
TEMPERATURE_SHARE = 0.03


class Finding(NamedTuple):
    """Something to act on: what is wrong and by how much, and what to change."""

    problem: str
    advice: str


class Verdict(NamedTuple):
    """What the diagnostics say.

    Attributes:
        findings: what is wrong, the worst first; empty if nothing was found.
        facts: the numbers behind it.
    """

    findings: tuple[Finding, ...]
    facts: dict[str, float]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        lines = [f"{k + 1}. {f.problem}\n   -> {f.advice}" for k, f in enumerate(self.findings)]
        if not lines:
            lines = ["Nothing wrong was found."]
        lines.append("   ".join(f"{name} {value:.4g}" for name, value in self.facts.items()))
        return "\n".join(lines)


def diagnose(draws: Any, data: Any = None, inputs: Any = None, thin: int = 1) -> Verdict:
    """Judge a run by divergences, R-hat, ESS, temperatures and acceptance.

    Args:
        draws: from ``sample``.
        data: as given to ``sample``: adds the configurational temperature, on all the data. (A
            density without data needs none.)
        inputs: probe inputs: R-hat and ESS are those of the model's outputs there, the view that
            does not depend on which hidden unit is which. Otherwise they are those of the
            parameters, or of 50 random projections if there are more than 200.
        thin: for the configurational temperature, use every ``thin``-th draw.
    """
    findings: list[Finding] = []
    facts: dict[str, float] = {}
    _divergences(draws, findings, facts)
    if draws.interacting:
        findings.append(
            Finding(
                "These particles interact, so R-hat, ESS and temperatures say nothing about them.",
                "Compare predictions with those of a chain method, or with more particles.",
            )
        )
        return Verdict(tuple(findings), facts)
    _mixing(draws, inputs, findings, facts)
    _temperatures(draws, data, thin, findings, facts)
    _acceptance(draws, findings, facts)
    return Verdict(tuple(findings), facts)


def _divergences(draws: Any, findings: list[Finding], facts: dict[str, float]) -> None:
    lost, kept = len(draws.diverged), len(draws.particles)
    if lost:
        facts["diverged"] = lost
        findings.append(
            Finding(
                f"{lost} of {lost + kept} chains diverged, the first at step "
                f"{min(draws.diverged.values())}; the others are not a fair sample of starts.",
                "Try a tenth of the step size, or starts nearer to the mode; "
                "pvi.suggest_step_size tells the stable range.",
            )
        )
    if draws.interrupted:
        findings.append(
            Finding(
                f"The run was interrupted after {draws.num_steps} steps.",
                "Resume it from its checkpoint, if it has one.",
            )
        )


def _mixing(draws: Any, inputs: Any, findings: list[Finding], facts: dict[str, float]) -> None:
    chains, length, size = draws.particles.shape
    if length < arviz.MIN_DRAWS:
        findings.append(
            Finding(
                f"{length} draws per chain tell nothing about convergence.",
                f"Raise num_draws to {arviz.MIN_DRAWS} at the very least.",
            )
        )
        return
    view, options = "parameters", {}
    if inputs is not None or draws.output_shape is not None:
        view, options = "predictions", {"inputs": inputs}
    elif size > MAX_COORDINATES:
        view, options = "projections", {"num": 50}
    ess = np.nanmin(np.append(draws.ess(view, **options), math.inf))
    total = chains * length
    facts["smallest ESS"] = float(ess)
    facts["smallest ESS per second"] = float(ess) / draws.seconds
    rhat = math.nan
    if chains > 1:
        rhat = float(np.nanmax(np.append(draws.rhat(view, **options), 1.0)))
        facts["largest R-hat"] = rhat
    if rhat > MAX_RHAT:
        findings.append(
            Finding(
                f"Not converged: R-hat of the {view} reaches {rhat:.3f}, above {MAX_RHAT}: chains "
                "still differ.",
                "Raise num_warmup and num_draws, or start from a trained point. Of a net, judge "
                "predictions (inputs=...): weights need not agree between chains.",
            )
        )
    if ess < MIN_ESS:
        longer = math.ceil(MIN_ESS / max(float(ess), 1.0))
        findings.append(
            Finding(
                f"Too few independent draws: the smallest ESS of the {view} is {ess:.0f} of {total}"
                f" draws; {MIN_ESS:.0f} are needed for stable intervals.",
                f"Run about {longer} times as long (a larger thin costs no memory), or raise the "
                "step size if it is far below the stable range.",
            )
        )
    if chains == 1:
        findings.append(
            Finding(
                "One chain cannot show that it has found all of the posterior.",
                "Run 4 chains or more from different starts.",
            )
        )


def _temperatures(
    draws: Any, data: Any, thin: int, findings: list[Finding], facts: dict[str, float]
) -> None:
    stats = draws.stats
    target = 1.0
    if "temperature" in stats:
        target = float(stats["temperature"].mean())
    if "replica_temperature" in stats or target == 0:
        return
    name = draws.attrs.get("sampler")
    if "kinetic_temperature" in stats and name != "sgnht":
        every = temperatures.kinetic(draws)
        facts["kinetic temperature"] = every["kinetic"].mean
        off = {each: t for each, t in every.items() if _is_off(t, target)}
        if off:
            # In total if that is off, or else in the tensor that is off most.
            worst = max(off, key=lambda each: (each == "kinetic", abs(off[each].mean - target)))
            where = "" if worst == "kinetic" else f" of {worst[len('kinetic[') : -1]}"
            _judge("kinetic", off[worst], target, findings, where)
    model = draws.potential
    whole = draws.coordinates is None and draws.output_shape is None
    if model is not None and whole and (data is not None or model.log_likelihood_fn is None):
        found = temperatures.configurational(draws, data, thin=thin)["all"]
        facts["configurational temperature"] = found.mean
        _judge("configurational", found, target, findings)
    if "clipped" in stats:
        share = facts["noise beyond compensation"] = float(stats["clipped"].mean())
        if share > MOST_CLIPPED:
            findings.append(
                Finding(
                    f"Minibatch noise dominates: for {share:.0%} of the parameters it is more than "
                    "the sampler injects, so that it cannot be taken out.",
                    "Take a smaller step size, larger batches, more friction, or "
                    "pvi.control_variate.",
                )
            )
    if "thermostat" in stats:
        settings = draws.attrs.get("sampler_settings", {})
        rest, free = float(stats["thermostat"].mean()), float(settings.get("diffusion", math.nan))
        facts["thermostat"] = rest
        if rest > 3 * free:
            findings.append(
                Finding(
                    f"Minibatch noise dominates: the thermostat rests at {rest:.3g}, the friction "
                    f"without gradient noise would be {free:.3g}.",
                    "Take larger minibatches, a smaller step size, or pvi.control_variate.",
                )
            )


def _is_off(found: temperatures.Temperature, target: float) -> bool:
    off, error = abs(found.mean / target - 1), found.mcse / target
    return off > TEMPERATURE_SHARE and off > TEMPERATURE_Z * error


def _judge(
    kind: str,
    found: temperatures.Temperature,
    target: float,
    findings: list[Finding],
    where: str = "",
) -> None:
    if not _is_off(found, target):
        return
    off = found.mean / target - 1
    size = f"{found.mean:.3g} +- {found.mcse:.2g}, set to {target:g}"
    what = f"the {kind} temperature{where} is {size}"
    if found.mean <= 0:
        findings.append(
            Finding(
                f"Not stationary: {what}, and it cannot be negative.",
                "Raise num_warmup, or start from a trained point.",
            )
        )
    elif off > 0:
        findings.append(
            Finding(
                f"Too hot by {off:.0%}: {what}. Minibatch noise, or the "
                "bias of a large step, widens the draws.",
                "Halve the step size; if it stays, take larger minibatches, pvi.control_variate, "
                'gradient_noise="online", or pvi.sgnht. Not yet stationary chains look hot too.',
            )
        )
    else:
        findings.append(
            Finding(
                f"Too cold by {-off:.0%}: {what}. The step is large for "
                "the curvature, or chains have not yet spread out.",
                "Halve the step size and raise num_warmup.",
            )
        )


def _acceptance(draws: Any, findings: list[Finding], facts: dict[str, float]) -> None:
    if "acceptance" in draws.stats:
        rate = facts["acceptance"] = float(draws.stats["acceptance"].mean())
        if rate < MIN_ACCEPTANCE:
            findings.append(
                Finding(
                    f"Most proposals are rejected: the acceptance is {rate:.2f}.",
                    "Halve the step size, or test after fewer steps.",
                )
            )
    if "swap_acceptance" in draws.stats:
        rate = facts["swap acceptance"] = float(draws.stats["swap_acceptance"].mean())
        if rate < MIN_SWAPS:
            findings.append(
                Finding(
                    f"Replicas hardly exchange places: the acceptance is {rate:.2f}.",
                    "Put more temperatures between the lowest and the highest.",
                )
            )
