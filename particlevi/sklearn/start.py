"""Starts of the chains: an ensemble of nets, each trained on minibatches of its own."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from particlevi.gradients._evaluate import value_and_grad
from particlevi.potentials.potential import ModelPotential
from particlevi.tuning.descent import adam
from particlevi.typing import Batch, Gradient

__all__ = ["trained"]

_STEPS, _RATE, _BATCH = 3000, 5e-3, 128
_FEWEST_STEPS, _TIMED, _SHARE = 100, 20, 0.25


def trained(
    potential: ModelPotential,
    inputs: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    num_chains: int,
    seconds: float | None,
    seed: int,
) -> Tensor:
    """Points ``[P, D]`` where 3000 steps of Adam lead from fresh weights.

    Args:
        potential: of a net.
        inputs: of all data, ``[N, F]``.
        targets: of all data, ``[N, ...]``.
        weight: of all data, ``[N]``, or None.
        num_chains: P.
        seconds: of the whole fit; if the steps would take more than a quarter of it, their number
            is halved until they do not.
        seed: of fresh weights and of the minibatches.
    """
    generator = torch.Generator().manual_seed(seed)
    points = potential.init(num_chains, method="fresh")
    size = min(len(inputs), _BATCH)

    def gradient_at(particles: Tensor) -> Gradient:
        rows = torch.randint(len(inputs), (num_chains, size), generator=generator)
        target: object = targets[rows]
        if weight is not None:
            target = {"target": targets[rows], "weight": weight[rows]}
        batch = Batch((inputs[rows], target), per_particle=True)
        return value_and_grad(potential, particles, batch, None)

    steps = _STEPS
    if seconds is not None:
        began = time.perf_counter()
        for _ in range(_TIMED):
            gradient_at(points)
        each = (time.perf_counter() - began) / _TIMED
        while steps > _FEWEST_STEPS and steps * each > _SHARE * seconds:
            steps //= 2
        generator.manual_seed(seed)
    return adam(gradient_at, points, steps, _RATE).points
