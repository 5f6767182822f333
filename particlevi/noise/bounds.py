"""A bound on the generalisation gap of SGD, from the noise along its path.

Add virtual noise ``xi_k ~ N(0, s^2 I)`` after every step; SGD itself is not changed. With loss
values that are R-sub-Gaussian, n training data and independent data S'::

    |E gap| <= sqrt(2 R^2/n sum_t (eta_t^2/s^2) E[V_t + Gamma_t])
               + |E[Delta(W_T, S') - Delta(W_T, S)]|

``V_t = |G_t - gbar(W_t)|^2`` is the noise of the gradient that was used about that of the
population risk, ``Gamma_t = E|gbar(W_t) - gbar(W_t + xi)|^2`` the sensitivity of the latter to the
noise of the t steps before, and ``Delta(w, S) = E[L(w, S) - L(w + xi, S)]`` that of the loss to the
noise of all T steps.

Reference: Neu, Dziugaite, Haghifam and Roy, "Information-theoretic generalization bounds for
stochastic gradient descent", 2021. The bound with 2 is derived here; 4 is the published constant
as far as it is known here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import (
    as_list,
    as_real_tensor,
    check_finite,
    check_is,
    check_positive,
    check_positive_int,
    check_seed,
)
from particlevi._shown import Shown
from particlevi.noise.covariance import GradientNoise, check_noise

if TYPE_CHECKING:
    from particlevi.noise.covariance import GradientNoise

__all__ = ["GeneralizationBound", "SGDRun", "generalization_bound"]

_MOST_VALUES = 2**21


@dataclass(frozen=True, eq=False, repr=False)
class SGDRun(Shown):
    """Every k-th step of a run of plain SGD: ``2 (T/k) D`` numbers.

    Attributes:
        positions: ``W_t`` before the step ``[S, D]``.
        gradients: of the minibatch that was used there ``[S, D]``, of the mean loss.
        rates: learning rates ``[S]``.
        every: k.
        final: ``W_T [D]``.

    Examples:
        >>> run = SGDRun.from_positions(torch.tensor([[1.0], [0.5], [0.25]]), learning_rate=0.5)
        >>> run.gradients.flatten().tolist()
        [1.0, 0.5]
    """

    positions: Tensor
    gradients: Tensor
    rates: Tensor
    every: int
    final: Tensor

    @classmethod
    def from_positions(
        cls, positions: Tensor, learning_rate: float | Tensor, every: int = 1
    ) -> SGDRun:
        """From all positions ``[T + 1, D]`` of SGD without momentum and weight decay.

        Args:
            positions: the start and the point after each step, as of ``sample`` with ``thin=1``.
            learning_rate: on the mean loss; one, or of each step ``[T]``.
            every: k, keep every k-th step; sums over steps are multiplied by it.

        Raises:
            ValueError: fewer than two positions, values that are not finite, or rates of another
                number.
        """
        check_positive_int("every", every)
        positions = as_real_tensor("positions", positions, "[T + 1, D], all points of a run", 2)
        if len(positions) < 2 or not positions.is_floating_point():
            raise ValueError(
                "positions must be all points of a run [T + 1, D], floating point, got "
                f"{positions.dtype} {list(positions.shape)}."
            )
        check_finite("positions", positions, "The run has diverged.")
        rates = as_real_tensor("learning_rate", learning_rate, "[T], or a number")
        if rates.shape not in ((), (1,), (len(positions) - 1,)):
            raise ValueError(
                f"learning_rate must be a number or [{len(positions) - 1}], one of each step, got "
                f"{list(rates.shape)}."
            )
        rates = rates.to(positions).expand(len(positions) - 1)
        if not bool((rates > 0).all()):
            raise ValueError("learning_rate must be above 0 in every step.")
        used = (positions[:-1] - positions[1:]) / rates.unsqueeze(1)
        return cls(positions[:-1:every], used[::every], rates[::every], every, positions[-1])


@dataclass(frozen=True, eq=False, repr=False)
class GeneralizationBound(Shown):
    """What ``generalization_bound`` gives, for each noise scale of a grid ``[K]``.

    Attributes:
        scales: s, of the virtual noise of one step.
        bound: with the constant 2; it holds for every s.
        published: the same with 4.
        trajectory: the first term, with 2.
        sensitivity: the second.
        standard_error: of ``bound``, over runs and held-out data; NaN for one run.
        gap: the mean of ``L(W_T, S') - L(W_T, S)``, and its standard error.
    """

    scales: Tensor
    bound: Tensor
    published: Tensor
    trajectory: Tensor
    sensitivity: Tensor
    standard_error: Tensor
    gap: tuple[float, float]

    @property
    def best(self) -> int:
        """The entry of the smallest bound.

        At the last one the perturbed loss may be constant, and then the second term is the gap
        itself and the bound says nothing.
        """
        return int(self.bound.argmin())

    def __str__(self) -> str:
        i = self.best
        return (
            f"gap {self.gap[0]:.4g} +- {self.gap[1]:.2g}; bound {float(self.bound[i]):.4g} +- "
            f"{float(self.standard_error[i]):.2g} at s = {float(self.scales[i]):.3g} (trajectory "
            f"{float(self.trajectory[i]):.4g}, sensitivity {float(self.sensitivity[i]):.4g}), with "
            f"the published constant {float(self.published.min()):.4g}"
        )


def generalization_bound(
    runs: Sequence[SGDRun],
    train: Sequence[GradientNoise],
    held_out: GradientNoise,
    *,
    scales: Tensor,
    subgaussian: float,
    num_draws: int = 4,
    final_draws: int = 32,
    seed: int = 0,
) -> GeneralizationBound:
    """The bound on ``|E gap|`` for each scale of virtual noise, with its parts.

    It costs ``S (1 + K num_draws)`` gradients and ``2 (1 + K final_draws)`` losses on all held-out
    data per run, for S recorded steps and K scales.

    Args:
        runs: independent runs, since the bound is for the mean over runs and training sets.
        train: what ``measure`` gives on the training data of each run.
        held_out: the same on data that no run has seen, in place of the population.
        scales: s ``[K]``.
        subgaussian: R; ``(b - a)/2`` for a loss between a and b. An unbounded loss, as cross
            entropy, has none unless it is clipped.
        num_draws: of the virtual noise at a step.
        final_draws: at the end.
        seed: of the virtual noise.

    Raises:
        ValueError: no runs, another number of training sets, scales that are not positive, or
            held-out data that are training data: the mean gradient of the training data in place
            of the population's makes ``V_t`` too small, and the bound invalid.
    """
    check_positive("subgaussian", subgaussian)
    check_positive_int("num_draws", num_draws)
    check_positive_int("final_draws", final_draws)
    check_seed("seed", seed)
    runs = as_list("runs", runs, "a list of SGDRun")
    train = as_list("train", train, "a list of what measure gives, one per run")
    for run in runs:
        check_is("each of runs", run, SGDRun, "an SGDRun")
    for noise in (*train, held_out):
        check_noise(noise)
    scales = as_real_tensor("scales", scales, "[K] of positive numbers")
    check_finite("scales", scales, "Leave those out.")
    if not runs or len(runs) != len(train):
        raise ValueError(
            f"Give one training set per run, got {len(runs)} runs and {len(train)} training sets."
        )
    if scales.ndim != 1 or not len(scales) or not bool((scales > 0).all()):
        raise ValueError(f"scales must be positive numbers [K], got {list(scales.shape)}.")
    for noise in train:
        _check_held_out(noise, held_out)
    sizes = {noise.num_data for noise in train}
    if len(sizes) > 1:
        raise ValueError(f"All training sets must have one size, got {sorted(sizes)}.")
    generator = torch.Generator().manual_seed(int(seed))
    sums, ends = [], []
    common = torch.zeros(len(scales) + 1, held_out.num_data, dtype=torch.float64)
    for run, noise in zip(runs, train, strict=True):
        sums.append(_path(run, held_out, scales, num_draws, generator))
        outside, inside = _end(run, noise, held_out, scales, final_draws, generator)
        common += outside.cpu() / len(runs)
        ends.append(outside.mean(1) - inside.mean(1))
    total, gaps = torch.stack(sums), torch.stack(ends)
    gap, shift = gaps[:, 0], gaps[:, :1] - gaps[:, 1:]
    # All runs share the held-out data, whose error does not fall with more runs.
    shared = torch.cat([common[:1], common[:1] - common[1:]]).var(1) / held_out.num_data
    factor = 2 * subgaussian**2 / sizes.pop()
    trajectory = (factor * total.mean(0)).sqrt()
    sensitivity = shift.mean(0).abs()
    # The first order of both terms in the deviation of each run from the mean.
    slope = factor / (2 * trajectory.clamp(min=1e-300)) * total + shift.mean(0).sign() * shift
    count = len(runs)
    nothing = torch.full_like(trajectory, math.nan)
    error = (slope.var(0) / count + shared[1:].to(slope)).sqrt() if count > 1 else nothing
    spread = float((gap.var() / count + shared[0].to(gap)).sqrt()) if count > 1 else math.nan
    return GeneralizationBound(
        scales=scales.double(),
        bound=trajectory + sensitivity,
        published=trajectory * math.sqrt(2) + sensitivity,
        trajectory=trajectory,
        sensitivity=sensitivity,
        standard_error=error,
        gap=(float(gap.mean()), spread),
    )


def _path(
    run: SGDRun, held_out: GradientNoise, scales: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """``sum_t (eta_t^2/s^2) (V_t + Gamma_t)`` for every s ``[K]``."""
    points = run.positions.to(held_out.position)
    here = _gradients(held_out, points)
    noise = (run.gradients.to(here) - here).square().sum(1).double()
    before = torch.arange(len(points), dtype=points.dtype).mul(run.every).sqrt().to(points.device)
    weight = run.rates.double().square() * run.every
    found = []
    for s in scales.tolist():
        sensitivity = torch.zeros_like(noise)
        for _ in range(draws):
            xi = torch.randn(points.shape, generator=generator).to(points)
            there = _gradients(held_out, points + s * before.unsqueeze(1) * xi)
            sensitivity += (there - here).square().sum(1).double() / draws
        found.append((weight.to(noise) * (noise + sensitivity)).sum() / s**2)
    return torch.stack(found)


def _end(
    run: SGDRun,
    train: GradientNoise,
    held_out: GradientNoise,
    scales: Tensor,
    draws: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Held-out and training losses of each datum at the end, ``[1 + K, N]`` each.

    The first row is without virtual noise, the others are means over it, one for every s.
    """
    final = run.final.to(held_out.position)
    length = math.sqrt(len(run.positions) * run.every)
    xi = torch.randn(draws, len(final), generator=generator).to(final)
    outside: list[Tensor] = []
    inside: list[Tensor] = []
    for found, noise in ((outside, held_out), (inside, train)):
        found.append(_losses(noise, final.unsqueeze(0)))
        found.extend(_losses(noise, final + s * length * xi) for s in scales.tolist())
    return torch.stack(outside), torch.stack(inside)


def _losses(noise: GradientNoise, points: Tensor) -> Tensor:
    """The loss of each datum, averaged over points ``[P, D]``, ``[N]`` in float64."""
    total = points.new_zeros(noise.num_data, dtype=torch.float64)
    with torch.no_grad():
        for point in points:
            for start in range(0, noise.num_data, noise.chunk_size):
                stop = min(start + noise.chunk_size, noise.num_data)
                total[start:stop] += noise.samples.losses(point, start, stop).double()
    return total / len(points)


def _gradients(noise: GradientNoise, points: Tensor) -> Tensor:
    """The mean gradient at points ``[P, D]``, many at a time where the model allows it."""
    samples = noise.samples
    if samples.random or samples.looping:
        return torch.stack([noise.at(point).gradient for point in points])
    total = torch.zeros_like(points)
    size = min(noise.chunk_size, noise.num_data)
    together = max(1, _MOST_VALUES // (size * points.shape[1]))
    for start in range(0, noise.num_data, size):
        stop = min(start + size, noise.num_data)

        def loss(theta: Tensor, a: int = start, b: int = stop) -> Tensor:
            return samples.losses(theta, a, b).sum()

        slope = torch.func.vmap(torch.func.grad(loss), chunk_size=together)
        total += slope(points).detach()
    return total / noise.num_data


def _check_held_out(train: GradientNoise, held_out: GradientNoise) -> None:
    if train.num_params != held_out.num_params:
        raise ValueError(
            f"train and held_out must be of one model, got {train.num_params} and "
            f"{held_out.num_params} parameters."
        )
    seen = _rows(train)
    again = sum(row in seen for row in _rows(held_out))
    if 2 * again > held_out.num_data:
        raise ValueError(
            f"{again} of the {held_out.num_data} held-out data are training data: the mean "
            "gradient of the training data in place of the population's makes the noise V_t too "
            "small and the bound invalid. Give data that no run has seen."
        )


def _rows(noise: GradientNoise) -> set[bytes]:
    leaves = [
        leaf.cpu().flatten(1) if leaf.ndim > 1 else leaf.cpu().unsqueeze(1)
        for leaf in pytree.tree_leaves(noise.samples.data)
    ]
    parts = zip(*([row.numpy().tobytes() for row in leaf] for leaf in leaves), strict=True)
    return {b"".join(part) for part in parts}
