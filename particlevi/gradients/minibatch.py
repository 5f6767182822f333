"""The plain estimator: the gradient of the potential on a minibatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from torch import Tensor

from particlevi._checks import check_is
from particlevi._tracing import is_compiling
from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential, is_potential
from particlevi.potentials.random import seeded
from particlevi.typing import (
    JSON,
    Batch,
    Gradient,
    GradientEstimator,
    Potential,
    Progress,
    Streams,
)

__all__ = ["Target", "as_estimator", "minibatch"]

Target = Potential | GradientEstimator
"""What a sampler takes: a potential, or an estimator of its gradient."""


class Stateless(NamedTuple):
    """The state of an estimator that has none."""


@dataclass(frozen=True, eq=False)
class minibatch:
    """``g(theta) = -grad log p(theta) - (N/B) sum_b grad log p(x_b | theta)``.

    Unbiased for the gradient of the potential; on the full data, exact.

    Source: Robbins and Monro, "A stochastic approximation method", 1951.

    Args:
        potential: what is sampled.
    """

    potential: ModelPotential
    name: str = field(default="minibatch", init=False)
    settings: Mapping[str, JSON] = field(default_factory=dict, init=False)
    gradients: int = field(default=1, init=False)
    conservative: bool = field(default=True, init=False)
    interacting: bool = field(default=False, init=False)
    records: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_is("potential", self.potential, ModelPotential, "a potential, as from_module makes")

    def init(self, particles: Tensor, streams: Streams) -> Stateless:
        """Nothing to remember."""
        return Stateless()

    def draw_noise(self, state: Any, streams: Streams) -> Any:
        """The seed of the masks of a random potential; no randomness beside the batch otherwise."""
        if not self.potential.random:
            return ()
        return streams.shared.integers(2**62, ())

    def __call__(self, state: Any, particles: Tensor, batch: Batch | None, noise: Any) -> Gradient:
        """The gradient at ``particles [P, D]``."""
        potential = self.potential
        if potential.random and not is_compiling():
            with seeded(int(noise)):
                return value_and_grad(potential, particles, batch, potential.chunk_size)
        return value_and_grad(potential, particles, batch, potential.chunk_size)

    def record(self, state: Any, particles: Tensor, progress: Progress) -> Any:
        """Nothing to remember."""
        return state

    def nbytes(self, num_particles: int) -> int:
        """No memory."""
        return 0


def as_estimator(target: Target) -> GradientEstimator:
    """An estimator as it is; a potential under the plain minibatch estimator.

    Raises:
        TypeError: neither of them.
    """
    if all(hasattr(target, name) for name in ("init", "draw_noise", "record", "potential")):
        return cast(GradientEstimator, target)
    if is_potential(target):
        return minibatch(as_potential(cast(Potential, target)))
    raise TypeError(
        "A sampler takes a potential (pvi.from_module, from_pyro, from_log_density, "
        "from_log_likelihood, or an object with num_params, num_data and __call__) or a gradient "
        f"estimator (pvi.control_variate ...), got {type(target).__name__}."
    )
