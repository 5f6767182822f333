"""What of a run's draws a diagnostic looks at."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive_int

__all__ = ["VIEWS", "series", "work"]

VIEWS = ["parameters", "projections", "predictions", "log_likelihood"]


def series(draws: Any, of: str, inputs: Any, num: int, what: str) -> Tensor:
    """Values ``[P, T, ...]`` along the chains; see ``Draws.ess``.

    Raises:
        ValueError: draws that are no chains, or a view that needs ``inputs``.
    """
    check_choice("of", of, VIEWS)
    check_positive_int("num", num)
    if "recombined" in draws.attrs:
        raise ValueError(
            f"{what} is a statement about Markov chains; recombined draws are picked "
            "independently. Take it of the draws that they were made from."
        )
    if draws.interacting:
        raise ValueError(
            f"{what} is a statement about Markov chains; these {len(draws.particles)} particles "
            "interact, so they are one set of draws without an order. Compare predictions, or "
            "the discrepancy to the posterior, instead."
        )
    if of == "predictions":
        return _identified(draws, _outputs(draws, inputs, what))
    if of == "log_likelihood":
        if inputs is None:
            raise ValueError(f"{what} of the log-likelihood needs data: inputs=(x, y).")
        found: Tensor = draws.log_likelihood(inputs)
        return found
    values: Tensor = draws.particles
    return _projections(values, num) if of == "projections" else values


def work(draws: Any, per: str) -> float:
    """Seconds or gradients that the whole run took, warm-up included.

    A gradient is one of the potential, on one batch, for one particle.
    """
    check_choice("per", per, ["second", "gradient"])
    if per == "second":
        return float(draws.seconds)
    if "gradients_per_step" not in draws.attrs:
        raise ValueError(
            "These draws do not tell how many gradients they took: they come from no run."
        )
    chains = draws.attrs.get("num_particles", len(draws.particles))
    return float(chains * draws.num_steps * draws.attrs["gradients_per_step"])


def _projections(values: Tensor, num: int) -> Tensor:
    """On random directions, one after the other, so that memory stays bounded."""
    generator = torch.Generator().manual_seed(0)
    size = values.shape[-1]
    found = []
    for _ in range(num):
        direction = torch.randn(size, generator=generator) / math.sqrt(size)
        found.append(values.to(direction.dtype) @ direction)
    return torch.stack(found, dim=-1)


def _outputs(draws: Any, inputs: Any, what: str) -> Tensor:
    found: Tensor
    if draws.output_shape is not None:
        found = draws.particles.reshape(*draws.particles.shape[:2], *draws.output_shape)
        return found
    if inputs is None:
        raise ValueError(f"{what} of predictions needs probe inputs: inputs=x_test[:100].")
    found = draws.outputs(inputs)
    return found


def _identified(draws: Any, outputs: Tensor) -> Tensor:
    """Outputs without the directions that the likelihood does not see."""
    likelihood = None if draws.potential is None else draws.potential.likelihood
    if likelihood is not None and likelihood.classes:
        return outputs - outputs.mean(-1, keepdim=True)
    return outputs
