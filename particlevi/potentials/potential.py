"""The potential: what is sampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi import _html
from particlevi._checks import check_choice, check_has, check_particles, check_positive_int
from particlevi.potentials.arithmetic import pinned
from particlevi.potentials.layout import Groups, Layout
from particlevi.potentials.likelihoods import Likelihood, check_targets
from particlevi.potentials.prior_predictive import PriorPredictive, prior_predictive
from particlevi.potentials.starts import Starts
from particlevi.potentials.undefined import where_defined
from particlevi.streams import ParticleStreams
from particlevi.typing import JSON, Batch, Streams

__all__ = ["Energy", "Evaluation", "ModelPotential", "Outputs", "Sites"]

Energy: TypeAlias = Callable[[Tensor, Batch | None], Tensor]
"""Particles ``[P, D]`` and a batch to energies ``[P]``; each depends on its own particle only."""


def _identity(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@dataclass(frozen=True)
class Outputs:
    """What a model predicts, and the law of a target given that.

    Attributes:
        likelihood: the law of a datum given the outputs.
        function: particles and a batch of inputs to model outputs ``[P, B, ...]``.
    """

    likelihood: Likelihood
    function: Callable[[Tensor, Batch], Tensor]


@dataclass(frozen=True)
class Sites:
    """A model's own quantities.

    Attributes:
        constrain: from the tensors that are sampled to those of the model, as in Pyro models with
            constrained sites and likelihoods with a learned scale.
        predict: from constrained quantities ``[S, *shape]``, model arguments and a seed to draws of
            the observed sites ``[S, ...]``, for models that draw their own targets.
    """

    constrain: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _identity
    predict: Callable[[dict[str, Tensor], Any, int], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a potential is evaluated.

    Attributes:
        compilable: whether ``torch.compile`` can trace it without a graph break.
        chunk_size: at most so many particles are evaluated at once.
        random: whether the energy is drawn anew at every evaluation, as under dropout.
        factorised_prior: whether the prior is known to be a product over coordinates.
        takes_all_data: whether it can be evaluated on all the data only.
    """

    compilable: bool = True
    chunk_size: int | None = None
    random: bool = False
    factorised_prior: bool = False
    takes_all_data: bool = False

    def __post_init__(self) -> None:
        if self.chunk_size is not None:
            check_positive_int("chunk_size", self.chunk_size)
            object.__setattr__(self, "chunk_size", int(self.chunk_size))


_CHOICES = ("dropout", "batch_norm")


def _law(settings: JSON) -> str:
    """A law by its settings, ``Normal(scale=1.0)``."""
    if not isinstance(settings, Mapping):
        return str(settings)
    shown = ", ".join(f"{name}={value}" for name, value in settings.items() if name != "kind")
    return f"{settings.get('kind')}({shown})"


