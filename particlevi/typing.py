"""The five concepts as types: read this first.

``Potential -> GradientEstimator -> Sampler``, driven by ``Schedule``, run by ``sample()``.

Shape letters used everywhere: P particles or chains, D parameters, N data, B batch, T draws.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi import _html

__all__ = [
    "JSON",
    "Batch",
    "BatchLaw",
    "Controls",
    "Facts",
    "Gradient",
    "GradientEstimator",
    "Grouped",
    "Landscape",
    "Potential",
    "Progress",
    "ProposalTuner",
    "Proposals",
    "Requirements",
    "Sampler",
    "SamplerState",
    "Schedule",
    "Streams",
    "Tuner",
    "World",
]

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None
Schedule: TypeAlias = Callable[[int], float]
"""A scalar as a function of the step, counted from 0 and including warm-up."""

BatchLaw: TypeAlias = Literal["all", "independent", "subset", "epoch", "loader"]
"""How the data of a batch were drawn: see ``Batch``."""

Controls: TypeAlias = Mapping[str, Tensor]
"""What may change between steps without compiling anew, by name.

0-d tensors: ``step_size`` and whatever the sampler schedules or a tuner chooses. A tuner may add
the metric: ``scale [D]``, or ``factor [D, D]``, the linear map ``theta = scale * z`` or
``theta = factor @ z`` to the coordinates z in which the method moves.
"""


class Batch(NamedTuple):
    """A minibatch.

    Attributes:
        data: a tensor, or a tuple, list or dict of them. Leaves are ``[P, B, ...]`` when every
            particle has its own minibatch, ``[B, ...]`` when all share one.
        per_particle: which of the two.
        scale: the weight of the batch's log-likelihood, 0-d; N/B if absent.
        law: how its data were drawn. ``"all"``: every datum once, so that the energy is exact.
            ``"independent"``: with replacement. ``"subset"``: a random choice, fresh at every step.
            ``"epoch"``: without replacement over many steps. ``"loader"``: as a loader gives them.
            None if whoever made it does not say; it is then taken for independent.
    """

    data: Any
    per_particle: bool = False
    scale: Tensor | None = None
    law: BatchLaw | None = None

    @property
    def size(self) -> int:
        """B, of every particle."""
        size: int = pytree.tree_leaves(self.data)[0].shape[1 if self.per_particle else 0]
        return size


@runtime_checkable
class Potential(Protocol):
    """What is sampled: ``U(theta) = -log p(theta, data)`` in nats, total, not mean.

    These three members are enough to sample. ``particlevi.potentials.protocol.as_potential`` lists
    what else an object may have, and what is done without it.
    """

    @property
    def num_params(self) -> int:
        """D, the number of parameters in a particle."""
        ...

    @property
    def num_data(self) -> int | None:
        """N, or None for a density without data."""
        ...

    def __call__(self, particles: Tensor, batch: Batch | None = None) -> Tensor:
        """Energies ``[P]`` of particles ``[P, D]``, unbiased on a minibatch."""
        ...


class Gradient(NamedTuple):
    """An estimate of the gradient ``[P, D]`` of the potential, and of the potential ``[P]``."""

    gradient: Tensor
    potential: Tensor


@dataclass(frozen=True)
class Facts:
    """What the draws of a method are, so that diagnostics need not know methods by name.

    Attributes:
        kind: ``"chains"``, each a Markov chain; ``"ensemble"``, particles that see each other, and
            every kept state is a draw; ``"particles"``, particles that see each other, of which the
            last state is the sample and the earlier ones are the way to it; ``"independent"``,
            independent draws of a law that was fitted.
        kinetic: the mean of the kinetic temperature that is reported, with exact gradients on a
            Gaussian: ``"target"``, T; ``"leapfrog"``, ``T - h^2 E|grad U|^2 / (4 D)``; ``"below"``,
            at most T; ``"above"``, at least T; ``"held"``, T whatever the noise, by a thermostat.
        thermostat: where a thermostat rests without gradient noise.
    """

    kind: Literal["chains", "ensemble", "particles", "independent"] = "chains"
    kinetic: Literal["target", "leapfrog", "below", "above", "held"] = "target"
    thermostat: float | None = None

    @property
    def interacting(self) -> bool:
        """Whether particles see each other, so that they are no chains."""
        return self.kind in ("ensemble", "particles")


@runtime_checkable
class Grouped(Protocol):
    """An estimator whose law takes groups of parameters to be independent."""

    @property
    def groups(self) -> Tensor:
        """Group numbers ``[D]``."""
        ...

    @property
    def pooled(self) -> bool:
        """Whether its history is that of all chains together."""
        ...


class Progress(NamedTuple):
    """Where the loop stands after a step."""

    step: int
    """Steps done so far."""
    num_warmup: int
    num_steps: int


@dataclass(frozen=True)
class Requirements:
    """What the law of a method rests on, checked where method, estimator and batches meet.

    Attributes:
        all_data: every step sees every datum once, since the method accepts or rejects by the
            energy.
        energy: the value of the potential is used and not only its gradient, so that the gradient
            must be that of the value, and the value the same at every evaluation.
        independent_data: the batches of different steps are independent, since the method takes
            the noise of the gradient for independent from step to step.
        own_batches: particles do not share a minibatch, since the method takes the noise of their
            energies for independent of each other.
        chains: particles must not see each other.
    """

    all_data: bool = False
    energy: bool = False
    independent_data: bool = False
    own_batches: bool = False
    chains: bool = False


class Streams(Protocol):
    """Random numbers that belong to particles.

    Row i of what is drawn depends on the seed and on the number of its particle, and on nothing
    else. ``shared`` gives numbers that all particles share.
    """

    def normal(self, shape: Sequence[int], dtype: torch.dtype = ...) -> Tensor:
        """Standard normal numbers ``[P, ...]``."""
        ...

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = ...) -> Tensor:
        """Numbers in [0, 1), ``[P, ...]``."""
        ...

    def integers(self, high: int, shape: Sequence[int]) -> Tensor:
        """Integers from 0 to below ``high``, ``[P, ...]``."""
        ...

    def gamma(self, concentration: float, shape: Sequence[int]) -> Tensor:
        """Gamma variates of scale 1 in float64, ``[P, ...]``."""
        ...

    @property
    def shared(self) -> Streams:
        """One stream for all, whatever the shape."""
        ...


class GradientEstimator(Protocol):
    """How the gradient of a potential is estimated. Interchangeable under every sampler.

    ``__call__`` is pure and compiled; ``draw_noise`` holds all the randomness; ``record`` runs
    between steps, outside compiled code, and may reuse the storage of the state it is given.
    """

    @property
    def name(self) -> str:
        """The estimator."""
        ...

    @property
    def potential(self) -> Any:
        """What is sampled."""
        ...

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        ...

    @property
    def gradients(self) -> int:
        """Gradients of the potential on a batch that one estimate takes."""
        ...

    @property
    def conservative(self) -> bool:
        """Whether the gradient is that of the potential which comes with it."""
        ...

    @property
    def interacting(self) -> bool:
        """Whether the estimate for a particle depends on the others."""
        ...

    def init(self, particles: Tensor, streams: Streams) -> Any:
        """The estimator's state: a NamedTuple of tensors, empty if it has none."""
        ...

    def draw_noise(self, state: Any, streams: Streams) -> Any:
        """The random numbers of one evaluation: a tensor, a tuple of them, or ``()``."""
        ...

    def __call__(self, state: Any, particles: Tensor, batch: Batch | None, noise: Any) -> Gradient:
        """The estimate at ``particles [P, D]``."""
        ...

    def record(self, state: Any, particles: Tensor, progress: Progress) -> Any:
        """The state after a step that ended at ``particles``."""
        ...

    def nbytes(self, num_particles: int) -> int:
        """Memory of the state in bytes."""
        ...


