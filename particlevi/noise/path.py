"""The size of gradient noise along a trajectory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_particles
from particlevi.noise.covariance import GradientNoise, check_noise
from particlevi.progress import progress_bar

__all__ = ["NoisePath", "noise_along"]


class NoisePath(NamedTuple):
    """The noise along a trajectory, ``[T]`` each.

    Attributes:
        gradient_norm: ``|g|``.
        trace: of ``C``.
        largest: eigenvalue of ``C``.
    """

    gradient_norm: Tensor
    trace: Tensor
    largest: Tensor


def noise_along(noise: GradientNoise, positions: Tensor, progress: bool = False) -> NoisePath:
    """The size of the noise at points ``[T, D]`` of a trajectory."""
    check_noise(noise)
    check_flag("progress", progress)
    check_particles(positions, noise.num_params, "positions")
    rows = []
    with progress_bar("noise along the trajectory", 0, len(positions), progress) as bar:
        for position in positions:
            here = noise.at(position)
            top = here.spectrum(top=1)
            rows.append((float(here.gradient.norm()), top.trace, float(top.eigenvalues[0])))
            bar.update()
    columns = torch.tensor(rows, dtype=torch.float64).T
    return NoisePath(columns[0], columns[1], columns[2])
