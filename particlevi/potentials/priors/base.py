"""What a prior of a module's parameters is: a law per tensor, chosen by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_positive, is_number
from particlevi.typing import JSON

__all__ = [
    "Block",
    "BlockPrior",
    "Mean",
    "Prior",
    "PriorLike",
    "Scale",
    "by_pattern",
    "check_mean",
    "check_prior",
    "check_scale",
    "describe_mean",
    "describe_scale",
]

Scale = float | Mapping[str, float]
"""One scale, or one per name pattern; the first pattern that matches counts."""

Mean = float | Mapping[str, float | Tensor]
"""One mean, or one per name pattern, which may be a tensor of the parameter's shape."""

Value = TypeVar("Value")


class Scaled(Protocol):
    """What all priors of parameters have."""

    @property
    def scale(self) -> Any:
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


@runtime_checkable
class Prior(Scaled, Protocol):
    """A law of each parameter by itself, with a scale."""

    def elementwise(self, scale: Tensor, mean: Tensor | None = None) -> Any:
        """The distribution of parameters with these scales and means; zero if absent."""
        ...


class Block(NamedTuple):
    """The joint law of the n parameters of one tensor and of further ones that it brings.

    Attributes:
        shapes: of the parameters that are sampled besides, by name.
        constrained: the name and the map under which each is shown.
        log_prob: weights ``[P, n]`` and the further parameters, flat ``[P, k]``, to ``[P]``.
        sample: a number of draws P to weights ``[P, n]`` and further parameters.
    """

    shapes: Mapping[str, tuple[int, ...]]
    constrained: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
    log_prob: Callable[..., Tensor]
    sample: Callable[[int], tuple[Tensor, ...]]


@runtime_checkable
class BlockPrior(Scaled, Protocol):
    """A law that ties the parameters of a tensor together."""

    def block(self, name: str, shape: tuple[int, ...], scale: Tensor) -> Block:
        """The law of the tensor ``name``, whose elements have these scales ``[n]``."""
        ...


PriorLike = Prior | BlockPrior | Mapping[str, Prior | BlockPrior]
"""One prior for all parameters, or one per name pattern."""


def check_scale(scale: Any) -> None:
    """One positive number, or one per pattern."""
    for value in scale.values() if isinstance(scale, Mapping) else (scale,):
        check_positive("scale", value)
        if float(value) > torch.finfo(torch.float32).max:
            raise ValueError(f"scale must fit single precision, got {value!r}: use Flat().")


def check_mean(mean: Any) -> None:
    """One finite number, or per pattern a number or a finite tensor."""
    for value in mean.values() if isinstance(mean, Mapping) else (mean,):
        if isinstance(value, Tensor) and isinstance(mean, Mapping):
            check_finite("mean", value, "Choose finite means.")
        elif not is_number(value) or not abs(value) < float("inf"):
            raise ValueError(
                "mean must be a finite number, or a dict of numbers or tensors by name pattern, "
                f"such as a state_dict, got {type(value).__name__}."
            )


def describe_mean(mean: Mean) -> JSON:
    """A mean as JSON; tensors by what identifies them."""

    def one(value: float | Tensor) -> JSON:
        if not isinstance(value, Tensor):
            return float(value)
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(raw).hexdigest()[:16]}

    if isinstance(mean, Mapping):
        return {name: one(value) for name, value in mean.items()}
    return one(mean)


def describe_scale(scale: Any) -> JSON:
    """A scale as JSON."""
    if isinstance(scale, Mapping):
        return {name: float(value) for name, value in scale.items()}
    return scale if isinstance(scale, str) else float(scale)


def check_prior(prior: Any, name: str = "prior") -> None:
    """A prior; for ``prior`` itself also one per name pattern.

    Raises:
        TypeError: something else.
    """
    per_pattern = name == "prior" and isinstance(prior, Mapping)
    for each in prior.values() if per_pattern else (prior,):
        usable = hasattr(each, "elementwise") or (name == "prior" and hasattr(each, "block"))
        if isinstance(each, type) or not usable:
            got = f"the class {each.__name__}" if isinstance(each, type) else repr(each)
            also = ", or a dict of them by name pattern" if name == "prior" else ""
            raise TypeError(f"{name} must be one such as pvi.Normal(scale=1.0){also}, got {got}.")


def by_pattern(
    given: Any, name: str, what: str, used: set[str], default: Value | None = None
) -> Any:
    """The value for a name: the same for all, or that of the first pattern that matches.

    Raises:
        ValueError: no pattern matches and there is no default.
    """
    if not isinstance(given, Mapping):
        return given
    for pattern in given:
        if pattern == name or fnmatchcase(name, pattern):
            used.add(pattern)
            return given[pattern]
    if default is not None:
        return default
    raise ValueError(
        f"No pattern of the {what} matches the parameter {name!r}, got {list(given)}: "
        'end with a catch-all such as {"*": ...}.'
    )
