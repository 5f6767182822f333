"""The arithmetic of a potential: that of its particles, whatever the caller has switched on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["pinned"]


def pinned(device: torch.device) -> AbstractContextManager[object]:
    """No autocast inside.

    Under ``torch.autocast`` the same potential has other values, rounded to half precision, and the
    accepted or compensated energies of a sampler are then wrong by far more than its step allows.
    """
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
