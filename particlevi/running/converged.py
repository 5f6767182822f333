"""When a run that nobody gave a length has drawn enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from particlevi._checks import check_positive
from particlevi.data import DataLike, as_data
from particlevi.potentials.potential import ModelPotential
from particlevi.running.monitor import Look, has_grown

__all__ = ["converged", "probe_inputs"]

_MOST_COORDINATES = 100
_PROBES = 20


@dataclass(frozen=True, eq=False)
class converged:
    """End the run when what the model says has converged.

    For a model with outputs, that is its outputs at probe inputs, which do not depend on which
    hidden unit is which; else every parameter up to 100 of them, and random projections beyond.
    The smallest of bulk and tail ESS and the largest R-hat count, and are worked out each time the
    draws have grown by a fifth.

    Args:
        ess: the smallest effective sample size.
        rhat: the largest R-hat.
        probe: inputs at which outputs are looked at.

    Raises:
        ValueError: a target out of its range.
    """

    ess: float = 400.0
    rhat: float = 1.01
    probe: Any = None

    def __post_init__(self) -> None:
        check_positive("ess", self.ess)
        if not self.rhat > 1:
            raise ValueError(f"rhat must be above 1, which no run reaches, got {self.rhat!r}.")

    def __call__(self, look: Look) -> str | None:
        """The reason to end, if there is one."""
        if not has_grown(look.num_draws_before, look.num_draws):
            return None
        draws = look.draws()
        options: dict[str, Any] = {"of": "parameters"}
        if self.probe is not None:
            options = {"of": "predictions", "inputs": self.probe}
        elif draws.particles.shape[-1] > _MOST_COORDINATES:
            options = {"of": "projections"}
        bulk = float(np.nanmin(draws.ess(**options)))
        if not bulk >= self.ess:
            return None
        tail = float(np.nanmin(draws.ess(method="tail", **options)))
        rhat = float(np.nanmax(draws.rhat(**options)))
        if not (tail >= self.ess and rhat <= self.rhat):
            return None
        return (
            f"converged: of {options['of']}, the smallest ESS is {min(bulk, tail):.0f} "
            f"(target {self.ess:g}) and the largest R-hat {rhat:.4f} (target {self.rhat:g})"
        )


def probe_inputs(potential: ModelPotential, data: DataLike) -> Any:
    """Some inputs of the data, evenly spread; None for a model without outputs."""
    checked = as_data(data, potential)
    if potential.model is None or checked.num_data == 0:
        return None
    step = max(1, checked.num_data // _PROBES)
    first = checked.take(torch.arange(0, checked.num_data, step)[:_PROBES]).data
    if not isinstance(first, tuple) or len(first) < 2:
        return None
    inputs = first[:-1]
    found = inputs[0] if len(inputs) == 1 else inputs
    return pytree.tree_map(lambda leaf: leaf.cpu(), found)
