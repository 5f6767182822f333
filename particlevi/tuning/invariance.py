"""Are these draws of the posterior? An exact kernel leaves the posterior where it is.

From draws of each chain a Metropolis-adjusted kernel on all the data goes on for a while. Draws of
the posterior do not move in law; those of SGD, of a hot minibatch chain, or of collapsed particles
do. For functionals f (potential, log-likelihood, log prior, outputs of the model) the change of a
chain is the mean over its starts of ``f(end) - f(start)``.

The kernel is reversible, so that under the null the start and the end of a chain are exchangeable,
and its change is as likely as its negative. The test statistic is the largest ``|t|`` over the
functionals, and its p-value the share of all ways to flip the signs of whole chains with one as
large: exact for one start per chain, and held to 5 % by simulation for several. R-hat is blind to
what this sees: chains that agree on a wrong law.

The kernel is tuned on draws that are not starts.

References: Gandy and Scott, "Unit testing for MCMC and other Monte Carlo methods", 2020, for tests
by invariance; Lehmann and Romano, "Testing statistical hypotheses", 2005, chapter 15, for
randomisation tests.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from particlevi import _html
from particlevi._checks import check_positive, check_positive_int, check_seed
from particlevi.data import Data, DataLike, as_data, as_particles
from particlevi.diagnostics.outputs import as_inputs
from particlevi.diagnostics.views import identified
from particlevi.drawset import DrawSet, check_draws
from particlevi.potentials.chunks import chunks
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers.randomized_hmc import randomized_hmc
from particlevi.streams import ParticleStreams
from particlevi.tuning.dual_averaging import advance, begin
from particlevi.tuning.objective import probe_batch
from particlevi.typing import Batch, Streams

__all__ = ["Invariance", "check_invariance", "sign_flip_test"]

_LEAPFROGS = 10
_ACCEPTANCE = 0.9
TUNING_STEPS = 80
_TUNING_DRAWS = 8
_MOST_FLIPS = 4096
_PROBES = 20


@dataclass(frozen=True, repr=False)
class Invariance:
    """What an exact kernel did to the draws.

    Attributes:
        p_value: of the null that they are draws of the posterior.
        shifts: mean change of each functional, in standard deviations of the functional where the
            kernel arrived, with its standard error. The kernel is short, so that the draws are at
            least so far off.
        tolerance: the shift that is held to be harmless.
        level: of the test.
        acceptance: of the kernel.
        num_gradients: on all the data, of one particle, that this took.
        seconds: that this took.
    """

    p_value: float
    shifts: dict[str, tuple[float, float]]
    tolerance: float
    level: float
    acceptance: float
    num_gradients: int
    seconds: float

    @property
    def moved(self) -> bool:
        """Whether the test rejects."""
        return self.p_value <= self.level

    @property
    def largest(self) -> tuple[str, float, float]:
        """The functional that moved most for its error: name, shift, standard error."""
        name = max(self.shifts, key=lambda key: abs(self.shifts[key][0]) / self.shifts[key][1])
        return name, *self.shifts[name]

    @property
    def ok(self) -> bool:
        """Neither rejected, nor possibly off by more than is harmless."""
        return not (self.moved and self._worst() > self.tolerance)

    def _worst(self) -> float:
        return max(abs(shift) for shift, _ in self.shifts.values())

    def __repr__(self) -> str:
        return f"Invariance(p = {self.p_value:.2g}, {'ok' if self.ok else 'moved'})"

    def _repr_html_(self) -> str:
        rows = [(name, f"{s:+.3g}", f"{e:.2g}") for name, (s, e) in self.shifts.items()]
        return _html.block(
            "Invariance under an exact kernel",
            _html.notes([("" if self.ok else "wrong", str(self))]),
            _html.table(("functional", "shift, in posterior sds", "error"), rows),
        )

    def __str__(self) -> str:
        name, shift, error = self.largest
        if not self.moved and abs(shift) > self.tolerance + 4 * error:
            verdict = "An exact kernel may move these draws, of too few chains to be sure"
        elif not self.moved:
            verdict = "An exact kernel does not move these draws"
        elif self.ok:
            verdict = "An exact kernel moves these draws, by less than the tolerance"
        else:
            verdict = "These are not draws of the posterior: an exact kernel moves them"
        return (
            f"{verdict} (p = {self.p_value:.2g}). Most moved: {name}, by {shift:+.3g} +- "
            f"{error:.2g} posterior standard deviations (tolerance {self.tolerance:g}). It took "
            f"{self.num_gradients} gradients on all the data, {self.seconds:.1f} s, at an "
            f"acceptance of {self.acceptance:.2f}."
        )


def sign_flip_test(changes: Tensor, generator: torch.Generator) -> float:
    """The p-value of ``changes [C, F]`` being symmetric around zero, chains independent.

    The statistic is the largest ``|t|`` of the F columns; all ``2^(C-1)`` flips up to 4096, else so
    many at random and the one at hand.

    >>> changes = torch.tensor([[1.0, 0.1], [1.1, -0.2], [0.9, 0.1], [1.2, 0.0], [1.0, -0.1]])
    >>> sign_flip_test(changes, torch.Generator())
    0.0625
    """
    num = len(changes)
    changes = changes.double().cpu()
    if 2 ** (num - 1) <= _MOST_FLIPS:
        flips = torch.tensor(list(itertools.product([1.0, -1.0], repeat=num - 1))).double()
        flips = torch.cat([torch.ones(len(flips), 1).double(), flips], 1)
    else:
        flips = torch.randint(0, 2, (_MOST_FLIPS, num), generator=generator).double() * 2 - 1
        flips[0] = 1
    square = changes.square().mean(0)
    mean = flips @ changes / num
    # t is increasing in |mean| / sqrt(mean square), which flips leave below alone.
    statistic = (mean.abs() / square.sqrt().clamp(min=1e-300)).amax(1)
    return float((statistic >= statistic[0] * (1 - 1e-9)).double().mean())


def check_invariance(
    draws: DrawSet,
    data: DataLike = None,
    *,
    num_starts: int = 4,
    num_steps: int = 150,
    tolerance: float = 0.1,
    inputs: Any = None,
    seed: int = 0,
) -> Invariance:
    """Go on from the draws with an exact kernel, and test whether anything moves.

    The kernel is ``randomized_hmc`` with ten leapfrog steps a trajectory, at an acceptance of 0.9,
    in units of the draws' standard deviations. It takes ``num_steps`` gradients on all the data
    per start.

    Source: Gandy and Scott, "Unit testing for MCMC and other Monte Carlo methods", 2020.

    Args:
        draws: of chains, from anywhere (``pvi.Draws.from_tensor``); of interacting particles, each
            counts as a chain, and its last state is the start.
        data: as given to ``sample``.
        num_starts: draws of each chain to start from, evenly spread.
        num_steps: leapfrog steps from each.
        tolerance: a shift, in posterior standard deviations, that is harmless.
        inputs: at which outputs of the model are looked at; some of the data if absent.
        seed: of the kernel.

    Raises:
        ValueError: fewer than five chains, of which no test at 5 % can be made; draws without
            their potential, or of a part of the parameters.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -0.5 * x.square().sum(), num_params=3)
        >>> exact = torch.randn(8, 50, 3, generator=torch.Generator().manual_seed(0))
        >>> check_invariance(pvi.Draws.from_tensor(exact, normal)).moved
        False
        >>> check_invariance(pvi.Draws.from_tensor(1.5 * exact, normal)).moved
        True
    """
    check_draws(draws)
    check_positive_int("num_starts", num_starts)
    check_positive_int("num_steps", num_steps)
    check_positive("tolerance", tolerance)
    check_seed("seed", seed)
    began = time.perf_counter()
    draws.check_complete()
    potential = draws.model()
    particles = draws.particles[:, -1:] if draws.interacting else draws.particles
    checked = as_data(data, potential)
    starts, others = _split(particles, num_starts)
    chains, per_chain = starts.shape[:2]
    if chains < 5:
        raise ValueError(
            f"A test at 5 % by flipping signs needs at least 5 chains, got {chains}: run more "
            "chains (num_particles=8)."
        )
    generator = torch.Generator(potential.device).manual_seed(int(seed))
    begin_at = as_particles(starts.flatten(0, 1), potential, potential.num_params)
    # Not of the starts: a kernel that knows them is not reversible.
    spread = others.flatten(0, 1).double().std(0)
    scale = torch.where(spread > 0, spread, 1.0).to(begin_at)
    streams = ParticleStreams(int(seed), "invariance", device=potential.device)
    kernel = _Kernel(potential, checked, scale, streams)
    kernel.tune(others[:, 0].to(begin_at))
    end_at, acceptance = kernel.run(begin_at, num_steps)
    probe = probe_batch(potential, checked, _PROBES)
    if potential.model is not None and inputs is not None:
        probe = as_inputs(inputs, potential)
    names, before = _functionals(potential, checked, probe, begin_at)
    _, after = _functionals(potential, checked, probe, end_at)
    changes = (after - before).view(chains, per_chain, -1).mean(1)
    moving = changes.abs().amax(0) > 0
    unit = after.std(0)
    shift, error = changes.mean(0) / unit, changes.std(0) / math.sqrt(chains) / unit
    keep = (moving & (unit > 0)).nonzero().flatten().tolist()
    return Invariance(
        p_value=sign_flip_test(changes[:, keep], generator) if keep else 1.0,
        shifts={names[k]: (float(shift[k]), float(error[k])) for k in keep},
        tolerance=float(tolerance),
        level=0.05,
        acceptance=acceptance,
        num_gradients=kernel.num_gradients,
        seconds=time.perf_counter() - began,
    )


def _split(particles: Tensor, num_starts: int) -> tuple[Tensor, Tensor]:
    """Starts ``[C, S, D]``, and up to 8 other draws of each chain, if there are any."""
    num_draws = particles.shape[1]
    if num_draws == 1:
        return particles, particles
    num_starts = min(num_starts, num_draws // 2)
    starts = torch.linspace(0, num_draws - 1, 2 * num_starts).round().long()[1::2]
    rest = torch.tensor(sorted(set(range(num_draws)) - set(starts.tolist())))
    others = rest[torch.linspace(0, len(rest) - 1, min(len(rest), _TUNING_DRAWS)).round().long()]
    return particles[:, starts], particles[:, others]


class _Kernel:
    """``randomized_hmc`` on all the data, in units of ``scale [D]``."""

    def __init__(self, potential: ModelPotential, data: Data, scale: Tensor, streams: Streams):
        self.sampler = randomized_hmc(potential)
        self.batch = data.whole() if data.num_data else None
        self.streams = streams
        self.scale = scale
        self.step_size = scale.new_tensor(0.5 * scale.numel() ** -0.25)
        self.num_gradients = 0

    def tune(self, points: Tensor) -> None:
        """Find the step size by dual averaging from these points."""
        averages = begin(self.step_size.double(), 2.0)
        state = self.sampler.init(points, self.streams)
        for _ in range(TUNING_STEPS):
            self.step_size = averages.log_step.exp().to(self.scale)
            state, info = self._step(state, 10.0)
            acceptance = torch.where(torch.isfinite(info.acceptance), info.acceptance, 0.0).mean()
            averages = advance(averages, acceptance.double(), _ACCEPTANCE)
        self.step_size = averages.log_average.exp().to(self.scale)

    def run(self, points: Tensor, num_steps: int) -> tuple[Tensor, float]:
        """Where ``num_steps`` leapfrog steps from these points led, and the acceptance."""
        state = self.sampler.init(points, self.streams)
        accepted, tested = 0.0, 0.0
        for _ in range(num_steps + 1):
            state, info = self._step(state, math.inf)
            accepted += float((info.acceptance * info.tested).sum())
            tested += float(info.tested.sum())
        return state.position, accepted / max(1.0, tested)

    def _step(self, state: Any, patience: float) -> tuple[Any, Any]:
        self.num_gradients += len(state.position)
        controls = {
            "step_size": self.step_size,
            "trajectory_length": _LEAPFROGS * self.step_size,
            "patience": self.step_size.new_tensor(patience),
            "scale": self.scale,
        }
        with torch.no_grad():
            noise = self.sampler.draw_noise(state, self.streams)
            return self.sampler.step(state, self.batch, noise, controls)


def _functionals(
    potential: ModelPotential, data: Data, probe: Batch | None, points: Tensor
) -> tuple[list[str], Tensor]:
    """Names, and values ``[S, F]`` in float64."""
    prior = potential.prior_energy(points).double()
    apart = potential.energy_fn is None
    names, columns = ["potential"], [prior]
    if data.num_data:
        fit = torch.zeros_like(prior)
        for batch in data.chunks(potential.at_once(4096)):
            parts = [
                potential.data_energy(part, piece).double()
                for part, piece in chunks(points, batch, potential.chunk_size)
                if piece is not None
            ]
            fit = fit + torch.cat(parts)
        names += ["log_prior", "log_likelihood"] if apart else []
        columns = [prior + fit, -prior, -fit] if apart else [prior + fit]
    if probe is not None:
        with torch.no_grad():
            outputs = torch.cat(
                [
                    potential.outputs(part, probe)
                    for part, _ in chunks(points, probe, potential.chunk_size)
                ]
            ).double()
        flat = identified(potential, outputs).flatten(1)
        names += [f"output {k}" for k in range(flat.shape[1])]
        columns += list(flat.T)
    elif points.shape[1] <= 100:
        names += [f"parameter {k}" for k in range(points.shape[1])]
        columns += list(points.double().T)
    return names, torch.stack(columns, 1).detach()
