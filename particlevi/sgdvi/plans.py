"""Given what is to be sampled, how to run SGD: the plan, its run and its check.

The mean loss ``f`` has its minimum at ``theta*``, Hessian ``F`` and per-sample gradient covariance
``C`` there. The target is a Gaussian around ``theta*`` with covariance

============== ======================================= =======================================
``"posterior"`` ``(N F)^-1``                            Laplace's, for a loss in nats per datum
a number T      ``T (N F)^-1``                          the posterior at temperature T
``"sandwich"``  ``F^-1 C F^-1 / N``                     of the estimate over data sets
a matrix        itself                                  of a reference run, for example
============== ======================================= =======================================

SGD's covariance solves a linear equation in the mean of ``C`` over its own law. So ``C`` is
averaged over the *target*, by a rule that is exact where ``C`` is quadratic: for linear least
squares a full preconditioner then samples the target exactly, although the noise grows with the
distance.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference",
2017, for the question; the answers are those of ``particlevi.sgdvi.design``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from particlevi._checks import (
    check_choice,
    check_flag,
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_seed,
    is_number,
)
from particlevi._shown import Shown
from particlevi.curvature.hessian import Energy, dense_hessian
from particlevi.data import DataLike
from particlevi.draws import Draws
from particlevi.errors import DivergenceError
from particlevi.noise.average import average
from particlevi.noise.covariance import GradientNoise, measure
from particlevi.potentials.function import from_log_likelihood
from particlevi.potentials.potential import ModelPotential
from particlevi.running.sampling import sample
from particlevi.sgdvi._checks import as_real
from particlevi.sgdvi._losses import doubled, module_losses
from particlevi.sgdvi.designs import Design, Order, cheapest, design
from particlevi.sgdvi.planned import planned_sgd
from particlevi.sgdvi.preconditioners import Structure
from particlevi.sgdvi.swag import iterate_average
from particlevi.sgdvi.verification import Verification, verify_draws

__all__ = ["SGDPlan", "plan"]

Target = Literal["posterior", "sandwich"] | float | Tensor
"""What is to be sampled, around the minimum."""

_MOST_POINTS, _HESSIANS = 64, 8
_MOST_PARAMS = 2000
_MOMENTA = (0.0, 0.5, 0.9)


@dataclass(frozen=True, eq=False, repr=False)
class SGDPlan(Shown):
    """How to run SGD, and what will come out.

    Attributes:
        design: all settings and predictions.
        center: the minimum ``theta* [D]``.
        hessian: ``F [D, D]`` there, prior included.
        noise: ``C [D, D]``, averaged over the target.
        noise_growth: its trace over that at the minimum.
        curvature_growth: how many times ``hessian`` the curvature is at points of the target, at
            most; with injected noise, steps are so many times shorter than Newton's.
        moved: Newton's distance from where the model was to the minimum, in standard deviations of
            the posterior, per parameter (rms).
        potential: that of the loss.
        data: as given.
    """

    design: Design
    center: Tensor
    hessian: Tensor
    noise: Tensor
    noise_growth: float
    curvature_growth: float
    moved: float
    potential: ModelPotential
    data: Any

    @property
    def learning_rate(self) -> float:
        """``eta`` on the mean loss, of steps ``-eta H g``."""
        return self.design.learning_rate

    @property
    def momentum(self) -> float:
        """M."""
        return self.design.momentum

    @property
    def batch_size(self) -> int:
        """B."""
        return self.design.batch_size

    @property
    def preconditioner(self) -> Tensor:
        """``H [D, D]``, of mean diagonal 1."""
        return self.design.preconditioner

    @property
    def averaging(self) -> int:
        """Iterates that are averaged to one draw."""
        return self.design.averaging

    @property
    def thin(self) -> int:
        """Steps from one draw to the next."""
        return self.design.thin

    def __str__(self) -> str:
        """Settings and predictions."""
        found, size = self.design, len(self.center)
        sd = found.covariance.diagonal().sqrt()
        target = found.target.diagonal().sqrt()
        added = 0.0 if found.injected is None else float(found.injected.trace())
        own = float(self.noise.trace()) / found.batch_size
        return "\n".join(
            [
                f"SGD as a sampler of {size} parameters",
                f"  learning rate            {found.learning_rate:.4g} on the mean loss",
                f"  momentum                 {found.momentum:g}",
                f"  batch size               {found.batch_size} ({found.batching})",
                f"  preconditioner           [{size}, {size}], diagonal "
                f"{float(found.preconditioner.diagonal().min()):.3g} ... "
                f"{float(found.preconditioner.diagonal().max()):.3g}",
                f"  injected noise           {added / (added + own):.0%} of the noise",
                f"  averaging                {found.averaging} iterates per draw",
                f"  thin                     {found.thin} steps per draw",
                "prediction",
                f"  standard deviations      {float(sd.min()):.4g} ... {float(sd.max()):.4g} "
                f"(target {float(target.min()):.4g} ... {float(target.max()):.4g})",
                f"  KL to the target         {found.kl:.3g} nats",
                f"  autocorrelation time     {found.autocorrelation_time:.4g} steps",
                f"  gradients per effective sample  {found.gradients_per_effective_sample:.4g}",
            ]
        )

    def run(
        self,
        num_draws: int = 1000,
        *,
        num_chains: int = 4,
        seed: int = 0,
        progress: bool = False,
    ) -> Draws:
        """SGD as planned, from the minimum, with a warm-up of the time to stationarity.

        Args:
            num_draws: T, per chain.
            num_chains: P, independent runs.
            seed: of all randomness.
            progress: show a progress bar.

        Returns:
            Draws ``[P, T, D]``; ``draws.particles`` are parameters in the model's order.

        Raises:
            DivergenceError: chains that leave the minimum, as where the plan does not hold at all.
        """
        check_positive_int("num_draws", num_draws)
        check_positive_int("num_chains", num_chains)
        check_seed("seed", seed)
        found = self.design
        axes = torch.linalg.eigh(found.target).eigenvectors
        warmup = int(found.chain.steps_to_stationarity(axes).max()) * found.steps_per_epoch
        start = self.center.to(self.potential.device, self.potential.dtype)
        try:
            kept = sample(
                planned_sgd(self.potential, found),
                self.data,
                step_size=found.learning_rate,
                batch_size=found.batch_size,
                batching=found.batching,
                initial=start.expand(num_chains, -1).clone(),
                num_warmup=warmup,
                num_draws=num_draws * found.averaging,
                thin=1 if found.averaging > 1 else found.thin,
                seed=seed,
                progress=progress,
            )
        except DivergenceError as error:
            error.add_note(
                "The rate is the plan's own: the target is wider than the basin around the "
                "minimum in which its laws hold. Narrow the prior, freeze layers, give a smaller "
                "target, or use a sampler of the posterior itself."
            )
            raise
        return kept if found.averaging == 1 else iterate_average(kept, found.averaging)

    def verify(self, draws: Draws | Tensor) -> Verification:
        """The prediction against draws of ``run``, with errors.

        Args:
            draws: ``[P, T, D]``.

        Raises:
            ValueError: too few draws, or of another size.
        """
        return verify_draws(draws, self.center, self.design)


def plan(
    model: ModelPotential | nn.Module,
    data: DataLike,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    target: Target = "posterior",
    weight_decay: float = 0.0,
    preconditioner: Structure = "full",
    batch_size: int | None = None,
    momentum: float | None = 0.0,
    batching: Order = "replacement",
    averaging: int | None = 1,
    injected: bool = True,
    position: Tensor | None = None,
) -> SGDPlan:
    """Settings of SGD whose draws are as close to a target as its exact laws allow.

    The minimum is looked for from where the model is. The laws hold where the gradient is linear
    over the target's spread; ``verify`` tells how far that is from true.

    Args:
        model: a module, or a potential with data, whose mean loss is ``U / N``, prior included.
        data: ``(inputs, ..., targets)`` in any form that ``sample`` takes, a loader included.
        loss_fn: of a module, such as ``torch.nn.functional.cross_entropy``: the mean loss in nats
            per datum. (A mean squared error is that of Gaussian targets with variance 1/2.)
        target: see the table above.
        weight_decay: ``w`` in ``f + w |theta|^2 / 2``: a prior of variance ``1 / (N w)``. Of a
            module; a potential has its prior.
        preconditioner: the family; see ``particlevi.sgdvi.design``.
        batch_size: b; if absent the cheapest of ``N/64``, ``N/16`` and ``N/4``.
        momentum: m; None for the cheapest of 0, 0.5 and 0.9.
        batching: independent data, subsets, or epochs.
        averaging: iterates per draw; None for the best of 1, an epoch and two epochs.
        injected: whether noise may be added where SGD's own is too small.
        position: where to look for the minimum, ``[D]``; the module's parameters if absent.

    Raises:
        ValueError: arguments that do not fit, a minimum that is not found, or one without positive
            curvature in every direction (add ``weight_decay``).

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(200, 2)
        >>> y = (x @ torch.tensor([1.0, -1.0]) + torch.randn(200) > 0).long()
        >>> net = torch.nn.Linear(2, 2)
        >>> found = plan(net, (x, y), nn.functional.cross_entropy, weight_decay=0.01, batch_size=20)
        >>> found.design.kl < 1e-9
        True
        >>> print(found)
        SGD as a sampler of 6 parameters
        ...
    """
    check_nonnegative("weight_decay", weight_decay)
    check_flag("injected", injected)
    _check_target(target)
    noise, energy, potential, data = _problem(model, data, loss_fn, weight_decay, position)
    count, size = noise.num_data, noise.num_params
    if size > _MOST_PARAMS:
        raise ValueError(
            f"A plan takes at most {_MOST_PARAMS} parameters, got {size}: freeze some layers "
            "(requires_grad_(False)), or take invariant_subspace and design."
        )
    start = noise.position.double().cpu()
    center, hessian = _minimum(energy, noise.position)
    noise = noise.at(center.to(noise.position))
    at_minimum = noise.dense().cpu()
    wanted = _covariance(target, hessian, at_minimum, count)
    points = _points(noise.position.double().cpu(), wanted)
    averaged = average(noise, points).matrix
    growth = _curvature_growth(energy, hessian, points.to(noise.position))
    options: list[Design] = []
    shapes = [tuple(shape) for shape in noise.samples.layout.shapes.values()]
    failed: ValueError | None = None
    for b in _batches(batch_size, count):
        for m in _MOMENTA if momentum is None else (momentum,):
            windows = (1, max(2, count // b), max(4, 2 * count // b))
            for window in windows if averaging is None else (averaging,):
                try:
                    found = design(
                        hessian,
                        averaged,
                        wanted,
                        batch_size=b,
                        num_data=count,
                        momentum=m,
                        batching=batching,
                        preconditioner=preconditioner,
                        injected=injected,
                        averaging=window,
                        shapes=shapes,
                        curvature_growth=growth,
                    )
                    options.append(found)
                except ValueError as error:
                    failed = error
    if not options:
        assert failed is not None
        raise failed
    shift = (start - center) @ hessian @ (start - center) * count / size
    return SGDPlan(
        design=cheapest(options),
        center=center,
        hessian=hessian,
        noise=averaged,
        noise_growth=float(averaged.trace() / at_minimum.trace()),
        curvature_growth=growth,
        moved=math.sqrt(max(float(shift), 0.0)),
        potential=potential,
        data=data,
    )


def _check_target(target: Any) -> None:
    if isinstance(target, str):
        check_choice("target", target, ["posterior", "sandwich"])
    elif is_number(target):
        check_positive("target", target)
    elif not isinstance(target, Tensor):
        raise ValueError(
            'target must be "posterior", "sandwich", a temperature or a covariance [D, D], got '
            f"{type(target).__name__}."
        )


def _problem(
    model: Any, data: Any, loss_fn: Any, decay: float, position: Tensor | None
) -> tuple[GradientNoise, Callable[[Tensor], Energy], ModelPotential, Any]:
    """The noise, the mean loss as an energy at any point, its potential and the data."""
    if isinstance(model, nn.Module):
        model, data, loss_fn = doubled(model, data, loss_fn)
    noise = measure(model, data, loss_fn, position=position)
    if noise.samples.random:
        raise ValueError("The loss draws random masks: plan in eval mode, without dropout.")
    count = noise.num_data

    def part(start: int, stop: int, theta: Tensor) -> Tensor:
        return noise.samples.losses(theta, start, stop).sum()

    def energy(theta: Tensor) -> Energy:
        def terms() -> Any:
            for start in range(0, count, noise.chunk_size):
                yield partial(part, start, min(start + noise.chunk_size, count))
            if decay:
                yield lambda leaf: 0.5 * count * decay * leaf.square().sum()

        return Energy(terms, theta, 1 / count)

    if not isinstance(model, nn.Module):
        if decay:
            raise ValueError("A potential has its own prior: leave weight_decay out.")
        return noise, energy, model, data
    samples = noise.samples

    losses = module_losses(model, samples.layout, loss_fn)

    def log_likelihood(theta: Tensor, *piece: Tensor) -> Tensor:
        return -losses(theta, *piece)

    potential = from_log_likelihood(
        lambda theta: -0.5 * count * decay * theta.square().sum(),
        log_likelihood,
        num_params=noise.num_params,
        num_data=count,
        dtype=samples.dtype,
        device=samples.device,
    )
    return noise, energy, potential, tuple(data)


def _minimum(energy: Callable[[Tensor], Energy], start: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum near ``start`` and the Hessian there, by L-BFGS and then Newton."""
    from scipy.optimize import minimize

    def value_and_slope(numbers: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        leaf = torch.from_numpy(numbers.copy()).to(start).requires_grad_()
        here = energy(leaf)
        total, slope = 0.0, torch.zeros(len(leaf), dtype=torch.float64)
        with torch.enable_grad():
            for term in here.terms():
                value = term(leaf)
                slope += torch.autograd.grad(value, leaf)[0].double().cpu()
                total += float(value.detach())
        return here.scale * total, here.scale * slope.numpy()

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-8, "maxcor": 30}
    found = minimize(
        value_and_slope, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", options=options
    )
    theta, least = torch.from_numpy(found.x), float(found.fun)
    for _ in range(20):
        hessian = dense_hessian(energy(theta.to(start))).cpu()
        curvature = torch.linalg.eigvalsh(hessian)
        if curvature[0] <= 1e-12 * curvature[-1]:
            raise ValueError(
                f"The curvature at the minimum reaches from {float(curvature[0]):.3g} to "
                f"{float(curvature[-1]):.3g}, so there is no Gaussian around it: pass "
                "weight_decay (a prior), or freeze parameters that others can replace."
            )
        slope = torch.from_numpy(value_and_slope(theta.numpy())[1])
        move = torch.linalg.solve(hessian, slope)
        value = value_and_slope((theta - move).numpy())[0]
        if not value <= least + 1e-14 * abs(least):
            break
        theta, least = theta - move, value
        if float(slope @ move) <= 1e-24 * max(abs(least), 1e-8):
            break
    return theta, hessian


