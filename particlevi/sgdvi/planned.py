"""SGD with a preconditioner and injected noise, as a plan prescribes it.

Step, with rate ``eta``, momentum ``m`` and the gradient ``g`` of the *mean* loss::

    v' = m v + g(theta) + J^(1/2) xi,    xi ~ Normal(0, I)
    theta' = theta - eta H v'

Target: what the plan says, where the gradient is linear; see ``particlevi.sgdvi.design``.

Step size: the learning rate ``eta`` itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi.potentials.potential import ModelPotential
from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    assemble,
    configurational_temperature,
    gaussian,
)
from particlevi.sgdvi.designs import Design
from particlevi.typing import Controls, Sampler, Streams

__all__ = ["planned_sgd"]


class Memory(NamedTuple):
    """The running sum of gradients ``[P, D]``."""

    velocity: Tensor


def planned_sgd(potential: ModelPotential, found: Design) -> Sampler:
    """SGD by a design, on P independent replicas.

    Args:
        potential: with data; its mean loss is ``f = U / N``.
        found: the settings.
    """
    size = potential.num_data or 1
    h = found.preconditioner.to(potential.device, potential.dtype)
    root: Tensor | None = None
    if found.injected is not None:
        values, vectors = torch.linalg.eigh(found.injected)
        root = (vectors * values.clamp(min=0).sqrt()).T.to(potential.device, potential.dtype)

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(torch.zeros_like(position))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        g, potential = gradient_at(position)
        kick = g / size if root is None else g / size + noise @ root
        velocity = found.momentum * memory.velocity + kick
        info = Info(potential, configurational_temperature(position, g))
        return position - controls["step_size"] * velocity @ h, Memory(velocity), info

    settings = {"momentum": found.momentum, "injected": root is not None}
    more: dict[str, Any] = {} if root is None else {"noise": gaussian}
    return assemble(
        "planned sgd", potential, transition, settings=settings, memory=memory, shown=SHOWN, **more
    )
