"""Noise vectors as numbers, and the noise of minibatches drawn at one point."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from particlevi._checks import check_finite

__all__ = ["Array", "batch_means", "check_samples", "varying"]

Array: TypeAlias = NDArray[np.float64]


def check_samples(samples: Any, least: int, most: int | None = None) -> Array:
    """Noise vectors ``[M, K]`` in float64; ``[M]`` becomes ``[M, 1]``.

    Raises:
        TypeError: neither a tensor nor an array.
        ValueError: another shape, fewer than ``least`` samples or more than ``most``, or values
            that are not finite.
    """
    if not isinstance(samples, (Tensor, np.ndarray)):
        raise TypeError(f"samples must be a tensor or array [M, K], got {type(samples).__name__}.")
    tensor = torch.as_tensor(samples).detach().cpu()
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(1)
    if tensor.ndim != 2 or tensor.shape[1] < 1 or tensor.is_complex():
        raise ValueError(f"samples must be noise vectors [M, K], got {list(tensor.shape)}.")
    if len(tensor) < least:
        raise ValueError(
            f"samples must be at least {least} noise vectors [M, K], got M={len(tensor)}: draw "
            "more minibatches at the same point."
        )
    if most is not None and len(tensor) > most:
        raise ValueError(
            f"samples must be at most {most} noise vectors [M, K], got M={len(tensor)}: take "
            f"samples[:{most}]."
        )
    tensor = tensor.double()
    check_finite("samples", tensor, "A gradient has overflowed: take a point of a healthy run.")
    found: Array = tensor.numpy()
    return found


def varying(samples: Array) -> tuple[Array, int]:
    """The coordinates that vary over samples, and how many do not.

    Raises:
        ValueError: none does.
    """
    kept = np.ptp(samples, axis=0) > 0
    if not kept.any():
        raise ValueError(
            f"The noise is constant in all {samples.shape[1]} coordinates, so it has no law to "
            "test: batches of all the data have no noise, and dead units have no gradient."
        )
    return samples[:, kept], int((~kept).sum())


def batch_means(
    values: Array, batch_size: int, num_batches: int, subset: bool, rng: np.random.Generator
) -> Array:
    """Means of ``values [N, K]`` over independent minibatches, less the mean, ``[M, K]``.

    Args:
        values: one row per datum.
        batch_size: b.
        num_batches: M.
        subset: whether a datum is at most once in a batch.
        rng: of the minibatches.
    """
    centered = values - values.mean(0)
    found = np.empty((num_batches, values.shape[1]))
    for row in found:
        if subset:
            chosen = rng.choice(len(values), batch_size, replace=False)
        else:
            chosen = rng.integers(len(values), size=batch_size)
        row[:] = centered[chosen].mean(0)
    return found
