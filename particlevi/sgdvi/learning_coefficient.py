"""The local learning coefficient: how singular a minimum is, by sampling around it.

With mean loss ``f`` in nats per datum and a checkpoint ``w*``, at inverse temperature
``beta = 1 / log N``::

    lambda = N beta (E f(w) - f(w*)),    w ~ exp(-N beta f(w) - (gamma / 2) |w - w*|^2)

For a regular minimum it is ``D / 2``; the more directions leave the loss unchanged to higher order,
the smaller. The chain is Langevin dynamics, started at ``w*``. What can go wrong is reported:

* the step. Its bias is, to first order and as a share of lambda,
  ``h (tr H + tr S) / (4 lambda)`` for SGLD, with ``H`` and ``S`` curvature and noise covariance of
  the gradient of what is sampled, both averaged over the law itself; the step is chosen by it, with
  ``D / 2`` in the place of lambda. The Leimkuhler-Matthews scheme has the part of ``S`` only,
  Hamiltonian Monte Carlo none;
* the localisation: ``(gamma / 2) E|w - w*|^2`` degrees of freedom are held by it and not by the
  data. At a regular minimum lambda is too small by exactly that;
* a checkpoint that is no minimum: draws with a lower loss than it;
* chains that are not stationary, or do not agree;
* chains that agree with each other and not with the law, as where they seldom enter a narrow
  valley. The virial of the law, ``E[(w - w*) . grad U]`` with ``U`` minus its log density, is D for
  every model: it is measured with its error.

Reference: Lau, Furman, Wang, Murfet and Wei, "The local learning coefficient: a singularity-aware
complexity measure", 2023; Watanabe, "A widely applicable Bayesian information criterion", 2013.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from particlevi._checks import (
    check_choice,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_seed,
)
from particlevi._shown import Shown
from particlevi.curvature.operators import curvature_operator
from particlevi.data import DataLike
from particlevi.diagnostics import arviz
from particlevi.draws import Draws
from particlevi.errors import DivergenceError
from particlevi.gradients.full import full_gradient
from particlevi.noise.covariance import GradientNoise, measure
from particlevi.potentials.function import from_log_likelihood
from particlevi.potentials.potential import ModelPotential
from particlevi.running.sampling import sample
from particlevi.samplers.hmc import hmc
from particlevi.samplers.leimkuhler_matthews import leimkuhler_matthews
from particlevi.samplers.sgld import sgld
from particlevi.sgdvi._losses import doubled, module_losses
from particlevi.sgdvi.series import is_stationary
from particlevi.typing import Batch, Sampler

__all__ = ["LearningCoefficient", "Scheme", "local_learning_coefficient"]

Scheme = Literal["sgld", "leimkuhler_matthews", "hmc"]
"""How the chain moves."""

_BIAS = 0.01
_PILOTS = 3
_PILOT_STEPS = 200
_STABLE_SHARE = 0.25
_LOOKS = 32
_TOGETHER = 32


@dataclass(frozen=True, eq=False, repr=False)
class LearningCoefficient(Shown):
    """An estimate of the local learning coefficient and what it can be trusted for.

    Attributes:
        value: lambda.
        standard_error: of the Monte-Carlo mean, with the chains' autocorrelation.
        rhat: of the loss and of ``|w - w*|^2`` along the chains, the larger.
        ess: effective number of draws, the smaller of both.
        stationary: whether two halves of the run agree; None for runs too short to tell.
        step_size: h of the chain.
        step_bias: what the step adds to ``value``, as a share of it, to first order.
        step_share: h over the largest that is stable, at the draw where it is largest of some; NaN
            for Hamiltonian Monte Carlo, which rejects.
        held: ``(gamma / 2) E|w - w*|^2``: degrees of freedom, halved, that the localisation holds.
        lower: the share of draws with a lower loss than the checkpoint.
        virial: ``E[(w - w*) . grad U]``, which is D under the law.
        virial_error: its standard error, with the chains' autocorrelation.
        losses: ``f`` on all the data at every draw, ``[P, T]``.
        initial_loss: ``f(w*)``.
        inverse_temperature: beta.
        num_params: D.
    """

    value: float
    standard_error: float
    rhat: float
    ess: float
    stationary: bool | None
    step_size: float
    step_bias: float
    step_share: float
    held: float
    lower: float
    virial: float
    virial_error: float
    losses: Tensor
    initial_loss: float
    inverse_temperature: float
    num_params: int

    @property
    def doubts(self) -> list[str]:
        """Reasons not to trust the value, in words; none if it is empty."""
        found = []
        if not self.rhat < 1.05:
            found.append(f"chains do not agree: R-hat is {self.rhat:.3f}; run longer")
        if not self.ess >= 100:
            found.append(f"the run is short: {self.ess:.0f} effective draws; run longer")
        if self.stationary is False:
            found.append("the halves of the run differ; lengthen the warm-up")
        if self.step_bias > 0.05:
            found.append(f"the step adds about {self.step_bias:.0%}; lower step_size")
        if self.step_share > 0.5:
            found.append(
                f"the step is {self.step_share:.2g} of the stable one at the steepest draw seen; "
                "lower step_size"
            )
        if self.held > 0.05 * abs(self.value):
            found.append(f"the localisation holds {self.held:.3g} of what the data might; lower it")
        if self.lower > 0.01:
            found.append(f"{self.lower:.0%} of the draws have a lower loss: w* is no minimum")
        most = 1.05 * self.num_params / 2 + self.step_bias * abs(self.value)
        if self.value - 4 * self.standard_error > most:
            found.append(
                f"no minimum has more than D / 2 = {self.num_params / 2:g}: the chains ran away"
            )
        added = self.step_bias * abs(self.value)  # to both means alike
        allowed = 0.01 * self.num_params + 2 * added
        if abs(self.virial - self.num_params) > 4 * self.virial_error + allowed:
            found.append(
                f"the chains miss a part of the law: its virial is {self.num_params}, theirs "
                f"{self.virial:.4g} +- {self.virial_error:.2g}; run longer, or with more chains"
            )
        return found

    def __str__(self) -> str:
        """The value, its errors and doubts."""
        lines = [
            f"local learning coefficient {self.value:.4g} +- {self.standard_error:.2g} "
            f"(a regular minimum has {self.num_params / 2:g})",
            f"  R-hat {self.rhat:.3f}, {self.ess:.0f} effective draws, step bias "
            f"{self.step_bias:.1%}, held by the localisation {self.held:.3g}",
        ]
        return "\n".join(lines + [f"  doubt: {each}" for each in self.doubts])


def local_learning_coefficient(
    module: nn.Module,
    data: DataLike,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    inverse_temperature: float | None = None,
    localization: float = 1.0,
    scheme: Scheme = "leimkuhler_matthews",
    batch_size: int | None = None,
    step_size: float | None = None,
    num_chains: int = 4,
    num_draws: int = 1000,
    thin: int = 10,
    seed: int = 0,
) -> LearningCoefficient:
    """Lambda at a module's parameters, from chains around them; in float64.

    Args:
        module: at the checkpoint; in evaluation mode.
        data: ``(inputs, ..., targets)`` in any form that ``sample`` takes, a loader included.
        loss_fn: minus the log likelihood in nats; that of a single datum counts.
        inverse_temperature: beta; ``1 / log N`` if absent.
        localization: gamma, in units of the parameters to the power -2.
        scheme: see above. That of Leimkuhler and Matthews is SGLD with averaged noise; its steps
            can be about twenty times as long for one bias. ``"hmc"`` takes all the data at every
            step, and its step is tuned by ``sample``.
        batch_size: b of the gradients; all the data if absent. Losses are of all the data always.
        step_size: h; if absent that with a bias of 1 % of D / 2.
        num_chains: P.
        num_draws: T per chain, after a warm-up of half as many.
        thin: steps per draw.
        seed: of all randomness.

    Raises:
        ValueError: arguments that do not fit.
        DivergenceError: chains that run away, as where the step is too large.

    Examples:
        A regular model with three parameters:

        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(100, 3)
        >>> net = nn.Linear(3, 1, bias=False)
        >>> _ = net.weight.data.copy_(torch.linalg.lstsq(x, x[:, :1]).solution.T)
        >>> half = lambda o, y: 0.5 * (o - y).square().sum()
        >>> found = local_learning_coefficient(
        ...     net, (x, x[:, :1]), half, step_size=0.02, num_draws=200, thin=2
        ... )
        >>> abs(found.value - 1.5) < 0.3
        True
    """
    check_nonnegative("localization", localization)
    check_choice("scheme", scheme, ["sgld", "leimkuhler_matthews", "hmc"])
    for name, count, least in (("num_chains", num_chains, 2), ("num_draws", num_draws, 20)):
        check_positive_int(name, count, minimum=least)
    check_positive_int("thin", thin)
    check_seed("seed", seed)
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch module, got {type(module).__name__}.")
    if scheme == "hmc" and batch_size is not None:
        raise ValueError('scheme="hmc" takes all the data at every step: leave batch_size out.')
    module, data, loss_fn = doubled(module, data, loss_fn)
    noise = measure(module, data, loss_fn)
    count = noise.num_data
    beta = 1 / math.log(max(count, 3)) if inverse_temperature is None else inverse_temperature
    check_positive("inverse_temperature", beta)
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
        if batch_size > count:
            raise ValueError(f"batch_size must be at most the {count} data, got {batch_size}.")
    around = _Around(noise, module, data, loss_fn, float(beta), float(localization))
    if step_size is None and scheme != "hmc":
        length = max(num_draws * thin // 2, _PILOT_STEPS)
        step_size = around.step(scheme, batch_size, num_chains, length, seed)
    elif step_size is not None:
        check_positive("step_size", step_size)
    draws = around.run(scheme, step_size, batch_size, num_chains, num_draws, thin, seed)
    losses = around.losses(draws.particles)
    start = float(around.losses(torch.zeros(1, 1, noise.num_params, dtype=torch.float64)))
    scaled = count * beta * (losses - start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stationary = is_stationary(scaled[..., None])
    last = draws.particles[:, -1]
    bias = 0.0 if step_size is None else around.bias(scheme, step_size, batch_size, last)
    value = float(scaled.mean())
    bias *= 0.5 * noise.num_params / max(abs(value), 1e-300)
    share = math.nan
    if step_size is not None and scheme != "hmc":
        share = 0.5 * step_size * around.steepest(_spaced(draws.particles))
    distance = draws.particles.double().square().sum(-1)
    held = 0.5 * localization * float(distance.mean())
    both = torch.stack([scaled, distance], -1)
    series = scaled[..., None]
    virial = around.virial(draws.particles)[..., None]
    return LearningCoefficient(
        value=value,
        standard_error=float(arviz.mcse(series)[0]),
        rhat=float(arviz.rhat(both).max()),
        ess=float(arviz.ess(both).min()),
        stationary=stationary,
        step_size=_step_of(draws) if step_size is None else float(step_size),
        step_bias=bias,
        step_share=share,
        held=held,
        lower=float((scaled < 0).double().mean()),
        virial=float(virial.mean()),
        virial_error=float(arviz.mcse(virial)[0]),
        losses=losses,
        initial_loss=start,
        inverse_temperature=float(beta),
        num_params=noise.num_params,
    )


def _step_of(draws: Draws) -> float:
    tuning = draws.attrs.get("tuning")
    found = tuning.get("step_size") if isinstance(tuning, dict) else None
    return math.nan if found is None else float(found)


class _Around:
    """What is sampled, in coordinates ``w - w*``."""

    def __init__(
        self,
        noise: GradientNoise,
        module: nn.Module,
        data: Any,
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        beta: float,
        gamma: float,
    ) -> None:
        self.noise, self.data, self.beta, self.gamma = noise, data, beta, gamma
        self.operator = curvature_operator(module, data, loss_fn, kind="gauss_newton")
        center = noise.position

        losses = module_losses(module, noise.samples.layout, loss_fn)

        def log_likelihood(away: Tensor, *piece: Tensor) -> Tensor:
            return -beta * losses(center + away, *piece)

        self.potential: ModelPotential = from_log_likelihood(
            lambda away: -0.5 * gamma * away.square().sum(),
            log_likelihood,
            num_params=noise.num_params,
            num_data=noise.num_data,
            dtype=torch.float64,
        )

    def run(
        self,
        scheme: Scheme,
        step_size: float | None,
        batch_size: int | None,
        num_chains: int,
        num_draws: int,
        thin: int,
        seed: int,
    ) -> Draws:
        """Chains from ``w*``; a warm-up of half the run."""
        makers: dict[str, Callable[[ModelPotential], Sampler]] = {
            "sgld": sgld,
            "leimkuhler_matthews": leimkuhler_matthews,
            "hmc": hmc,
        }
        start = torch.zeros(num_chains, self.noise.num_params, dtype=torch.float64)
        return sample(
            makers[scheme](self.potential),
            self.data,
            step_size=step_size,
            batch_size=batch_size,
            initial=start,
            num_warmup=max(num_draws * thin // 2, 200),
            num_draws=num_draws,
            thin=thin,
            seed=seed,
            progress=False,
        )

    def losses(self, away: Tensor) -> Tensor:
        """``f`` on all the data at displacements ``[P, T, D]``, as ``[P, T]``."""
        chunk = self.noise.chunk_size
        found = torch.zeros(away.shape[:2], dtype=torch.float64)
        with torch.no_grad():
            for start in range(0, self.noise.num_data, chunk):
                piece = Batch(self.noise.samples.piece(start, start + chunk))
                for part in torch.arange(away.shape[1]).split(_TOGETHER):
                    flat = away[:, part].flatten(0, 1)
                    values = self.potential.log_likelihood(flat, piece).sum(1).double()
                    found[:, part] -= values.view(len(away), -1)
        found /= self.beta * self.noise.num_data
        return found

    def virial(self, away: Tensor) -> Tensor:
        """``(w - w*) . grad U`` on all the data at displacements ``[P, T, D]``, as ``[P, T]``."""
        points, chunk = away.flatten(0, 1), self.noise.chunk_size
        slopes = torch.cat(
            [
                full_gradient(self.potential, part, self.data, chunk).gradient
                for part in points.split(_TOGETHER)
            ]
        )
        return (points * slopes).sum(-1).view(away.shape[:2])

    def bias(self, scheme: Scheme, step: float, batch_size: int | None, points: Tensor) -> float:
        """``h (tr H + tr S) / (2 D)``, averaged over points ``[P, D]``."""
        scale = self.noise.num_data * self.beta
        total, size = 0.0, self.noise.num_params
        for point in points:
            here = self.noise.position + point
            if scheme == "sgld":
                at = self.operator.at(here)
                total += (
                    scale * at.trace(min(size, 30), "hutchinson").value
                    if size > 5
                    else (scale * float(at.dense().trace()))
                )
                total += self.gamma * size
            if batch_size is not None and scheme != "hmc":
                total += scale**2 / batch_size * self.noise.at(here).trace().value
        return 0.5 * step * total / (len(points) * size)

    def step(
        self, scheme: Scheme, batch_size: int | None, num_chains: int, length: int, seed: int
    ) -> float:
        """The step with the bias that is allowed, by pilot runs that each start from ``w*``.

        The last pilots take ``length`` steps, since chains meet steeper places as they go.
        """
        step = self._allowed(scheme, batch_size, self._shell(num_chains, seed))
        for pilot in range(2 * _PILOTS):
            long = length > _PILOT_STEPS and pilot >= _PILOTS
            thin = (length if long else _PILOT_STEPS) // 20
            try:
                run = self.run(scheme, step, batch_size, num_chains, 20, thin, seed + pilot)
            except DivergenceError:
                step *= _STABLE_SHARE
                continue
            points = _spaced(run.particles) if long else run.particles[:, -1]
            again = self._allowed(scheme, batch_size, points)
            close = abs(math.log(again / step)) < 0.3
            step = min(step, again) if long else again
            if close and (long or length <= _PILOT_STEPS):
                break
        return step

    def _shell(self, count: int, seed: int) -> Tensor:
        """Points ``[count, D]`` in random directions where ``-log`` density rose by D / 2."""
        size = self.noise.num_params
        generator = torch.Generator().manual_seed(seed)
        rays = torch.randn(count, 1, size, generator=generator, dtype=torch.float64)
        rays /= rays.norm(dim=-1, keepdim=True)
        scale, start = self.noise.num_data * self.beta, self.losses(0 * rays[:1])

        def rise(radius: float) -> float:
            data = scale * float((self.losses(radius * rays) - start).mean())
            return data + 0.5 * self.gamma * radius**2

        low, high = 0.0, 1e-6
        while rise(high) < 0.5 * size and high < 1e6:
            low, high = high, 2 * high
        for _ in range(6):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if rise(middle) < 0.5 * size else (low, middle)
        return high * rays[:, 0]

    def steepest(self, points: Tensor) -> float:
        """The largest curvature of what is sampled at points ``[S, D]``."""
        top = max(
            float(self.operator.at(self.noise.position + point).top_eigenpairs(1).values[0])
            for point in points
        )
        return self.noise.num_data * self.beta * max(top, 0.0) + self.gamma

    def _allowed(self, scheme: Scheme, batch_size: int | None, points: Tensor) -> float:
        """The step with the bias that is allowed; never more than a quarter of what is stable."""
        stable = _STABLE_SHARE * 2 / (self.steepest(points) + 1e-300)
        unit = self.bias(scheme, 1.0, batch_size, points)
        return min(stable, _BIAS / unit if unit > 0 else math.inf)


def _spaced(particles: Tensor) -> Tensor:
    """Some draws ``[S, D]`` of ``[P, T, D]``, evenly spaced, the last among them."""
    each = min(max(_LOOKS // len(particles), 1), particles.shape[1])
    at = torch.linspace(particles.shape[1] - 1, 0, each).round().long()
    return particles[:, at].flatten(0, 1)