class World(Protocol):
    """Which particles are here, and what is computed over those of all processes.

    Every reduction is over particles, the first axis, of all processes, and gives the same tensor
    in each.
    """

    def share(self, num_particles: int) -> range:
        """The particles of this process."""
        ...

    def grid(self, values: Tensor, bits: int = ...) -> Tensor:
        """``[P, ...]`` in float64, rounded so that sums are exact in any order.

        So many bits are left below the largest over particles. With 20, sums of products of two of
        them are exact as well.
        """
        ...

    def sum(self, values: Tensor) -> Tensor:
        """The sum over particles of ``[P, ...]``, ``[...]``."""
        ...

    def mean(self, values: Tensor) -> Tensor:
        """The mean over particles of ``[P, ...]``, ``[...]``."""
        ...

    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors ``[P, ...]`` of all particles, from those of each process."""
        ...


class Tuner(Protocol):
    """Controls of the next steps, from what the last ones reported; it ends with the warm-up.

    Its state is a NamedTuple of tensors, saved with a checkpoint. What ``controls`` gives takes the
    place of schedules of the same name, during the warm-up and, frozen, after it.
    """

    @property
    def name(self) -> str:
        """The tuner."""
        ...

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its arguments, for the record."""
        ...

    def init(self, position: Tensor, controls: Controls) -> Any:
        """The first state, from the starting points ``[P, D]`` and the schedules' first values."""
        ...

    def controls(self, state: Any) -> Controls:
        """What the next step is to use."""
        ...

    def update(
        self, state: Any, position: Tensor, info: Any, progress: Progress, world: World
    ) -> Any:
        """The state after a step of the warm-up, which ended at ``position``."""
        ...

    def report(self, state: Any) -> Mapping[str, JSON]:
        """What was chosen and what it rests on, for the record of the draws."""
        ...


