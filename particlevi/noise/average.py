"""The covariance of SGD's gradient noise, averaged over the law of its iterates.

SGD's covariance solves a linear equation in the mean of ``C(theta)`` over its own law. Where the
noise grows with the distance from the minimum, as it does for nets, ``C`` at the mean of the draws
is too small.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.noise.covariance import GradientNoise, check_noise
from particlevi.progress import progress_bar

__all__ = ["AveragedNoise", "average"]


class AveragedNoise(NamedTuple):
    """The mean of ``C`` over draws.

    Attributes:
        matrix: ``[D, D]``, or ``V' C V [K, K]`` in directions.
        standard_error: of each entry, from the spread over the draws, as of independent ones.
    """

    matrix: Tensor
    standard_error: Tensor


def average(noise: GradientNoise, draws: Tensor, directions: Tensor | None = None) -> AveragedNoise:
    """The mean of the per-sample gradient covariance over draws, in float64.

    Args:
        noise: at any point; what it measures is taken over to the draws.
        draws: ``[..., D]`` of stationary SGD, far enough apart to be nearly independent; one to
            three passes over the data each.
        directions: orthonormal ``V [D, K]``, such as ``invariant_subspace(...).directions``; the
            whole matrix if absent.

    Raises:
        ValueError: draws or directions of another size.

    Examples:
        >>> import particlevi as pvi
        >>> net, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
        >>> noise = pvi.noise.measure(net, (x, 0 * x), loss_fn=torch.nn.functional.mse_loss)
        >>> average(noise, torch.tensor([[1.0], [-1.0]])).matrix
        tensor([[9.]], dtype=torch.float64)
    """
    check_noise(noise)
    size = noise.num_params
    if (
        not isinstance(draws, Tensor)
        or draws.ndim < 1
        or draws.shape[-1] != size
        or not draws.numel()
    ):
        got = list(draws.shape) if isinstance(draws, Tensor) else type(draws).__name__
        raise ValueError(f"draws must be a tensor [..., {size}], got {got}.")
    if directions is not None and (
        not isinstance(directions, Tensor) or directions.ndim != 2 or len(directions) != size
    ):
        got = list(directions.shape) if isinstance(directions, Tensor) else type(directions)
        raise ValueError(f"directions must be a tensor [{size}, K], got {got}.")
    flat = draws.reshape(-1, size)
    total: Tensor | None = None
    square = total
    with progress_bar("noise over draws", 0, len(flat), noise.progress) as bar:
        for position in flat:
            here = noise.at(position)
            if directions is None:
                found = here.dense().cpu()
            else:
                found = directions.double().cpu().T @ here.matmat(directions).double().cpu()
                found = (found + found.T) / 2
            total = found if total is None else total + found
            square = found.square() if square is None else square + found.square()
            bar.update()
    assert total is not None and square is not None
    count = len(flat)
    mean = total / count
    if count == 1:
        return AveragedNoise(mean, torch.full_like(mean, math.nan))
    spread = (square / count - mean.square()).clamp(min=0) / (count - 1)
    return AveragedNoise(mean, spread.sqrt())
