"""Arrays, frames and tensors as tensors that have been checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_finite
from particlevi.data.placing import Placed

__all__ = ["as_tensors", "is_frame", "is_tensors", "length_of"]

_LARGEST_ITEM = 8


def is_frame(value: Any) -> bool:
    """Whether it is a table or a column of pandas, polars or the like."""
    return callable(getattr(value, "to_numpy", None)) and not isinstance(value, np.ndarray)


def is_tensors(data: Any) -> bool:
    """Whether data are tensors in memory, and no iterable of batches."""
    if isinstance(data, (tuple, dict)):
        return True
    leaves = pytree.tree_leaves(data)
    if not leaves or not all(isinstance(x, (Tensor, np.ndarray)) or is_frame(x) for x in leaves):
        return False
    return not (isinstance(data, list) and all(isinstance(x, (tuple, list, dict)) for x in data))


def length_of(data: Any) -> int:
    """How many data a tree of tensors holds."""
    return len(pytree.tree_leaves(data)[0])


def as_tensors(data: Any, where: Placed, name: str = "data") -> Any:
    """Arrays and frames as tensors, floats in the dtype of ``where``, leaves of one length.

    They stay on the device where they are.

    Args:
        data: a tensor, array or frame, or a tuple, list or dict of them.
        where: a potential, for its dtype.
        name: what they are called in errors.

    Raises:
        TypeError: a leaf that is no dense array of real numbers, or a masked one.
        ValueError: leaves of different lengths, no leaves, NaN or infinite values, values too
            large for the dtype.
    """
    data = tuple(data) if isinstance(data, list) else data
    leaves, structure = pytree.tree_flatten(data)
    tensors = [_as_tensor(leaf, name) for leaf in leaves]
    _check_lengths(tensors, name)
    if where.device.type != "meta" and any(leaf.is_meta for leaf in tensors):
        raise ValueError(f"{name} must hold values, got a tensor on the meta device.")
    for i, leaf in enumerate(tensors):
        if leaf.is_meta or not leaf.is_floating_point():
            continue
        check_finite(f"{name}[{i}]", leaf, "Remove or impute those rows.")
        tensors[i] = leaf.to(where.dtype)
        if torch.finfo(where.dtype).max < torch.finfo(leaf.dtype).max:
            kind = str(where.dtype).removeprefix("torch.")
            check_finite(
                f"{name}[{i}] in {kind}, the dtype of the potential,",
                tensors[i],
                "Scale the data down, or make the potential in a wider dtype.",
            )
    return pytree.tree_unflatten(tensors, structure)


def _check_lengths(leaves: list[Tensor], name: str) -> None:
    if not leaves or any(leaf.ndim == 0 for leaf in leaves):
        got = [list(leaf.shape) for leaf in leaves]
        raise ValueError(
            f"{name} must be tensors whose first dimension counts the data, got shapes {got}."
        )
    lengths = [len(leaf) for leaf in leaves]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"{name} must have one length, got first dimensions {lengths}: inputs and targets do "
            "not belong together. A list of batches is a list of tuples, [(x,), (x,)]."
        )
    if not lengths[0]:
        raise ValueError(f"{name} must hold at least one datum, got none.")


def _as_tensor(leaf: Any, name: str) -> Tensor:
    _check_unmasked(leaf, name)
    kind: str | None = None
    if is_frame(leaf):
        leaf = _from_frame(leaf, name)
    if isinstance(leaf, np.ndarray):
        kind = f"a {leaf.dtype} array"
        if leaf.dtype.kind in "biuf" and leaf.itemsize <= _LARGEST_ITEM:
            leaf = _from_array(leaf, name)
    if not isinstance(leaf, Tensor) or not _is_plain(leaf):
        got = kind or ("None" if leaf is None else type(leaf).__name__)
        if isinstance(leaf, Tensor):
            got = f"a {leaf.dtype} tensor of layout {leaf.layout}"
        raise TypeError(
            f"{name} must be made of dense tensors or arrays of real numbers, got {got}."
        )
    plain: Tensor = leaf.detach()
    # Autograd cannot save a tensor made in inference mode; outside of it, a copy is a plain one.
    made_in_inference = plain.is_inference() and not torch.is_inference_mode_enabled()
    return plain.clone() if made_in_inference else plain


def _is_plain(leaf: Tensor) -> bool:
    return not (
        leaf.is_complex() or leaf.is_quantized or leaf.is_nested or leaf.layout != torch.strided
    )


def _check_unmasked(leaf: Any, name: str) -> None:
    if isinstance(leaf, np.ma.MaskedArray) or type(leaf).__name__ == "MaskedTensor":
        raise TypeError(
            f"{name} must be without a mask, got a {type(leaf).__name__}: its mask would be lost "
            "and the values under it taken for data. Keep the rows without masked values, "
            "x[~numpy.ma.getmaskarray(x).any(1)], or impute them and pass x.filled(...)."
        )


def _from_array(array: np.ndarray[Any, Any], name: str) -> Tensor:
    if array.dtype.kind == "u" and array.itemsize > 1:
        # Torch has few operations on wide unsigned integers.
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must be integers below 2**63, got {array.max()}.")
        return torch.from_numpy(array.astype(np.int64))
    native = np.asarray(array, array.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(native if native.flags.writeable else native.copy())


def _from_frame(frame: Any, name: str) -> np.ndarray[Any, Any]:
    """The numbers of a frame; columns that hold none are named."""
    dtypes: Any = getattr(frame, "dtypes", None)
    columns = list(getattr(frame, "columns", []))
    values = np.asarray(frame.to_numpy())
    if values.dtype.kind in "biuf":
        return values
    if columns and dtypes is not None:
        kinds = dict(zip(columns, (str(kind) for kind in dtypes), strict=True))
        numeric = ("int", "uint", "float", "bool", "double", "Int", "UInt", "Float", "Bool")
        odd = {str(c): kind for c, kind in kinds.items() if not kind.startswith(numeric)}
    else:
        odd = {}
    what = f"columns {odd}" if odd else f"values of dtype {values.dtype}, as from missing ones"
    raise TypeError(
        f"{name} must be numbers, got a {type(frame).__name__} with {what}: leave these out, "
        "encode them as numbers, and remove or impute missing values."
    )