class Proposals(NamedTuple):
    """Trajectories at their ends, before a test, in the coordinates in which the method moves.

    Attributes:
        start, end: positions ``[P, D]``.
        velocity: at the end, ``[P, D]``, the change of the position per unit of time.
        time: from start to end, ``[P]``.
        probability: of acceptance, ``[P]``; 0 where no trajectory ended.
    """

    start: Tensor
    end: Tensor
    velocity: Tensor
    time: Tensor
    probability: Tensor


@runtime_checkable
class ProposalTuner(Tuner, Protocol):
    """A tuner that may learn from proposals beside what every step reports."""

    @property
    def fewest_chains(self) -> int:
        """Chains that it takes to learn from their proposals; 0 if it does not look at them."""
        ...

    def consider(self, state: Any, proposals: Proposals, progress: Progress, world: World) -> Any:
        """The state after a step of the warm-up with these proposals; ``update`` comes next."""
        ...


class SamplerState(NamedTuple):
    """What the next step needs.

    Attributes:
        position: particles ``[P, D]``.
        memory: the method's own tensors (momenta, preconditioners ...), a NamedTuple.
        estimator: the state of the gradient estimator.
    """

    position: Tensor
    memory: Any
    estimator: Any


class Landscape(Protocol):
    """The potential on all its data where particles start, for a sampler's ``step_rule``.

    Attributes:
        points: starting points ``[P, D]``.
    """

    points: Tensor

    @property
    def noise(self) -> Tensor:
        """Variance of the gradient estimate over minibatches ``[D]``, 0 with all data."""
        ...

    def gradient_at(self, points: Tensor) -> Tensor:
        """The gradient ``[P, D]`` at points ``[P, D]``."""
        ...

    def curvature(self, scale: Tensor | None = None) -> float:
        """The largest eigenvalue of the Hessian in the coordinates ``theta / scale [D]``."""
        ...

    def rate(self, direction: Callable[[Tensor], Tensor]) -> float:
        """The spectral radius of the Jacobian of ``direction``, ``[P, D] -> [P, D]``."""
        ...


def _potential(info: Any, controls: Controls) -> Tensor:
    potential: Tensor = info.potential
    return potential


