"""What of a run's draws a diagnostic looks at."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive_int
from particlevi.diagnostics.outputs import log_likelihood, outputs
from particlevi.drawset import DrawSet, check_draws
from particlevi.drawset.lazy import panels
from particlevi.potentials.potential import ModelPotential

__all__ = ["VIEWS", "View", "cost", "identified", "series"]

View: TypeAlias = Literal["parameters", "projections", "predictions", "log_likelihood"]

_BLOCK = 4096
"""Coordinates whose part of the random directions is made from one seed."""

VIEWS = ["parameters", "projections", "predictions", "log_likelihood"]


def series(draws: DrawSet, of: View, inputs: Any, num: int, what: str) -> Tensor:
    """Values ``[P, T, ...]`` along the chains; see ``Draws.ess``.

    Raises:
        ValueError: draws that are no chains, or a view that needs ``inputs``.
    """
    check_draws(draws)
    check_choice("of", of, VIEWS)
    check_positive_int("num", num)
    _check_chains(draws, what)
    if of == "predictions":
        return identified(draws.potential, _outputs(draws, inputs, what))
    if of == "log_likelihood":
        if inputs is None:
            raise ValueError(f"{what} of the log-likelihood needs data: inputs=(x, y).")
        return log_likelihood(draws, inputs)
    return _projections(draws.particles, num) if of == "projections" else draws.particles


def _check_chains(draws: DrawSet, what: str) -> None:
    """Each particle's draws are those of a Markov chain."""
    if draws.facts.kind == "independent":
        raise ValueError(
            f"{what} is a statement about Markov chains; these draws were picked independently. "
            "Take it of the draws that they were made from."
        )
    if draws.interacting:
        raise ValueError(
            f"{what} is a statement about Markov chains; these {len(draws)} particles "
            "interact, so they are one set of draws without an order. Compare predictions, or "
            "the discrepancy to the posterior, instead."
        )


def cost(draws: DrawSet, per: Literal["second", "gradient"]) -> float:
    """Seconds or gradients that the run took, its warm-up included.

    A gradient is one of the potential, on one batch, for one particle.
    """
    check_choice("per", per, ["second", "gradient"])
    if per == "second":
        return draws.seconds
    if draws.gradients is None:
        raise ValueError(
            "These draws do not tell how many gradients they took: they come from no run."
        )
    return draws.gradients


def _projections(values: Tensor, num: int) -> Tensor:
    """On random directions, of which a block of coordinates is made at a time."""
    size = values.shape[-1]
    projected = torch.zeros(*values.shape[:-1], num, device=values.device)
    for columns, panel in panels(values):
        for block in range(columns.start // _BLOCK, -(-columns.stop // _BLOCK)):
            start = block * _BLOCK
            first, last = max(columns.start, start), min(columns.stop, start + _BLOCK)
            directions = torch.randn(num, _BLOCK, generator=torch.Generator().manual_seed(block))
            directions = directions[:, first - start : last - start].T / math.sqrt(size)
            part = panel[..., first - columns.start : last - columns.start].to(directions.dtype)
            projected += part @ directions.to(part.device)
    return projected


def _outputs(draws: DrawSet, inputs: Any, what: str) -> Tensor:
    if draws.output_shape is not None:
        return draws.particles.reshape(*draws.particles.shape[:2], *draws.output_shape)
    if inputs is None:
        raise ValueError(f"{what} of predictions needs probe inputs: inputs=x_test[:100].")
    return outputs(draws, inputs)


def identified(potential: ModelPotential | None, values: Tensor) -> Tensor:
    """Outputs without the directions that the likelihood does not see."""
    likelihood = None if potential is None else potential.likelihood
    if likelihood is not None and likelihood.classes:
        return values - values.mean(-1, keepdim=True)
    return values
