"""Inputs and targets of a module, for what looks at all the data again and again."""

from __future__ import annotations

from torch import Tensor

from particlevi.data.data import DataLike
from particlevi.data.placing import Placed
from particlevi.data.reading import as_data
from particlevi.data.tensors import as_tensors, is_tensors

__all__ = ["as_pairs"]


def as_pairs(data: DataLike, where: Placed) -> tuple[Tensor, ...]:
    """``(inputs, ..., targets)`` in memory; floats in the dtype of ``where``.

    Tensors stay on the device where they are, and a loader is read once.

    Args:
        data: as everything takes them, see ``as_data``, with inputs and targets.
        where: what evaluates them, for its dtype and device.

    Raises:
        TypeError, ValueError: no data in the sense of ``as_data``, or nothing beside the inputs.

    >>> import torch
    >>> from particlevi.data import Place
    >>> loader = [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(1, 3), torch.zeros(1))]
    >>> [list(each.shape) for each in as_pairs(loader, Place(torch.device("cpu"), torch.float32))]
    [[3, 3], [3]]
    """
    if is_tensors(data):
        found = as_tensors(data, where)
    else:
        found = as_data(data, where, complete=False).whole().data
    if not isinstance(found, tuple) or len(found) < 2:
        raise ValueError(
            "A module and a loss take data (inputs, ..., targets), got "
            f"{type(data).__name__}{f' of {len(found)}' if isinstance(found, tuple) else ''}: pass "
            "such a tuple, or a DataLoader of such batches."
        )
    return found
