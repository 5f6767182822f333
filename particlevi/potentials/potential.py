"""The potential: what is sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice, check_particles, check_positive_int
from particlevi.potentials.layout import Groups, Layout
from particlevi.potentials.likelihoods import Likelihood
from particlevi.typing import JSON, Batch

__all__ = ["ModelPotential"]


def _identity(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors


@dataclass(frozen=True, eq=False)
class ModelPotential:
    """``U(theta) = -log p(theta) - (N/B) sum_b log p(x_b | theta)`` in nats.

    Made by ``from_module``, ``from_pyro``, ``from_log_density`` and ``from_log_likelihood``.

    Attributes:
        layout: names and shapes of the tensors in a particle.
        num_data: N, or None for a density without data.
        log_prior_fn: particles ``[P, D]`` to log prior densities ``[P]``.
        log_likelihood_fn: particles and a batch to ``[P, B]``; None for a density without data.
        init_fns: ways to draw starting points, by name, each ``(P, generator) -> [P, D]``; the
            first is the default.
        device, dtype: of the particles.
        outputs_fn: particles and a batch of inputs to model outputs ``[P, B, ...]``, or None.
        likelihood: the law of a datum given the outputs, or None.
        constrain_fn: from the tensors that are sampled to those of the model, as in Pyro models
            with constrained sites and likelihoods with a learned scale.
        predictive_fn: from constrained quantities ``[S, *shape]``, model arguments and a seed to
            draws of the observed sites ``[S, ...]``, for models that draw their own targets.
        compilable: whether ``torch.compile`` can trace it without a graph break.
        chunk_size: at most so many particles are evaluated at once.
        factorised_prior: whether the prior is known to be a product over coordinates.
        fingerprint: what identifies the potential in a checkpoint.
    """

    layout: Layout
    num_data: int | None
    log_prior_fn: Callable[[Tensor], Tensor]
    log_likelihood_fn: Callable[[Tensor, Batch], Tensor] | None
    init_fns: Mapping[str, Callable[[int, torch.Generator], Tensor]]
    device: torch.device
    dtype: torch.dtype
    outputs_fn: Callable[[Tensor, Batch], Tensor] | None = None
    likelihood: Likelihood | None = None
    constrain_fn: Callable[[dict[str, Tensor]], dict[str, Tensor]] = _identity
    predictive_fn: Callable[[dict[str, Tensor], Any, int], dict[str, Tensor]] | None = None
    compilable: bool = True
    chunk_size: int | None = None
    factorised_prior: bool = False
    fingerprint: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chunk_size is not None:
            check_positive_int("chunk_size", self.chunk_size)
            object.__setattr__(self, "chunk_size", int(self.chunk_size))

    def __repr__(self) -> str:
        kind = self.fingerprint.get("kind", "density")
        dtype = str(self.dtype).removeprefix("torch.")
        return f"ModelPotential({kind}, D={self.num_params}, N={self.num_data}, {dtype})"

    @property
    def num_params(self) -> int:
        """D, the number of parameters in a particle."""
        return self.layout.num_params

    def __call__(self, particles: Tensor, batch: Batch | None = None) -> Tensor:
        """Energies ``[P]``; on a minibatch of B data the likelihood is scaled by N/B."""
        if particles.ndim != 2 or particles.shape[1] != self.num_params:
            check_particles(particles, self.num_params)
        energy = -self.log_prior_fn(particles)
        if self.log_likelihood_fn is None:
            return energy
        log_likelihood = self.log_likelihood(particles, batch)
        return energy - self.scale(log_likelihood.shape[1], batch) * log_likelihood.sum(1)

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
        return self.log_prior_fn(particles)

    def log_likelihood(self, particles: Tensor, batch: Batch | None) -> Tensor:
        """Log-likelihoods ``[P, B]``."""
        if self.log_likelihood_fn is None or batch is None:
            raise ValueError(
                "A log-likelihood needs a potential with data and a batch: got "
                f"{'no batch' if batch is None else 'a density without data'}."
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
        if self.outputs_fn is None:
            raise ValueError(
                "This potential has no outputs: it was made from a density or a Pyro model, not "
                "from a module. Draws of a Pyro model predict targets by draws.predict(inputs)."
            )
        if particles.ndim != 2 or particles.shape[1] != self.num_params:
            check_particles(particles, self.num_params)
        values = self.outputs_fn(particles, batch)
        num_data = pytree.tree_leaves(batch.data)[0].shape[1 if batch.per_particle else 0]
        if values.ndim < 2 or values.shape[1] != num_data:
            raise ValueError(
                f"The model must give one output per datum: it gave {list(values.shape[1:])} for "
                f"{num_data} inputs, whose first dimension counts the data."
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
        self, num_particles: int, generator: torch.Generator | None = None, method: str = "default"
    ) -> Tensor:
        """Starting points ``[P, D]``, one independent draw per particle.

        Args:
            num_particles: P.
            generator: source of the randomness; a generator seeded with 0 if absent.
            method: ``"module"`` (the module's own initialisation), ``"prior"``, ``"current"`` (the
                module's present weights in every particle), ``"uniform"`` (unconstrained values in
                (-2, 2)), as far as the potential has them; ``"default"`` is its own first choice.
        """
        check_positive_int("num_particles", num_particles)
        generator = generator or torch.Generator().manual_seed(0)
        methods = list(self.init_fns)
        check_choice("method", method, ["default", *methods])
        particles = self.init_fns[methods[0] if method == "default" else method](
            num_particles, generator
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
        return self.constrain_fn(self.unravel(particles))

    def groups(self, rule: Groups, seed: int = 0) -> Tensor:
        """Group numbers ``[D]`` under a rule; see ``Layout.groups``."""
        return self.layout.groups(rule, seed)

    def target_check(self, particles: Tensor, batch: Batch) -> Callable[[Any], None]:
        """A check whether the targets in data ``(inputs, ..., targets)`` are possible.

        It raises a ValueError where the likelihood gives them no density.

        Args:
            particles: ``[P, D]``; the first is used.
            batch: of such data; its outputs tell the shapes.
        """
        likelihood, data = self.likelihood, batch.data
        if likelihood is None or self.outputs_fn is None:
            return lambda data: None
        if not isinstance(data, tuple) or len(data) < 2:
            return lambda data: None
        inputs = data[:-1]
        if batch.per_particle:
            inputs = pytree.tree_map(lambda leaf: leaf[0], inputs)
        outputs = self.outputs(particles[:1], Batch(inputs))
        return lambda data: likelihood.check(outputs, data[-1])
