"""Laws of a datum given the model's output, each a thin layer on ``pyro.distributions``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from particlevi._checks import check_positive, check_positive_int
from particlevi.typing import JSON

__all__ = [
    "Bernoulli",
    "Categorical",
    "Gaussian",
    "Likelihood",
    "LikelihoodParameter",
    "Poisson",
    "log_prob",
    "no_parameters",
    "same_shape",
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


def log_prob(
    likelihood: Likelihood,
    outputs: Tensor,
    targets: Tensor,
    parameters: Mapping[str, Tensor],
    per_particle: bool,
) -> Tensor:
    """Log-likelihoods ``[P, B]`` of targets, summed over the dimensions of one datum."""
    num_data = targets.shape[1 if per_particle else 0]
    if outputs.ndim < 2 or outputs.shape[1] != num_data:
        raise ValueError(
            f"The model must give one output per datum: it gave {list(outputs.shape[1:])} for "
            f"{num_data} data. Keep the first dimension of its inputs."
        )
    targets = likelihood.align(outputs, targets, per_particle)
    values: Tensor = likelihood.distribution(outputs, parameters).log_prob(targets)
    return values.flatten(2).sum(-1) if values.ndim > 2 else values


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


def no_parameters() -> dict[str, LikelihoodParameter]:
    """None."""
    return {}


def _check_integers(targets: Tensor, upper: int | None, name: str) -> None:
    low, high = targets.min().item(), targets.max().item()
    whole = not targets.is_floating_point() or bool((targets == targets.round()).all())
    if low < 0 or (upper is not None and high > upper) or not whole:
        allowed = f"0 ... {upper}" if upper is not None else "0, 1, 2 ..."
        raise ValueError(
            f"{name} targets must be integers in {allowed}, got values from {low} to {high}"
            f"{'' if whole else ' with fractions'}."
        )


@dataclass(frozen=True)
class Gaussian:
    """``y ~ Normal(output, scale)``.

    Args:
        scale: the standard deviation; one number, one per output, or ``"learned"``: then
            ``log_scale`` is sampled with the model, one per output, under the prior
            ``log_scale ~ Normal(0, 1)``, that is ``scale ~ LogNormal(0, 1)``.
        num_outputs: how many learned scales.

    >>> Gaussian(scale=0.5).distribution(torch.zeros(1, 3, 1), {}).stddev.flatten()
    tensor([0.5000, 0.5000, 0.5000])
    """

    scale: float | tuple[float, ...] | str
    num_outputs: int = 1
    classes = False
    binary = False

    def __post_init__(self) -> None:
        if isinstance(self.scale, str) and self.scale != "learned":
            raise ValueError(f'scale must be a number, numbers or "learned", got {self.scale!r}.')
        if isinstance(self.scale, (Tensor, list)):
            flat = self.scale.flatten().tolist() if isinstance(self.scale, Tensor) else self.scale
            object.__setattr__(self, "scale", flat[0] if len(flat) == 1 else tuple(flat))
        if not isinstance(self.scale, str):
            values = self.scale if isinstance(self.scale, tuple) else (self.scale,)
            for value in values or (None,):
                check_positive("scale", value)
        check_positive_int("num_outputs", self.num_outputs)

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Gaussian", **asdict(self)}

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """``log_scale [num_outputs]`` if the scale is learned."""
        import pyro.distributions as dist

        if self.scale != "learned":
            return {}
        prior = dist.Normal(0.0, 1.0, validate_args=False)
        return {"log_scale": LikelihoodParameter((self.num_outputs,), prior, "scale", torch.exp)}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Normal(outputs, scale)``."""
        import pyro.distributions as dist

        if self.scale == "learned":
            scale: Any = parameters["log_scale"].exp()
            between = [1] * (outputs.ndim - 2)
            scale = scale.view(-1, *between, self.num_outputs) if between else scale
        elif isinstance(self.scale, tuple):
            scale = outputs.new_tensor(self.scale)
        else:
            scale = self.scale
        return dist.Normal(outputs, scale, validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the outputs."""
        return same_shape(outputs, targets, per_particle).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """The number of scales fits the number of outputs."""
        self.align(outputs, targets, per_particle=False)
        num = self.num_outputs if self.scale == "learned" else None
        num = len(self.scale) if isinstance(self.scale, tuple) else num
        width = outputs.shape[-1] if outputs.ndim > 2 else 1
        if num is not None and num not in (1, width):
            raise ValueError(f"The likelihood has {num} scales but the model {width} outputs.")


@dataclass(frozen=True)
class Bernoulli:
    """``y ~ Bernoulli(sigmoid(output))`` for targets 0 and 1."""

    classes = False
    binary = True

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Bernoulli"}

    parameters = staticmethod(no_parameters)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Bernoulli(logits=outputs)``."""
        import pyro.distributions as dist

        return dist.Bernoulli(logits=outputs, validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the outputs."""
        return same_shape(outputs, targets, per_particle).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are 0 or 1."""
        self.align(outputs, targets, per_particle=False)
        _check_integers(targets, 1, "Bernoulli")


@dataclass(frozen=True)
class Categorical:
    """``y ~ Categorical(softmax(output))`` for class numbers ``[B]`` and logits ``[B, C]``."""

    classes = True
    binary = False

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Categorical"}

    parameters = staticmethod(no_parameters)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Categorical(logits=outputs)``, torch's own: Pyro's cannot be compiled whole."""
        return torch.distributions.Categorical(logits=outputs, validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Class numbers without a dimension for the classes."""
        lead = 2 if per_particle else 1
        wanted, got = outputs.shape[2:-1], targets.shape[lead:]
        if outputs.ndim < 3 or wanted != got:
            raise ValueError(
                "Categorical needs logits [B, C] and class numbers [B]; one datum has logits "
                f"{list(outputs.shape[2:])} and a target {list(got)}. One-hot targets become "
                "class numbers by argmax(-1)."
            )
        return targets.long()

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are class numbers that the model has a logit for."""
        self.align(outputs, targets, per_particle=False)
        _check_integers(targets, outputs.shape[-1] - 1, "Categorical")


@dataclass(frozen=True)
class Poisson:
    """``y ~ Poisson(exp(output))`` for counts."""

    classes = False
    binary = False

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Poisson"}

    parameters = staticmethod(no_parameters)

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Poisson(exp(outputs))``."""
        import pyro.distributions as dist

        return dist.Poisson(outputs.exp(), validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Targets as floats in the shape of the outputs."""
        return same_shape(outputs, targets, per_particle).to(outputs.dtype)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are counts."""
        self.align(outputs, targets, per_particle=False)
        _check_integers(targets, None, "Poisson")
