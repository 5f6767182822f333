"""The one place where tensors are moved to the device and the dtype of a potential."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import check_particles

__all__ = ["Place", "Placed", "as_particles", "check_place", "place"]


class Placed(Protocol):
    """What data have to know of a potential: how many they are, and where they are needed."""

    @property
    def num_data(self) -> int | None:
        """N, or None where there are no data."""
        ...

    @property
    def device(self) -> torch.device:
        """Of the particles."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the particles, and of data that are floating point."""
        ...


@dataclass(frozen=True)
class Place:
    """A device and a dtype, where there is no potential, as for a module and a loss.

    Attributes:
        device: of the data.
        dtype: of data that are floating point.
        num_data: N, None where it is not known.
    """

    device: torch.device
    dtype: torch.dtype
    num_data: int | None = None


def check_place(where: Any) -> None:
    """``where`` knows a device, a dtype and a number of data, as every potential does."""
    known = isinstance(getattr(where, "device", None), torch.device)
    if not known or not isinstance(getattr(where, "dtype", None), torch.dtype):
        raise TypeError(
            "Data and particles belong to a potential (pvi.from_module, from_pyro, "
            f"from_log_density, from_log_likelihood), got {type(where).__name__}."
        )
    if not hasattr(where, "num_data"):
        raise TypeError(f"A potential has num_data, but this {type(where).__name__} has not.")


def place(tensors: Any, where: Placed) -> Any:
    """A tree of tensors on the device of a potential; floating point in its dtype."""

    def move(leaf: Tensor) -> Tensor:
        return leaf.to(where.device, where.dtype if leaf.is_floating_point() else leaf.dtype)

    return pytree.tree_map(move, tensors)


def as_particles(particles: Any, where: Placed, num_params: int, name: str = "particles") -> Tensor:
    """Particles ``[P, D]`` on the device and in the dtype of a potential.

    Raises:
        TypeError: no tensor.
        ValueError: another shape, or no floating-point numbers.
    """
    check_place(where)
    check_particles(particles, num_params, name)
    if particles.is_meta and where.device.type != "meta":
        raise ValueError(f"{name} must hold values, got a tensor on the meta device.")
    moved: Tensor = particles.detach().to(where.device, where.dtype)
    return moved
