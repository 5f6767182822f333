"""Draws in a notebook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from particlevi import _html

if TYPE_CHECKING:
    from particlevi.drawset.data import DrawSet

__all__ = ["counts_of", "html_of"]


def counts_of(draws: DrawSet) -> str:
    """How many chains or particles, draws of each, and numbers per draw."""
    chains, length, size = draws.particles.shape
    unit = ("particle" if draws.interacting else "chain") + "s" * (chains != 1)
    return f"{chains} {unit} x {length} draw{'s' * (length != 1)} x {size}"


def html_of(draws: DrawSet) -> str:
    """What was drawn, and what is wrong with it."""
    chains, length, size = draws.particles.shape
    unit = "particles" if draws.interacting else "chains"
    told = [("wrong", f"{len(draws.diverged)} chains diverged and are left out.")]
    told = told if draws.diverged else []
    if draws.interrupted:
        told.append(("uncertain", f"The run was interrupted after {draws.num_steps} steps."))
    if draws.facts.kind == "particles":
        told.append(("untold", "The last state is the sample; earlier ones are the way to it."))
    if not draws.complete:
        told.append(("untold", "Only a part was kept: the model cannot be evaluated here."))
    kinds: dict[str, object] = {
        unit: chains,
        "draws of each": length,
        "numbers per draw": size,
    }
    if "sampler" in draws.attrs:
        kinds["sampler"] = draws.attrs["sampler"]
    if not math.isnan(draws.seconds):
        kinds["seconds"] = f"{draws.seconds:.3g}"
    if draws.num_steps:
        kinds["steps"] = draws.num_steps
        kinds["batches"] = "minibatches" if draws.minibatch else "all data"
    if draws.attrs.get("ended_by"):
        kinds["ended by"] = draws.attrs["ended_by"]
    stats = [
        (
            name,
            f"{float(v.double().mean()):.4g}",
            f"{float(v.min()):.4g}",
            f"{float(v.max()):.4g}",
        )
        for name, v in draws.stats.items()
        if v.numel()
    ]
    tensors = [(name, " x ".join(map(str, each))) for name, each in draws.shapes.items()]
    return _html.block(
        f"Draws: {counts_of(draws)}",
        _html.notes(told),
        _html.pairs(kinds),
        _html.details(
            f"{len(stats)} statistics",
            _html.table(("statistic", "mean", "smallest", "largest"), stats),
        ),
        _html.details(f"{len(tensors)} tensors", _html.table(("name", "shape"), tensors)),
    )
