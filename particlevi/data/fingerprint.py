"""What identifies tensors: their shapes, dtypes and checksums."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.typing import JSON

__all__ = ["checksum", "fingerprint"]


def fingerprint(tensors: Any) -> JSON:
    """Checksums of a tree of tensors or arrays; the kind of anything else."""
    return [checksum(leaf) for leaf in pytree.tree_leaves(tensors)]


def checksum(leaf: Any) -> dict[str, JSON]:
    """Shape, dtype and checksum of one tensor or array."""
    if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
        values = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(leaf, np.ndarray) and not leaf.dtype.hasobject:
        values = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    else:
        return {"kind": type(leaf).__name__}
    kind = str(leaf.dtype).removeprefix("torch.")
    return {"shape": list(leaf.shape), "dtype": kind, "crc32": zlib.crc32(values.data)}
