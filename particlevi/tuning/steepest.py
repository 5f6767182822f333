"""The largest curvature where chains are, followed by the power method as they move.

Each probe gives the image ``H v`` of every chain's direction ``v`` under the Hessian of one batch.
``v' H v`` is the curvature along a direction that earlier batches turned, so that the chance in one
of them does not pass for curvature, and ``H v / |H v|`` is the next direction.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from particlevi.streams import ParticleStreams
from particlevi.typing import World

__all__ = ["Steepest", "no_curvature", "turn"]

_FALL = 0.2


class Steepest(NamedTuple):
    """Where the power method stands.

    Attributes:
        directions: of every chain, ``[P, D]``, of length 1.
        curvature: of every chain along it, ``[P]``.
        largest: over all chains, 0-d.
    """

    directions: Tensor
    curvature: Tensor
    largest: Tensor


def no_curvature(like: Tensor, seed: int) -> Steepest:
    """Random directions, for particles ``[P, D]``."""
    streams = ParticleStreams(seed, "curvature", device=like.device)
    found = streams.normal(like.shape, like.dtype)
    zero = like.new_zeros(len(like), dtype=torch.float64)
    return Steepest(found / found.norm(dim=-1, keepdim=True), zero, zero.sum())


def turn(steepest: Steepest, images: Tensor, world: World) -> Steepest:
    """After the images ``[P, D]`` of the directions.

    A curvature that rises counts at once, one that falls by a fifth of the fall at each probe. The
    largest over chains is a smooth one, ``(mean l^16)^(1/16)``, which needs nothing but means.
    """
    size = images.norm(dim=-1, keepdim=True)
    sound = torch.isfinite(size) & (size > 0)
    along = (images * steepest.directions).sum(-1).double()
    along = torch.where(sound.squeeze(-1), along, steepest.curvature)
    fallen = steepest.curvature + _FALL * (along - steepest.curvature)
    curvature = torch.maximum(along, fallen)
    positive = curvature.clamp(min=0)
    mean = world.mean(positive)
    ratio = positive / mean.clamp(min=1e-300)
    return Steepest(
        torch.where(sound, images / size, steepest.directions),
        curvature,
        mean * world.mean(ratio.pow(16)).pow(1 / 16),
    )
