"""What a likelihood is, and how it meets data: weights, masks and shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from particlevi._checks import is_number
from particlevi.potentials.priors import Prior
from particlevi.typing import JSON

__all__ = [
    "LikeOutputs",
    "Likelihood",
    "LikelihoodParameter",
    "WithoutParameters",
    "check_integers",
    "check_targets",
    "log_prob",
    "per_output",
    "same_shape",
    "split_weights",
]


class LikelihoodParameter(NamedTuple):
    """A parameter that the likelihood adds to every particle.

    Attributes:
        shape: of the tensor.
        prior: a distribution of the unconstrained tensor, elementwise.
        constrained_name: its name once ``constrain`` has been applied.
        constrain: from the real line to the parameter.
    """

    shape: tuple[int, ...]
    prior: Any
    constrained_name: str
    constrain: Callable[[Tensor], Tensor]

    @classmethod
    def positive(cls, shape: tuple[int, ...], prior: Prior, name: str) -> LikelihoodParameter:
        """The logarithm of a positive parameter, under a prior of the logarithm."""
        scale = prior.scale
        if not is_number(scale):
            raise ValueError(f"The prior of log_{name} takes one number as scale, got {scale!r}.")
        law = prior.elementwise(
            torch.tensor(scale, dtype=torch.float64),
            torch.tensor(float(getattr(prior, "mean", 0.0)), dtype=torch.float64),
        )
        return cls(shape, law, name, torch.exp)


class Likelihood(Protocol):
    """The law of a datum given the model's output."""

    classes: bool
    """Whether targets are class numbers, so that a prediction is a vector of probabilities."""
    binary: bool
    """Whether targets are 0 or 1, so that the mean is a probability."""

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        ...

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """Parameters of the likelihood itself that are sampled with the model's."""
        ...

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """The law, batched over outputs ``[P, B, ...]``; parameters are ``[P, ...]``."""
        ...

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets in the shape that ``distribution(outputs).log_prob`` takes."""
        ...

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Whether targets ``[B, ...]`` are possible values given outputs ``[P, B, ...]``."""
        ...


def split_weights(targets: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Targets, their weights ``[B]`` and their mask, of targets with or without those.

    Raises:
        ValueError: a dict with other keys than ``target``, ``weight`` and ``mask``.
    """
    if not isinstance(targets, Mapping):
        return targets, None, None
    unknown = set(targets) - {"target", "weight", "mask"}
    if unknown or "target" not in targets:
        raise ValueError(
            'A dict in the place of targets has the keys "target" and, as needed, "weight" [B] and '
            f'"mask", got {sorted(targets)}.'
        )
    return targets["target"], targets.get("weight"), targets.get("mask")


def plain_targets(targets: Any, what: str) -> Tensor:
    """Targets that all count alike.

    Raises:
        ValueError: there are weights or a mask, which what is named does not take.
    """
    values, weight, mask = split_weights(targets)
    if weight is not None or mask is not None:
        raise ValueError(
            f"{what} counts all targets alike: give (inputs, ..., targets) of the data that are to "
            "count, without weight and mask."
        )
    return values


def log_prob(
    likelihood: Likelihood,
    outputs: Tensor,
    targets: Any,
    parameters: Mapping[str, Tensor],
    per_particle: bool,
) -> Tensor:
    """Log-likelihoods ``[P, B]`` of targets, summed over the dimensions of one datum.

    Args:
        likelihood: the law.
        outputs: of the model, ``[P, B, ...]``.
        targets: ``[B, ...]``, or ``[P, B, ...]`` if per particle; or a dict of them as
            ``target``, with ``weight [B]`` by which a datum's log-likelihood is multiplied, and
            ``mask``, of the shape of the targets or ``[B]``, False where a value is missing.
        parameters: of the likelihood, each ``[P, ...]``.
        per_particle: whether every particle has its own data.
    """
    targets, weight, mask = split_weights(targets)
    lead = 2 if per_particle else 1
    num_data = targets.shape[lead - 1]
    if outputs.ndim < 2 or outputs.shape[1] != num_data:
        raise ValueError(
            f"The model must give one output per datum: it gave {list(outputs.shape[1:])} for "
            f"{num_data} data. Keep the first dimension of its inputs."
        )
    if mask is not None:
        mask = mask.bool().reshape(*mask.shape, *(1,) * (targets.ndim - mask.ndim))
        targets = torch.where(mask, targets, torch.zeros_like(targets))
    aligned = likelihood.align(outputs, targets, per_particle)
    values: Tensor = likelihood.distribution(outputs, parameters).log_prob(aligned)
    if mask is not None:
        present = mask.expand(targets.shape).reshape(*targets.shape[:lead], *values.shape[2:])
        values = torch.where(present, values, torch.zeros_like(values))
    values = values.flatten(2).sum(-1) if values.ndim > 2 else values
    if weight is None:
        return values
    if weight.shape != targets.shape[:lead]:
        raise ValueError(
            f"weight must have one number per datum, {list(targets.shape[:lead])}, got "
            f"{list(weight.shape)}."
        )
    return values * weight


def check_targets(likelihood: Likelihood, outputs: Tensor, targets: Any) -> None:
    """Targets ``[B, ...]``, their weights and their mask are possible, given outputs.

    Raises:
        ValueError: they are not.
    """
    targets, weight, mask = split_weights(targets)
    if weight is not None and not bool((torch.isfinite(weight) & (weight >= 0)).all()):
        raise ValueError("weight must hold finite numbers of at least 0.")
    if mask is not None:
        if mask.dtype != torch.bool or mask.shape != targets.shape[: mask.ndim]:
            raise ValueError(
                f"mask must be boolean, of shape {list(targets.shape)} or [{len(targets)}], True "
                f"where there is a value, got {mask.dtype} {list(mask.shape)}."
            )
        mask = mask.reshape(*mask.shape, *(1,) * (targets.ndim - mask.ndim))
        targets = torch.where(mask, targets, torch.zeros_like(targets))
    likelihood.check(outputs, targets)


def same_shape(outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
    """Targets in the shape of the outputs; a last dimension of 1 may be left out."""
    lead = 2 if per_particle else 1
    wanted, got = outputs.shape[2:], targets.shape[lead:]
    if wanted == got:
        return targets
    if wanted == (*got, 1):
        return targets.unsqueeze(-1)
    if (*wanted, 1) == tuple(got):
        return targets.squeeze(-1)
    raise ValueError(
        f"One target has shape {list(got)} but the model's output for one datum has shape "
        f"{list(wanted)}: they must agree (a last dimension of 1 may be left out)."
    )


class LikeOutputs:
    """A likelihood whose targets have the shape of the outputs."""

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the outputs."""
        return same_shape(outputs, targets, per_particle).to(outputs.dtype)


def per_output(values: Tensor, outputs: Tensor) -> Tensor:
    """Parameters ``[P, K]`` of a likelihood against outputs ``[P, B, ..., K]``."""
    between = [1] * (outputs.ndim - 2)
    return values.view(len(values), *between, -1) if between else values


class WithoutParameters:
    """A likelihood that adds no parameters to a particle."""

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """None."""
        return {}


def check_integers(targets: Tensor, upper: int | None, name: str) -> None:
    """Targets are integers from 0 to ``upper``."""
    low, high = targets.min().item(), targets.max().item()
    whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if low < 0 or (upper is not None and high > upper) or not whole:
        allowed = f"0 ... {upper}" if upper is not None else "0, 1, 2 ..."
        raise ValueError(
            f"{name} targets must be integers in {allowed}, got values from {low} to {high}"
            f"{'' if whole else ' with fractions'}."
        )