def _covariance(target: Any, hessian: Tensor, noise: Tensor, count: int) -> Tensor:
    inverse = torch.linalg.inv(hessian)
    inverse = (inverse + inverse.T) / 2
    found: Tensor
    if isinstance(target, str):
        found = inverse if target == "posterior" else inverse @ noise @ inverse
        return (found + found.T) / (2 * count)
    if is_number(target):
        found = float(target) * inverse / count
        return found
    return as_real("target", target, f"[{len(hessian)}, {len(hessian)}]")


def _points(center: Tensor, covariance: Tensor) -> Tensor:
    """Points ``center +- sqrt(D) L q``, of which a mean is exact for quadratic functions."""
    size = len(center)
    if covariance.shape != (size, size):
        raise ValueError(f"target must be [{size}, {size}], got {list(covariance.shape)}.")
    values, vectors = torch.linalg.eigh(covariance)
    if values.min() <= 0:
        raise ValueError(f"target must be positive definite, got {float(values.min()):.3g}.")
    generator = torch.Generator().manual_seed(0)
    turned = torch.randn(size, size, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(turned)[0][:, : min(size, _MOST_POINTS)]
    away = math.sqrt(size) * ((vectors * values.sqrt()) @ turned).T
    return torch.cat([center + away, center - away])


def _curvature_growth(energy: Callable[[Tensor], Energy], hessian: Tensor, points: Tensor) -> float:
    """The largest curvature at some of the points ``[S, D]`` over that at the minimum, at least 1.

    By the largest eigenvalue of ``F^-1/2 H F^-1/2``.
    """
    root, largest = torch.linalg.cholesky(hessian), 1.0
    for point in points[:: max(1, len(points) // _HESSIANS)]:
        there = torch.linalg.solve_triangular(root, dense_hessian(energy(point)).cpu(), upper=False)
        relative = torch.linalg.solve_triangular(root, there.T, upper=False)
        largest = max(largest, float(torch.linalg.eigvalsh(relative)[-1]))
    return largest


def _batches(batch_size: int | None, count: int) -> Sequence[int]:
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
        if batch_size > count:
            raise ValueError(f"batch_size must be at most the {count} data, got {batch_size}.")
        return [int(batch_size)]
    return sorted({max(1, count // share) for share in (64, 16, 4)})
