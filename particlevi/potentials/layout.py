"""Named tensors as one vector and back, and the partitions of that vector into groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_groups, check_positive_int, check_seed

__all__ = ["Groups", "Layout"]

Groups = str | tuple[str, int] | Tensor
"""A rule, ``"tensor"``, ``"layer"``, ``"neuron"``, ``"parameter"`` or ``("random", M)``, or
group numbers ``LongTensor [D]``."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that make up one particle, in order.

    Attributes:
        shapes: of the tensors, by name.
        sizes: their numbers of elements.
        num_params: D, the length of one particle.

    Examples:
        >>> layout = Layout({"weight": (3, 2), "bias": (3,)})
        >>> layout.num_params
        9
        >>> particles = torch.arange(18.0).view(2, 9)
        >>> layout.unravel(particles)["weight"].shape
        torch.Size([2, 3, 2])
        >>> torch.equal(layout.ravel(layout.unravel(particles)), particles)
        True
    """

    shapes: Mapping[str, tuple[int, ...]]
    sizes: tuple[int, ...] = field(init=False)
    num_params: int = field(init=False)

    def __post_init__(self) -> None:
        sizes = tuple(math.prod(shape) for shape in self.shapes.values())
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "num_params", sum(sizes))

    def unravel(self, particles: Tensor) -> dict[str, Tensor]:
        """Particles ``[..., D]`` as named views ``[..., *shape]``."""
        if particles.ndim == 0 or particles.shape[-1] != self.num_params:
            raise ValueError(
                f"Particles must have shape [..., {self.num_params}], got {list(particles.shape)}."
            )
        leading = particles.shape[:-1]
        parts = particles.split(self.sizes, dim=-1)
        return {
            name: part.view((*leading, *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def ravel(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Named tensors ``[..., *shape]`` as particles ``[..., D]``."""
        missing = [name for name in self.shapes if name not in tensors]
        unknown = [name for name in tensors if name not in self.shapes]
        if missing or unknown:
            raise KeyError(
                f"The tensors of one particle are {list(self.shapes)}; missing {missing}, "
                f"unknown {unknown}."
            )
        parts = []
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            leading = tensor.shape[: tensor.ndim - len(shape)]
            if tuple(tensor.shape[len(leading) :]) != tuple(shape):
                raise ValueError(
                    f"{name} must have shape [..., {', '.join(map(str, shape))}], "
                    f"got {list(tensor.shape)}."
                )
            parts.append(tensor.reshape(*leading, math.prod(shape)))
        return torch.cat(parts, dim=-1)

    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in a particle."""
        where, start = {}, 0
        for name, size in zip(self.shapes, self.sizes, strict=True):
            where[name] = slice(start, start + size)
            start += size
        return where

    def coordinate_names(self) -> list[str]:
        """One name per coordinate, ``weight[2,0]``."""
        names = []
        for name, shape in self.shapes.items():
            if not shape:
                names.append(name)
                continue
            index = torch.cartesian_prod(*(torch.arange(n) for n in shape)).view(-1, len(shape))
            names += [f"{name}[{','.join(map(str, row))}]" for row in index.tolist()]
        return names

    def groups(self, rule: Groups, seed: int = 0) -> Tensor:
        """Group numbers ``LongTensor [D]``, from 0 without gaps.

        Args:
            rule: ``"tensor"``: one group per tensor. ``"layer"``: tensors whose names differ only
                after the last dot. ``"neuron"``: all that feeds one unit, that is, row ``i`` of
                every tensor of a layer with the same first dimension. ``"parameter"``: each
                coordinate its own. ``("random", M)``: M groups of sizes that differ by at most
                one, assigned at random. Or the group numbers themselves.
            seed: of the random rule.

        Raises:
            ValueError: the rule is unknown, or the numbers have the wrong length or gaps.
        """
        check_seed("seed", seed)
        if isinstance(rule, Tensor):
            check_groups(rule, self.num_params)
            return rule
        if not isinstance(rule, (str, tuple)):
            raise TypeError(
                f"groups must be a rule or a LongTensor [{self.num_params}], "
                f"got {type(rule).__name__}."
            )
        if isinstance(rule, tuple) and len(rule) == 2 and rule[0] == "random":
            check_positive_int("the number of random groups", rule[1])
            if rule[1] > self.num_params:
                raise ValueError(
                    f"{rule[1]} random groups need at least as many parameters, "
                    f"got {self.num_params}."
                )
            order = torch.randperm(
                self.num_params, generator=torch.Generator().manual_seed(int(seed))
            )
            return order % rule[1]
        if rule == "parameter":
            return torch.arange(self.num_params)
        if rule in ("tensor", "layer", "neuron"):
            keys: dict[Any, int] = {}
            parts = []
            for (name, shape), size in zip(self.shapes.items(), self.sizes, strict=True):
                layer = name.rpartition(".")[0]
                if rule == "neuron" and shape:
                    rows = [
                        keys.setdefault((layer, shape[0], i), len(keys)) for i in range(shape[0])
                    ]
                    parts.append(torch.tensor(rows).repeat_interleave(size // max(shape[0], 1)))
                else:
                    key = layer if rule == "layer" else name
                    parts.append(torch.full((size,), keys.setdefault(key, len(keys))))
            return torch.cat(parts)
        raise ValueError(
            'groups must be "tensor", "layer", "neuron", "parameter", ("random", M) or a '
            f"LongTensor [{self.num_params}], got {rule!r}."
        )
