"""``as_data``: the one way in for data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from particlevi._checks import check_flag
from particlevi.data.data import Data, DataLike, NoData, TensorData
from particlevi.data.loaders import LoaderData
from particlevi.data.placing import Placed, check_place
from particlevi.data.tensors import as_tensors, is_tensors

__all__ = ["as_data"]


def as_data(data: DataLike, where: Placed, *, complete: bool = True, name: str = "data") -> Data:
    """Data as every part of the package takes them: checked, typed and placed once.

    Everything that takes data calls this, so that everything takes the same forms. What it has made
    passes through unchanged: call it once for large data and pass the result.

    Args:
        data: a tensor, array or data frame with first dimension N; a tuple, list or dict of them,
            such as ``(inputs, targets)``; an iterable of batches that can be read many times, such
            as a ``DataLoader`` or a list of such tuples; None for a density without data.
        where: a potential, for its device, dtype and number of data; without one, a ``Place``.
        complete: they must be all the data of the potential; False for others, such as held-out
            ones, of any number.
        name: what they are called in errors.

    Raises:
        TypeError: no data in the sense above, such as masked, sparse or complex arrays.
        ValueError: data missing or superfluous, of unequal lengths, not finite, or of another
            number than the potential's; an iterable that can be read only once; a loader whose
            batches cannot be weighted as the posterior does.
        MemoryError: they do not fit on the device.

    >>> import torch
    >>> from particlevi.data import Place
    >>> x, y = torch.arange(10.0).view(5, 2), torch.arange(5)
    >>> found = as_data((x, y), Place(torch.device("cpu"), torch.float64, num_data=5))
    >>> found
    TensorData(N=5, float64, cpu)
    >>> [len(batch.data[0]) for batch in found.chunks(2)]
    [2, 2, 1]
    >>> as_data(found, found) is found
    True
    """
    check_flag("complete", complete)
    check_place(where)
    if complete and where.num_data is None:
        if data is None or isinstance(data, NoData):
            return NoData(where)
        raise ValueError(
            "The potential is a density without data, but data were given: leave them out, or make "
            "the potential with from_log_likelihood, or from_pyro(model, example_batch=data)."
        )
    if isinstance(data, Data):
        _check_same_place(data, where, name)
        made = data
    else:
        made = _made(data, where, complete, name)
    if complete and made.num_data != where.num_data:
        raise ValueError(
            f"The potential was made for num_data={where.num_data}, got {made.num_data} data: "
            "num_data must be the size of the whole training set, and all of it is needed."
        )
    return made


def _made(data: Any, where: Placed, complete: bool, name: str) -> Data:
    if data is None:
        raise ValueError(
            f"The potential needs {name}, got none: pass them as they are given to sample, such as "
            f"(x, y)."
        )
    if not is_tensors(data):
        if not isinstance(data, Iterable):
            raise TypeError(
                f"{name} must be a tensor, a tuple or dict of tensors, or an iterable of batches "
                f"such as a DataLoader, got {type(data).__name__}."
            )
        return LoaderData(data, where, complete)
    tensors = as_tensors(data, where, name)
    try:
        return TensorData(tensors, where)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise MemoryError(
            f"{name} do not fit on {where.device}: pass a DataLoader, whose batches are moved "
            "there one at a time."
        ) from error


def _check_same_place(data: Data, where: Placed, name: str) -> None:
    if (data.device, data.dtype) != (where.device, where.dtype):
        raise ValueError(
            f"{name} were made for {data.dtype} on {data.device}, but {where.dtype} on "
            f"{where.device} is needed: pass the tensors or the loader instead."
        )
