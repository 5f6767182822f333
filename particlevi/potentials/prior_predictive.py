"""What a prior says about data before any are seen.

``theta ~ p(theta)``, ``f = model_theta(x)``, ``y ~ p(y | f)``: draws of all three, together.

Reference: Gabry, Simpson, Vehtari, Betancourt and Gelman, "Visualization in Bayesian workflow",
2019, for checks of a prior by what it predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_positive_int, check_seed
from particlevi.streams import ParticleStreams
from particlevi.typing import Batch

if TYPE_CHECKING:
    from particlevi.potentials.potential import ModelPotential

__all__ = ["PriorPredictive", "prior_predictive"]

_CHUNK = 64


class PriorPredictive(NamedTuple):
    """Draws of the prior and of what it predicts.

    Attributes:
        particles: draws of the prior, ``[S, D]``.
        outputs: of the model at the inputs, ``[S, B, ...]``; None for a Pyro model.
        targets: one target per draw and datum by name, ``[S, B, ...]``; ``"y"`` for a module.
    """

    particles: Tensor
    outputs: Tensor | None
    targets: dict[str, Tensor]

    def __repr__(self) -> str:
        sizes = {name: list(values.shape) for name, values in self.targets.items()}
        outputs = "none" if self.outputs is None else list(self.outputs.shape)
        drawn = list(self.particles.shape)
        return f"PriorPredictive(particles {drawn}, outputs {outputs}, targets {sizes})"


def prior_predictive(
    potential: ModelPotential, inputs: Any = None, num_draws: int = 500, seed: int = 0
) -> PriorPredictive:
    """See ``ModelPotential.prior_predictive``."""
    check_positive_int("num_draws", num_draws)
    check_seed("seed", seed)
    methods = potential.starts.methods
    predict, model = potential.predictive_fn, potential.model
    if predict is None and model is None:
        raise ValueError(
            "This potential predicts nothing: it was made from a density. A prior predictive needs "
            "a module or a Pyro model."
        )
    if "prior" not in methods:
        raise ValueError(
            "This prior has no draws: it is improper, or has a site without any. Give a proper one."
        )
    streams = ParticleStreams(int(seed), "prior predictive", device=potential.device).shared
    particles = methods["prior"](int(num_draws), streams).to(potential.device, potential.dtype)
    if predict is not None:
        targets = predict(potential.constrain(particles), _there(inputs, potential), int(seed))
        return PriorPredictive(particles, None, targets)
    assert model is not None
    if inputs is None:
        raise ValueError("A module predicts at inputs: give a tensor [B, ...], or a tuple of them.")
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    batch = Batch(_there(parts, potential))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(int(seed))
        outputs = torch.cat([potential.outputs(part, batch) for part in particles.split(_CHUNK)])
        law = model.likelihood.distribution(outputs, potential.likelihood_parameters(particles))
        return PriorPredictive(particles, outputs, {"y": law.sample()})


def _there(inputs: Any, potential: ModelPotential) -> Any:
    """Inputs where the potential is, floats in its dtype."""

    def one(leaf: Any) -> Tensor:
        value = torch.as_tensor(leaf, device=potential.device)
        return value.to(potential.dtype) if value.is_floating_point() else value

    return None if inputs is None else pytree.tree_map(one, inputs)