@dataclass(frozen=True, eq=False)
class Sampler:
    """How particles move: three pure functions and what the loop has to know about them.

    Attributes:
        name: the method.
        estimator: how the gradient is estimated; ``estimator.potential`` is what is sampled.
        init: ``(particles [P, D], streams) -> SamplerState``.
        draw_noise: ``(state, streams) -> noise``: the only randomness of a step.
        step: ``(state, batch, noise, controls) -> (state, info)``, a function of its arguments
            and nothing else. ``info`` is a NamedTuple of ``[P]`` tensors whose first field is
            ``potential``.
        record: ``(state, progress) -> state``, called between steps, outside compiled code; it
            may reuse the storage of its argument.
        records: whether ``record`` does anything. If not, many steps may be made at once, and
            ``draw_noise`` may look at nothing of the state but its shapes.
        schedules: scalars other than the step size that change over steps, by name.
        tunable: scalars that a tuner may choose beside the step size, with the values that they
            have where none does.
        settings: the arguments of the method, for the record.
        requires: what its law rests on.
        watched: ``(info, controls) -> [P]``, the potential that the particles feel, by which the
            loop tells a chain that runs away.
        shown: fields of info that the progress line shows, with their labels.
        draws: the particles whose states are draws of the posterior: all, or those that stand for
            the target.
        energy_error: ``info -> [P]``, the change of the energy over the last trajectory, in nats;
            one beyond 1000 is a divergent transition.
        work_bytes: ``P -> bytes`` of work space that a step takes beside its evaluations.
        observe: ``state -> statistics [P] by name``, read off the states of the kept draws only.
        proposals: ``(position before a step, state after it, info, controls) -> Proposals``, read
            off the states only where a tuner asks; None of a method whose trajectories have no
            length of their own.
        gradients_per_step: gradients of the potential on a batch that a step takes per particle.
        max_step_size: beyond which it is unstable on a Gaussian, as a function of the largest
            curvature; None where that is not known.
        step_rule: ``Landscape -> (step size, reason)``, of a method whose stable range is not a
            function of the curvature alone; where no rule can be right it raises a ValueError that
            says why. None where ``max_step_size`` tells, or nothing does.
        warning: ``(info, controls) -> str | None``, what is wrong with a step, if something is; the
            loop asks now and then after the warm-up, and warns once.
        facts: what its draws are.
        most_spread: up to how many particles that see each other can lie in different processes.
        on: ``estimator -> Sampler``, the same method with another estimate of the gradient.
    """

    name: str
    estimator: GradientEstimator
    init: Callable[[Tensor, Streams], SamplerState]
    draw_noise: Callable[[SamplerState, Streams], Any]
    step: Callable[[SamplerState, Batch | None, Any, Controls], tuple[SamplerState, Any]]
    record: Callable[[SamplerState, Progress], SamplerState]
    records: bool = True
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    tunable: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, JSON] = field(default_factory=dict)
    requires: Requirements = Requirements()
    watched: Callable[[Any, Controls], Tensor] = _potential
    shown: Mapping[str, str] = field(default_factory=dict)
    draws: slice = field(default_factory=lambda: slice(None))
    energy_error: Callable[[Any], Tensor] | None = None
    work_bytes: Callable[[int], int] | None = None
    observe: Callable[[SamplerState], Mapping[str, Tensor]] = lambda state: {}
    proposals: Callable[[Tensor, SamplerState, Any, Controls], Proposals] | None = None
    gradients_per_step: int = 1
    max_step_size: Callable[[float], float] | None = None
    step_rule: Callable[[Landscape], tuple[float, str]] | None = None
    warning: Callable[[Any, Controls], str | None] | None = None
    facts: Facts = Facts()
    most_spread: int = 0
    on: Callable[[GradientEstimator], Sampler] | None = None

    @property
    def interacting(self) -> bool:
        """Whether particles see each other, so that they are no chains."""
        return self.facts.interacting

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.name}({settings}) on {self.estimator.name} of {self.potential}"

    @property
    def equation(self) -> str:
        """The equations of a step, as the method's own file writes them; empty for others' own."""
        module = sys.modules.get(f"particlevi.samplers.{self.name}")
        return _first_block((module and module.__doc__) or "")

    def _repr_html_(self) -> str:
        facts = {"estimator": self.estimator.name, "potential": self.potential, **self.settings}
        return _html.block(
            f"Sampler {self.name}", _html.preformatted(self.equation), _html.pairs(facts)
        )

    @property
    def potential(self) -> Any:
        """What is sampled."""
        return self.estimator.potential


def _first_block(text: str) -> str:
    """The first literal block of a docstring, after ``::``, without its indentation."""
    lines: list[str] = []
    for line in text.partition("::\n")[2].splitlines():
        if line.strip() and not line.startswith(" "):
            break
        lines.append(line)
    return textwrap.dedent("\n".join(lines)).strip("\n")
