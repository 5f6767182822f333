"""A set of draws as data: particles, statistics, and what they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias, cast

import torch
from torch import Tensor

from particlevi._checks import (
    as_list,
    check_choice,
    check_flag,
    check_is,
    check_positive_int,
    is_integer,
)
from particlevi.drawset.moments import Moments
from particlevi.drawset.page import counts_of, html_of
from particlevi.drawset.parts import (
    check_agree,
    check_particles,
    check_stats,
    check_width,
    joined,
    places,
    raveled,
    warn_of_others,
    what_is_missing,
)
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential
from particlevi.typing import Facts, Potential

__all__ = ["DrawSet", "Index", "Kind", "check_draws"]

Index: TypeAlias = int | slice | Sequence[int] | Tensor
"""Which chains or draws: a number, a range, a list of numbers, or a LongTensor or mask."""

Kind: TypeAlias = Literal["chains", "ensemble", "particles", "independent"]


@dataclass(frozen=True, eq=False, repr=False)
class DrawSet:
    """Draws as data. ``pvi.Draws`` is this with predictions and diagnostics.

    Attributes:
        particles: what was kept, ``[P, T, K]``; all parameters (K = D) unless ``keep`` said
            otherwise. Chains that diverged are left out.
        stats: statistics per draw, ``[P, T]`` or ``[T]``: ``potential`` (in nats, on the minibatch
            of the step that ended in the draw, where its gradient was evaluated), temperatures,
            ``step``, ``step_size`` and other scheduled scalars.
        warmup, warmup_stats: the same of the warm-up, if it was kept.
        chains: which of the chains started are in ``particles``.
        diverged: chains left out, with the step at which they diverged.
        interrupted: whether Ctrl-C ended the run.
        minibatch: whether gradients were those of minibatches.
        seconds: that the run took.
        num_steps: that were made.
        coordinates: the parameters kept, ``[K]``, if only some were.
        output_shape: ``[B, ...]`` of the outputs kept in place of parameters, if so.
        kept: what ``particles`` hold side by side, by name, with shapes: ``"parameters"``,
            ``"outputs"``, ``"projections"``. Empty where they are parameters or outputs only.
        moments: mean and variance of all parameters over the draws, if they were kept.
        shapes: of the potential's tensors, by name.
        facts: what the draws are, as the sampler declares it.
        gradients: of the potential, on a batch each, that the run took over all particles; None
            where that is not known.
        groups: the groups of parameters that the estimator takes to be independent, ``[D]``.
        pooled: whether its history is that of all chains together.
        metric: the map to theta from the coordinates in which the method moved, ``[D]`` or
            ``[D, D]``, if it moved in others.
        end: positions of all particles at the end of the run, ``[Q, D]``, if they are not the last
            draws.
        attrs: sampler, estimator, settings and seed, for the record.
        fingerprint: of the potential.
        potential: what was sampled; None for draws loaded without it. A pickle, as between
            processes, leaves it behind: ``dataclasses.replace(draws, potential=...)``.

    Raises:
        TypeError: particles that are no tensor.
        ValueError: particles or statistics whose shapes do not belong together, or particles of
            another width than the potential's.
    """

    particles: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)
    warmup: Tensor | None = None
    warmup_stats: Mapping[str, Tensor] = field(default_factory=dict)
    chains: list[int] = field(default_factory=list)
    diverged: dict[int, int] = field(default_factory=dict)
    interrupted: bool = False
    minibatch: bool = False
    seconds: float = math.nan
    num_steps: int = 0
    coordinates: Tensor | None = None
    output_shape: tuple[int, ...] | None = None
    kept: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    moments: Moments | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    facts: Facts = field(default_factory=Facts)
    gradients: float | None = None
    groups: Tensor | None = None
    pooled: bool = False
    metric: Tensor | None = None
    end: Tensor | None = None
    attrs: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    potential: ModelPotential | None = None

    def __post_init__(self) -> None:
        for name in ("interrupted", "minibatch", "pooled"):
            check_flag(name, getattr(self, name))
        if self.potential is not None:
            check_is("potential", self.potential, ModelPotential, "what from_module makes")
        if self.coordinates is not None:
            check_is("coordinates", self.coordinates, Tensor, "a LongTensor [K]")
            if self.coordinates.ndim != 1 or self.coordinates.dtype != torch.long:
                raise ValueError(
                    "coordinates must be a LongTensor [K], got "
                    f"{self.coordinates.dtype} {list(self.coordinates.shape)}."
                )
        if self.output_shape is not None:
            for each in as_list("output_shape", self.output_shape, "a tuple of sizes"):
                check_positive_int("each of output_shape", each)
        check_particles(self.particles)
        check_width(self.particles.shape[-1], self._width())
        check_stats(self.stats, self.particles)
        if self.warmup is not None:
            check_particles(self.warmup)
            check_stats(self.warmup_stats, self.warmup)

    def _width(self) -> tuple[int, str] | None:
        """K as it must be, and why."""
        if self.kept:
            return sum(math.prod(s) for s in self.kept.values()), f"what was kept {dict(self.kept)}"
        if self.output_shape is not None:
            return math.prod(self.output_shape), f"outputs {list(self.output_shape)}"
        if self.coordinates is not None:
            return len(self.coordinates), "the coordinates kept"
        if self.potential is not None:
            return self.potential.num_params, "the potential's parameters"
        if self.shapes:
            return sum(math.prod(s) for s in self.shapes.values()), f"tensors {dict(self.shapes)}"
        return None

    def __repr__(self) -> str:
        notes = [str(self.attrs["sampler"])] if "sampler" in self.attrs else []
        notes += [] if math.isnan(self.seconds) else [f"{self.seconds:.1f} s"]
        notes += ["interrupted"] if self.interrupted else []
        notes += [f"{len(self.diverged)} diverged"] if self.diverged else []
        return f"Draws({'; '.join([counts_of(self), *[', '.join(notes)] * bool(notes)])})"

    def _repr_html_(self) -> str:
        return html_of(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "potential": None}

    @property
    def interacting(self) -> bool:
        """Whether the particles saw each other, so that they are no chains."""
        return self.facts.interacting

    @property
    def complete(self) -> bool:
        """Whether all parameters were kept, so that the model can be evaluated at the draws."""
        return self.coordinates is None and self.output_shape is None and not self.kept

    def __len__(self) -> int:
        """P, the number of chains or particles."""
        return len(self.particles)

    def __iter__(self) -> Iterator[Self]:
        """One chain after the other."""
        return (self[chain] for chain in range(len(self)))

    def __getitem__(self, index: Index | tuple[Index, Index]) -> Self:
        """Some chains, ``draws[chains]``, or some draws of them, ``draws[chains, times]``.

        Both axes stay: ``draws[0]`` is one chain, ``draws[:, -1]`` one draw of each.

        Raises:
            IndexError: no chain or draw of that number.
        """
        if not isinstance(index, tuple):
            return self._some_chains(places("chain", index, len(self)))
        if len(index) != 2:
            raise IndexError(f"Draws have chains and draws, [P, T]; got {len(index)} indices.")
        chosen = self._some_chains(places("chain", index[0], len(self)))
        return chosen._some_draws(places("draw", index[1], self.particles.shape[1]))

    def _some_chains(self, rows: slice | Tensor) -> Self:
        if isinstance(rows, slice) and rows == slice(0, len(self), 1):
            return self

        def cut(stats: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: v[rows] if v.ndim == 2 else v for name, v in stats.items()}

        return replace(
            self,
            particles=self.particles[rows],
            stats=cut(self.stats),
            warmup=None if self.warmup is None else self.warmup[rows],
            warmup_stats=cut(self.warmup_stats),
            moments=None if self.moments is None else self.moments.chains(rows),
            chains=torch.tensor(self.chains)[rows].tolist() if self.chains else [],
            end=None,
        )

    def _some_draws(self, times: slice | Tensor) -> Self:
        stats = {name: value[..., times] for name, value in self.stats.items()}
        count = self.particles.shape[1]
        ends = torch.arange(count)[times][-1:].tolist() == [count - 1]
        end = self.end if ends else None
        every = isinstance(times, slice) and times == slice(0, count, 1)
        return replace(
            self,
            particles=self.particles[:, times],
            stats=stats,
            end=end,
            moments=self.moments if every else None,
        )

    def only(self, name: str) -> Self:
        """One of the things that were kept side by side: ``"parameters"``, ``"projections"`` ...

        Raises:
            ValueError: it was not kept.

        Examples:
            >>> import particlevi as pvi
            >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=3)
            >>> kept = [pvi.storage.parameters(), pvi.storage.projections(2)]
            >>> draws = pvi.sample(
            ...     pvi.sghmc(normal), step_size=0.5, num_particles=4, num_draws=10,
            ...     progress=False, store=pvi.storage.InMemory(keep=kept),
            ... )
            >>> draws.only("projections").particles.shape
            torch.Size([4, 10, 2])
        """
        check_choice("name", name, list(self.kept))
        start = 0
        for each, shape in self.kept.items():
            if each == name:
                break
            start += math.prod(shape)
        columns = slice(start, start + math.prod(shape))
        own = name == "parameters"
        return replace(
            self,
            particles=self.particles[..., columns],
            warmup=None if self.warmup is None else self.warmup[..., columns],
            coordinates=self.coordinates if own else None,
            output_shape=shape if name == "outputs" else None,
            kept={} if own or name == "outputs" else {name: shape},
        )

    def select(self, chains: list[int] | slice) -> Self:
        """The draws of some of the chains, by their place in ``particles``.

        Raises:
            ValueError: no chain of that number, or none at all.
        """
        num = len(self)
        rows = (
            list(range(num)[chains])
            if isinstance(chains, slice)
            else as_list("chains", chains, "a list of the chains' numbers, or a slice")
        )
        if not rows or not all(is_integer(row) and -num <= row < num for row in rows):
            raise ValueError(f"chains must be some of 0 ... {num - 1}, got {chains!r}.")
        return self[rows]

    def thin(self, every: int) -> Self:
        """Every ``every``-th draw of each chain, the last one among them."""
        check_positive_int("every", every)
        count = self.particles.shape[1]
        return self[:, (count - 1) % int(every) :: int(every)]

    def flat(self, thin: int = 1) -> Tensor:
        """The posterior sample ``[S, K]``: every ``thin``-th draw of every chain.

        Of particles of which only the last state is the sample (``facts.kind == "particles"``),
        only that: the earlier ones are the way to it.

        Raises:
            ValueError: there are no draws.
        """
        kept = self.by_chain(thin)
        return kept.reshape(-1, kept.shape[-1])

    def by_chain(self, thin: int = 1) -> Tensor:
        """As ``flat``, by chain: ``[P, T, K]``."""
        check_positive_int("thin", thin)
        self.check_some()
        last = self.facts.kind == "particles"
        return self.particles[:, -1:] if last else self.particles[:, :: int(thin)]

    def check_some(self) -> None:
        """There is a draw.

        Raises:
            ValueError: there is none, and how to get some.
        """
        if not self.particles[..., :1].numel():
            raise ValueError(
                f"There are no draws, particles are {list(self.particles.shape)}: the run ended "
                "before the first. Run longer (max_seconds=, num_draws=)."
            )

    def last(self) -> Tensor:
        """Positions at the end ``[Q, D]``, from which a run goes on: ``sample(initial=draws)``.

        Raises:
            ValueError: only a part of the parameters was kept.
        """
        if self.end is not None:
            return self.end
        self.check_complete()
        if not self.particles.shape[1]:
            raise ValueError("There are no draws to go on from: the run ended before the first.")
        return self.particles[:, -1]

    def model(self) -> ModelPotential:
        """The potential.

        Raises:
            ValueError: the draws came without it.
        """
        if self.potential is None:
            raise ValueError(
                "These draws came without their potential: pvi.load(path, potential=...), "
                "recorder.draws(potential), or dataclasses.replace(draws, potential=...)."
            )
        return self.potential

    def check_complete(self) -> None:
        """All parameters were kept.

        Raises:
            ValueError: what was kept, what is missing, and how to keep more.
        """
        if self.kept:
            raise ValueError(
                f"These draws hold {list(self.kept)}, so the model is not evaluated at them as a "
                'whole: take draws.only("parameters"), if all parameters are among them.'
            )
        if self.output_shape is not None:
            raise ValueError(
                "These draws are outputs already, at the inputs given to keep=outputs_at(...): "
                "they are in .particles; predictions elsewhere need the parameters."
            )
        if self.coordinates is not None:
            shapes = self.shapes or (self.potential.layout.shapes if self.potential else {})
            raise ValueError(what_is_missing(self.coordinates, shapes))

    def parameters(self, thin: int = 1) -> Tensor:
        """As ``flat``, of draws that hold all parameters, ``[S, D]``."""
        self.check_complete()
        return self.flat(thin)

    @classmethod
    def concat(cls, parts: Sequence[Self], along: Literal["chains", "draws"] = "draws") -> Self:
        """Sets of draws of one potential as one set.

        Args:
            parts: at least one. Statistics that all of them have are kept.
            along: ``"draws"``: later draws of the same chains, as of a run that was extended;
                ``"chains"``: more chains of as many draws.

        Raises:
            ValueError: no parts, parts of different kinds or potentials, or of shapes that do not
                fit.
        """
        check_choice("along", along, ["chains", "draws"])
        parts = cast("list[Self]", as_list("parts", parts, "a list of sets of draws"))
        for part in parts:
            check_draws(part, "each of parts")
        check_agree([(p.facts.kind, p.fingerprint, p.particles.shape) for p in parts], along)
        first, by_draws = parts[0], along == "draws"
        names = [name for name in first.stats if all(name in part.stats for part in parts)]
        gradients = [part.gradients for part in parts if part.gradients is not None]
        chains = [chain for part in parts for chain in part.chains]
        sizes = [(len(part), part.particles.shape[1]) for part in parts]
        return replace(
            first,
            particles=torch.cat([part.particles for part in parts], int(by_draws)),
            stats={
                name: joined([part.stats[name] for part in parts], sizes, along) for name in names
            },
            warmup=first.warmup if by_draws else None,
            warmup_stats=first.warmup_stats if by_draws else {},
            chains=first.chains if by_draws else chains if len(set(chains)) == len(chains) else [],
            diverged={k: v for part in parts for k, v in part.diverged.items()} if by_draws else {},
            interrupted=parts[-1].interrupted,
            seconds=sum(part.seconds for part in parts),
            num_steps=sum(part.num_steps for part in parts) if by_draws else first.num_steps,
            gradients=sum(gradients) if len(gradients) == len(parts) else None,
            end=parts[-1].end if by_draws else None,
            moments=None,
        )

    @classmethod
    def from_tensor(
        cls,
        particles: Tensor,
        potential: Potential | None = None,
        *,
        kind: Kind = "chains",
        seconds: float = math.nan,
    ) -> Self:
        """Draws from elsewhere: another library's, or iterates of your optimiser.

        Args:
            particles: ``[P, T, D]``, or ``[T, D]`` of one chain.
            potential: what they are draws of; predictions and diagnostics need it.
            kind: ``"chains"`` of a Markov chain or of iterates, in their order; ``"independent"``
                draws; ``"particles"``, of which the last state is the sample; ``"ensemble"``.
            seconds: that they took, for ESS per second.

        Examples:
            >>> import particlevi as pvi
            >>> draws = pvi.Draws.from_tensor(torch.randn(4, 100, 3))
            >>> len(draws), draws[:, 50:].particles.shape
            (4, torch.Size([4, 50, 3]))
        """
        check_choice("kind", kind, ["chains", "ensemble", "particles", "independent"])
        if isinstance(particles, Tensor) and particles.ndim == 2:
            particles = particles.unsqueeze(0)
        known: dict[str, Any] = {}
        if potential is not None:
            model = as_potential(potential)
            known["potential"] = model
            known["shapes"] = dict(model.layout.shapes)
            known["fingerprint"] = dict(model.fingerprint)
        return cls(
            particles.detach() if isinstance(particles, Tensor) else particles,
            seconds=seconds,
            facts=Facts(kind=kind),
            **known,
        )

    @classmethod
    def from_state_dicts(
        cls,
        potential: Potential,
        state_dicts: Sequence[Mapping[str, Tensor]] | Sequence[Sequence[Mapping[str, Tensor]]],
        *,
        kind: Kind = "chains",
        seconds: float = math.nan,
    ) -> Self:
        """Draws from weights of the module that the potential was made from.

        Args:
            potential: from ``from_module``; or from ``from_pyro``, and then values of the model's
                latent sites, on their own supports, take the place of weights.
            state_dicts: iterates of one chain, in their order, or a list of them for each chain.
                Running statistics of each are kept in the scale and shift of their layer, so that
                the draw is the same function of the inputs; other tensors that are not sampled are
                those of the potential's module for all draws, and a warning names those that
                differ.
            kind: as in ``from_tensor``; ``"independent"`` for an ensemble of trained nets.
            seconds: that they took, for ESS per second.

        Raises:
            ValueError: none at all, a tensor that is sampled is missing, or a value outside the
                support of its site.

        Examples:
            >>> import particlevi as pvi
            >>> net = torch.nn.Linear(2, 1)
            >>> model = pvi.from_module(net, pvi.Gaussian(0.1), pvi.Normal(1.0), num_data=10)
            >>> pvi.Draws.from_state_dicts(model, [net.state_dict()] * 5).particles.shape
            torch.Size([1, 5, 3])
        """
        check_is("potential", potential, ModelPotential, "a potential, as from_module makes")
        given = as_list("state_dicts", state_dicts, "a list of the module's state_dicts")
        if not given:
            raise ValueError("state_dicts holds no weights: give at least one state_dict.")
        expected = "a state_dict, or a list of them for each chain"
        chains = [
            [each] if isinstance(each, Mapping) else as_list("each of state_dicts", each, expected)
            for each in given
        ]
        if isinstance(given[0], Mapping):
            chains = [[state for chain in chains for state in chain]]
        counts = sorted({len(chain) for chain in chains})
        if len(counts) > 1 or not counts[0]:
            raise ValueError(f"Every chain needs as many state_dicts, and one or more: {counts}.")
        model = as_potential(potential)
        flat = [state for chain in chains for state in chain]
        rows = torch.stack([raveled(model, state) for state in flat])
        warn_of_others(model, flat)
        return cls.from_tensor(
            rows.view(len(chains), -1, rows.shape[1]), model, kind=kind, seconds=seconds
        )


def check_draws(draws: Any, name: str = "draws") -> None:
    """``draws`` are draws.

    Raises:
        TypeError: anything else.
    """
    check_is(name, draws, DrawSet, "draws, as sample gives them or pvi.Draws.from_tensor")
