"""Whether the convolutions of many particles run together or one particle after the other."""

from __future__ import annotations

import torch

from particlevi._tracing import is_compiling

__all__ = ["one_by_one"]

_CACHE = 6 << 20


def one_by_one(num_bytes: int, device: torch.device) -> bool:
    """Whether a loop over particles is the faster road through a net's convolutions.

    Lifted by ``vmap``, the convolutions of P particles become one with P groups. On a CPU it pays
    while the outputs of all particles stay in cache, and a loop is faster beyond. Over LeNets and
    ResNets of 4 to 32 channels, batches of 8 to 128 and 2 to 20 particles, on one thread, the loop
    took .50 to .86 of vmap's time where the largest output had more than 6 MiB, and .59 to 2.0
    where it had less (``python -m benchmarks.convolution_rule``). Compiled code takes ``vmap``,
    since a loop would be compiled once per particle; so does a GPU, where nothing was measured.

    Args:
        num_bytes: of a convolution's largest output for all particles and data of a batch.
        device: where it runs.
    """
    return device.type == "cpu" and num_bytes > _CACHE and not is_compiling()