@dataclass(frozen=True, eq=False)
class ModelPotential:
    """``U(theta) = -log p(theta) - (N/B) sum_b log p(x_b | theta)`` in nats.

    Made by ``from_module``, ``from_pyro``, ``from_log_density`` and ``from_log_likelihood``, and by
    ``as_potential`` from an object of the caller's own.

    Attributes:
        layout: names and shapes of the tensors in a particle.
        num_data: N, or None for a density without data.
        log_prior_fn: particles ``[P, D]`` to log prior densities ``[P]``.
        log_likelihood_fn: particles and a batch to ``[P, B]``; None for a density without data.
        starts: ways to choose starting points.
        device, dtype: of the particles.
        energy_fn: particles and a batch to energies ``[P]``, where those are given as they are and
            not made of the two terms.
        model: outputs and the law of a datum given them, for models that have them.
        sites: the model's own quantities.
        evaluation: how the potential is evaluated.
        fingerprint: what identifies the potential in a checkpoint.
    """

    layout: Layout
    num_data: int | None
    log_prior_fn: Callable[[Tensor], Tensor]
    log_likelihood_fn: Callable[[Tensor, Batch], Tensor] | None
    starts: Starts
    device: torch.device
    dtype: torch.dtype
    energy_fn: Energy | None = None
    model: Outputs | None = None
    sites: Sites = field(default_factory=Sites)
    evaluation: Evaluation = field(default_factory=Evaluation)
    fingerprint: Mapping[str, JSON] = field(default_factory=dict)

    def __repr__(self) -> str:
        kind = self.fingerprint.get("kind", "density")
        dtype = str(self.dtype).removeprefix("torch.")
        return f"ModelPotential({kind}, D={self.num_params}, N={self.num_data}, {dtype})"

    def at_once(self, size: int) -> int:
        """Data to evaluate at once where ``size`` would do: all, if it takes no fewer."""
        whole = self.num_data if self.evaluation.takes_all_data else None
        return size if whole is None else whole

    def _repr_html_(self) -> str:
        prior = self.fingerprint.get("prior")
        laws = prior if isinstance(prior, Mapping) else {}
        shown: dict[str, object] = {"N, data": "none" if self.num_data is None else self.num_data}
        shown["D, parameters"] = self.num_params
        likelihood = self.fingerprint.get("likelihood")
        if isinstance(likelihood, Mapping):
            shown["likelihood"] = _law(likelihood)
        shown |= {f"prior of {name}": _law(law) for name, law in laws.items()}
        shown |= {name: self.fingerprint[name] for name in _CHOICES if self.fingerprint.get(name)}
        shown["where"] = f"{self.device}, {self.dtype}"
        tensors = [
            (name, " x ".join(map(str, shape)) or "one number", math.prod(shape))
            for name, shape in self.layout.shapes.items()
        ]
        return _html.block(
            f"Potential of a {self.fingerprint.get('kind', 'density')}",
            _html.preformatted(
                "U(theta) = -log p(theta) - sum_n log p(x_n | theta), in nats"
                if self.num_data is not None
                else "U(theta) = -log p(theta), in nats"
            ),
            _html.pairs(shown),
            _html.details(
                f"{len(tensors)} tensors", _html.table(("name", "shape", "size"), tensors)
            ),
        )

    @property
    def num_params(self) -> int:
        """D, the number of parameters in a particle."""
        return self.layout.num_params

    @property
    def likelihood(self) -> Likelihood | None:
        """The law of a datum given the model's outputs, if there is one."""
        return None if self.model is None else self.model.likelihood

    @property
    def chunk_size(self) -> int | None:
        """At most so many particles are evaluated at once."""
        return self.evaluation.chunk_size

    @property
    def compilable(self) -> bool:
        """Whether ``torch.compile`` can trace the potential without a graph break."""
        return self.evaluation.compilable

    @property
    def random(self) -> bool:
        """Whether the energy is drawn anew at every evaluation."""
        return self.evaluation.random

    @property
    def factorised_prior(self) -> bool:
        """Whether the prior is known to be a product over coordinates."""
        return self.evaluation.factorised_prior

    @property
    def predictive_fn(self) -> Callable[[dict[str, Tensor], Any, int], dict[str, Tensor]] | None:
        """Draws of the observed sites of a model that draws its own targets, or None."""
        return self.sites.predict

    def __call__(self, particles: Tensor, batch: Batch | None = None) -> Tensor:
        """Energies ``[P]``; on a minibatch of B data the likelihood is scaled by N/B."""
        if particles.ndim != 2 or particles.shape[1] != self.num_params:
            check_particles(particles, self.num_params)
        with pinned(self.device):
            return where_defined(self._energy, particles, batch)

    def _energy(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if self.energy_fn is not None:
            return self._whole(self.energy_fn, particles, batch)
        energy = -self.log_prior_fn(particles)
        if self.log_likelihood_fn is None:
            return energy
        log_likelihood = self._terms(particles, batch)
        return energy - self.scale(log_likelihood.shape[1], batch) * log_likelihood.sum(1)

    def prior_energy(self, particles: Tensor) -> Tensor:
        """The part ``[P]`` of the energy that is there once."""
        if self.energy_fn is not None and self.num_data is not None:
            return 0.0 * particles.sum(1)
        with pinned(self.device):
            return where_defined(lambda points, _: -self.log_prior_fn(points), particles, None)

    def data_energy(self, particles: Tensor, batch: Batch) -> Tensor:
        """The part ``[P]`` of the energy that these data bring.

        With ``prior_energy`` and summed over pieces that make up all the data, it is the energy.
        """
        if self.energy_fn is None:
            with pinned(self.device):
                return where_defined(
                    lambda points, part: -self._terms(points, part).sum(1), particles, batch
                )
        plain = batch._replace(scale=None)
        return self(particles, plain) / self.scale(batch.size)

    def _whole(self, energy: Energy, particles: Tensor, batch: Batch | None) -> Tensor:
        """An energy that is given as it is; its data weighted as the batch says."""
        plain = batch if batch is None else batch._replace(scale=None)
        values = energy(particles, plain)
        if batch is None or batch.scale is None:
            return values
        prior = -self.log_prior_fn(particles)
        return prior + batch.scale / self.scale(batch.size) * (values - prior)

    def scale(self, batch_size: int, batch: Batch | None = None) -> float | Tensor:
        """The weight of a batch's log-likelihood: the batch's own if it has one, else N/B.

        Raises:
            ValueError: a batch of more than N data, or of none.
        """
        num_data = batch_size if self.num_data is None else self.num_data
        if not 1 <= batch_size <= num_data:
            raise ValueError(
                f"A batch holds 1 to num_data={num_data} data, got {batch_size}: num_data must be "
                "the size of the whole training set."
            )
        if batch is not None and batch.scale is not None:
            return batch.scale
        return num_data / batch_size

    def log_prior(self, particles: Tensor) -> Tensor:
        """Log prior densities ``[P]``."""
        with pinned(self.device):
            return self.log_prior_fn(particles)

    def log_likelihood(self, particles: Tensor, batch: Batch | None) -> Tensor:
        """Log-likelihoods ``[P, B]``."""
        with pinned(self.device):
            return self._terms(particles, batch)

    def _terms(self, particles: Tensor, batch: Batch | None) -> Tensor:
        if self.log_likelihood_fn is None or batch is None:
            raise ValueError(
                "A log-likelihood needs a potential with terms of single data, and a batch: got "
                f"{'no batch' if batch is None else 'a density without such terms'}."
            )
        values = self.log_likelihood_fn(particles, batch)
        if values.ndim != 2 or values.shape[0] != particles.shape[0]:
            raise ValueError(
                "The log-likelihood must return one value per particle and datum, "
                f"[{particles.shape[0]}, B], got {list(values.shape)}. Do not sum over the data."
            )
        return values

    def outputs(self, particles: Tensor, batch: Batch) -> Tensor:
        """Model outputs ``[P, B, ...]`` at a batch of inputs."""
        if self.model is None:
            raise ValueError(
                "This potential has no outputs: it was made from a density or a Pyro model, not "
                "from a module. Where inputs= asked for them, leave it out. Draws of a Pyro model "
                "predict targets by draws.predict(inputs)."
            )
        if particles.ndim != 2 or particles.shape[1] != self.num_params:
            check_particles(particles, self.num_params)
        with pinned(self.device):
            values = self.model.function(particles, batch)
        if values.ndim < 2 or values.shape[1] != batch.size:
            raise ValueError(
                f"The model must give one output per datum: it gave {list(values.shape[1:])} for "
                f"{batch.size} inputs, whose first dimension counts the data."
            )
        return values

    def likelihood_parameters(self, particles: Tensor) -> dict[str, Tensor]:
        """The likelihood's own parameters in each particle, empty if it has none."""
        tensors = self.layout.unravel(particles)
        prefix = "likelihood."
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }

    def init(
        self, num_particles: int, streams: Streams | None = None, method: str = "default"
    ) -> Tensor:
        """Starting points ``[P, D]``, one independent draw per particle.

        Args:
            num_particles: P.
            streams: of random numbers; those of seed 0 if absent.
            method: one of ``potential.starts.methods``. Of a module: ``"fresh"`` (the module's own
                initialisation, drawn anew), ``"current"`` (its present weights in every particle),
                ``"jittered"`` (the same with 1 % of noise in all particles but the first) and
                ``"prior"``; of a Pyro model ``"prior"`` and ``"uniform"`` (unconstrained values in
                (-2, 2)); of a function ``"normal"``. ``"default"`` is the potential's choice.
        """
        check_positive_int("num_particles", num_particles)
        if streams is not None:
            check_has(
                "streams",
                streams,
                ["normal", "uniform", "integers", "shared"],
                "particlevi.streams.ParticleStreams(seed)",
            )
        check_choice("method", method, ["default", *self.starts.methods])
        chosen = self.starts.default() if method == "default" else method
        particles = self.starts.methods[chosen](
            num_particles, streams or ParticleStreams(0, "start")
        )
        return particles.to(self.device, self.dtype)

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors ``[..., *shape]`` as particles ``[..., D]``."""
        return self.layout.ravel(tensors)

    def unravel(self, particles: Tensor) -> dict[str, Tensor]:
        """Particles ``[..., D]`` as named tensors ``[..., *shape]``."""
        return self.layout.unravel(particles)

    def constrain(self, particles: Tensor) -> dict[str, Tensor]:
        """Particles ``[S, D]`` as the model's own quantities ``[S, *shape]`` by name."""
        check_particles(particles, self.num_params)
        return self.sites.constrain(self.unravel(particles))

    def prior_predictive(
        self, inputs: Any = None, num_draws: int = 500, seed: int = 0
    ) -> PriorPredictive:
        """Draws of the prior, of the model's outputs under it, and of targets: a look at a prior.

        Source: Gabry, Simpson, Vehtari, Betancourt and Gelman, "Visualization in Bayesian
        workflow", 2019.

        Args:
            inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs; a
                Pyro model's arguments without observations.
            num_draws: S.
            seed: of the draws.

        Returns:
            ``particles [S, D]``, ``outputs [S, B, ...]`` and ``targets`` by name, one per draw and
            datum; ``draws.to_arviz(prior=...)`` takes them along.

        Raises:
            ValueError: a density, which predicts nothing, or an improper prior.

        Examples:
            >>> import particlevi as pvi
            >>> net = torch.nn.Linear(3, 1)
            >>> likelihood, prior = pvi.Gaussian(scale=0.1), pvi.Normal(2.0)
            >>> potential = pvi.from_module(net, likelihood, prior, num_data=20)
            >>> found = potential.prior_predictive(torch.ones(1, 3), num_draws=4000)
            >>> bool((found.outputs.std() - 4).abs() < 0.2)  # 2 sqrt(3 + 1)
            True
        """
        return prior_predictive(self, inputs, num_draws, seed)

    def groups(self, rule: Groups, seed: int = 0) -> Tensor:
        """Group numbers ``[D]`` under a rule, where the particles are; see ``Layout.groups``."""
        return self.layout.groups(rule, seed).to(self.device)

    def target_check(self, particles: Tensor, batch: Batch) -> Callable[[Any], None]:
        """A check whether the targets in data ``(inputs, ..., targets)`` are possible.

        It raises a ValueError where the likelihood gives them no density.

        Args:
            particles: ``[P, D]``; the first is used.
            batch: of such data; its outputs tell the shapes.
        """
        likelihood, data = self.likelihood, batch.data
        if likelihood is None:
            return lambda data: None
        if not isinstance(data, tuple) or len(data) < 2:
            return lambda data: None
        inputs = data[:-1]
        if batch.per_particle:
            inputs = pytree.tree_map(lambda leaf: leaf[0], inputs)
        outputs = self.outputs(particles[:1], Batch(inputs))
        return lambda data: check_targets(likelihood, outputs, data[-1])
