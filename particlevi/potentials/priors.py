"""Priors of a module's parameters, each a thin layer on ``pyro.distributions``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from particlevi._checks import check_positive
from particlevi.typing import JSON

__all__ = [
    "Laplace",
    "Normal",
    "Prior",
    "PriorLike",
    "Scale",
    "Segment",
    "check_prior",
    "check_scale",
    "segments",
]

Scale = float | Mapping[str, float]
"""One scale, or one per name pattern; the first pattern that matches counts."""


class Prior(Protocol):
    """A law of each parameter, centred at zero, with a scale."""

    @property
    def scale(self) -> Scale:
        """One number, or one per name pattern."""
        ...

    @property
    def fan_in(self) -> bool:
        """Whether weights are scaled by the root of their fan-in."""
        ...

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        ...

    def elementwise(self, scale: Tensor) -> Any:
        """The distribution of parameters with these scales."""
        ...


PriorLike = Prior | Mapping[str, Prior]
"""One prior for all parameters, or one per name pattern."""


def check_scale(scale: Scale) -> None:
    """One positive number, or one per pattern."""
    for value in scale.values() if isinstance(scale, Mapping) else (scale,):
        check_positive("scale", value)


def check_prior(prior: Any) -> None:
    """A prior, or one per name pattern.

    Raises:
        TypeError: something else.
    """
    for each in prior.values() if isinstance(prior, Mapping) else (prior,):
        if isinstance(each, type) or not hasattr(each, "elementwise"):
            got = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            raise TypeError(
                "prior must be one such as pvi.Normal(scale=1.0), or a dict of them by name "
                f"pattern, got {got}."
            )


@dataclass(frozen=True)
class Normal:
    """``w ~ Normal(0, scale)``.

    Args:
        scale: the standard deviation, or one per name pattern, as in
            ``{"*.weight": 0.5, "*": 1.0}`` (shell patterns; the first that matches counts).
        fan_in: divide the scale of weights (two or more dimensions) by the root of their fan-in,
            so that the prior of the outputs does not grow with the width.

    >>> float(Normal(scale=2.0).elementwise(torch.tensor(2.0)).variance)
    4.0
    """

    scale: Scale = 1.0
    fan_in: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        return {"kind": "Normal", **asdict(self)}

    def elementwise(self, scale: Tensor) -> Any:
        """``Normal(0, scale)``."""
        import pyro.distributions as dist

        return dist.Normal(scale.new_zeros(()), scale, validate_args=False)


@dataclass(frozen=True)
class Laplace:
    """``w ~ Laplace(0, scale)``; its standard deviation is ``sqrt(2) scale``.

    Args:
        scale: the scale, or one per name pattern, as in ``Normal``.
        fan_in: as in ``Normal``.
    """

    scale: Scale = 1.0
    fan_in: bool = False

    def __post_init__(self) -> None:
        check_scale(self.scale)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The prior as JSON."""
        return {"kind": "Laplace", **asdict(self)}

    def elementwise(self, scale: Tensor) -> Any:
        """``Laplace(0, scale)``."""
        import pyro.distributions as dist

        return dist.Laplace(scale.new_zeros(()), scale, validate_args=False)


class Segment(NamedTuple):
    """A stretch of consecutive parameters and their elementwise distribution."""

    size: int
    distribution: Any


def _match(name: str, patterns: Mapping[str, Any], what: str) -> str:
    for pattern in patterns:
        if fnmatchcase(name, pattern):
            return pattern
    raise ValueError(
        f"No pattern of the {what} matches the parameter {name!r}, got {list(patterns)}: "
        'end with a catch-all such as {"*": ...}.'
    )


def _check_all_used(patterns: Mapping[str, Any], used: set[str], names: list[str]) -> None:
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise ValueError(
            f"The prior's patterns {unused} match no parameter that an earlier one does not; "
            f"the parameters are {names}."
        )


def segments(
    prior: PriorLike, shapes: Mapping[str, tuple[int, ...]], like: Tensor
) -> list[Segment]:
    """The prior as few elementwise distributions over consecutive parameters.

    Args:
        prior: one prior, or one per name pattern.
        shapes: of the tensors, in order.
        like: a tensor whose dtype and device the scales take.

    Raises:
        ValueError: a parameter that no pattern matches, or a pattern that matches nothing.
    """
    names = list(shapes)
    used_priors: set[str] = set()
    used_scales: dict[int, set[str]] = {}
    runs: list[tuple[Prior, list[Tensor]]] = []
    for name, shape in shapes.items():
        if isinstance(prior, Mapping):
            pattern = _match(name, prior, "prior")
            used_priors.add(pattern)
            chosen = prior[pattern]
        else:
            chosen = prior
        scale = chosen.scale
        if isinstance(scale, Mapping):
            pattern = _match(name, scale, "prior's scale")
            used_scales.setdefault(id(chosen), set()).add(pattern)
            scale = scale[pattern]
        if chosen.fan_in and len(shape) >= 2:
            scale = scale / math.sqrt(math.prod(shape[1:]))
        block = torch.full((math.prod(shape),), float(scale), dtype=like.dtype, device=like.device)
        if runs and runs[-1][0] is chosen:
            runs[-1][1].append(block)
        else:
            runs.append((chosen, [block]))
    if isinstance(prior, Mapping):
        _check_all_used(prior, used_priors, names)
    for chosen, _ in runs:
        if isinstance(chosen.scale, Mapping):
            _check_all_used(chosen.scale, used_scales[id(chosen)], names)
    found = []
    for chosen, blocks in runs:
        scales = torch.cat(blocks)
        found.append(Segment(len(scales), chosen.elementwise(scales)))
    return found
