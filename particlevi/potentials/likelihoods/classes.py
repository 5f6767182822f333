"""Targets that are labels: 0 or 1, class numbers, ordered grades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from particlevi._checks import check_positive, check_positive_int, is_integer, is_word
from particlevi.potentials.likelihoods.base import (
    LikelihoodParameter,
    LikeOutputs,
    WithoutParameters,
    check_integers,
    per_output,
)
from particlevi.typing import JSON

__all__ = ["Bernoulli", "Categorical", "Ordinal"]


@dataclass(frozen=True)
class Bernoulli(LikeOutputs, WithoutParameters):
    """``y ~ Bernoulli(sigmoid(output))`` for targets 0 and 1.

    With several outputs per datum, ``[B, L]``, it is the law of L labels that are independent given
    the outputs (multi-label classification).
    """

    classes = False
    binary = True

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        return {"kind": "Bernoulli"}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Bernoulli(logits=outputs)``."""
        return torch.distributions.Bernoulli(logits=outputs, validate_args=False)

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are 0 or 1."""
        self.align(outputs, targets, per_particle=False)
        check_integers(targets, 1, "Bernoulli")


class _WeightedCategorical(torch.distributions.Categorical):
    """Log densities multiplied by the weight of the class; 0 for the class that is ignored."""

    class_weights: Tensor | None = None
    ignored: int | None = None

    def log_prob(self, value: Tensor) -> Tensor:
        """As in ``torch.distributions.Categorical``, weighted."""
        counted = torch.ones_like(value, dtype=torch.bool)
        if self.ignored is not None:
            counted = value != self.ignored
            value = torch.where(counted, value, torch.zeros_like(value))
        density: Tensor = super().log_prob(value)  # type: ignore[no-untyped-call]
        if self.class_weights is not None:
            density = density * self.class_weights[value]
        return torch.where(counted, density, torch.zeros_like(density))


@dataclass(frozen=True)
class Categorical(WithoutParameters):
    """``y ~ Categorical(softmax(output))`` for class numbers ``[B]`` and logits ``[B, C]``.

    Args:
        weight: one positive number per class, by which the log-likelihood of its data is
            multiplied: the sum that ``nn.CrossEntropyLoss(weight, reduction="sum")`` gives,
            negated. A weighted likelihood counts a datum more or less than once.
        ignore_index: data with this target count nothing.
    """

    weight: tuple[float, ...] | None = None
    ignore_index: int | None = None
    classes = True
    binary = False

    def __post_init__(self) -> None:
        if isinstance(self.weight, Tensor) and self.weight.is_meta:
            raise ValueError("weight must hold numbers, got a tensor on the meta device.")
        if isinstance(self.weight, (Tensor, list)):
            values = self.weight.tolist() if isinstance(self.weight, Tensor) else self.weight
            if not isinstance(values, list):
                raise TypeError(f"weight must hold one number per class, got {values!r}.")
            object.__setattr__(self, "weight", tuple(values))
        if self.weight is not None and not isinstance(self.weight, tuple):
            raise TypeError(
                f"weight must hold one number per class, got {type(self.weight).__name__}."
            )
        for value in self.weight or ():
            check_positive("weight", value)
        if self.ignore_index is not None and not is_integer(self.ignore_index):
            raise TypeError(f"ignore_index must be an integer, got {self.ignore_index!r}.")
        if self.ignore_index is not None and abs(int(self.ignore_index)) >= 2**63:
            raise ValueError(f"ignore_index must be below 2**63, got {self.ignore_index!r}.")

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        found: dict[str, JSON] = {"kind": "Categorical"}
        if self.weight is not None:
            found["weight"] = list(self.weight)
        if self.ignore_index is not None:
            found["ignore_index"] = self.ignore_index
        return found

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Categorical(logits=outputs)``, torch's own: Pyro's cannot be compiled whole."""
        if self.weight is None and self.ignore_index is None:
            return torch.distributions.Categorical(logits=outputs, validate_args=False)
        law = _WeightedCategorical(logits=outputs, validate_args=False)
        law.ignored = self.ignore_index
        if self.weight is not None:
            law.class_weights = outputs.new_tensor(self.weight)
        return law

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
        classes = outputs.shape[-1]
        if self.weight is not None and len(self.weight) != classes:
            raise ValueError(
                f"The likelihood has {len(self.weight)} class weights but the model {classes} "
                "logits."
            )
        if self.ignore_index is not None:
            targets = targets[targets != self.ignore_index]
        if targets.numel():
            check_integers(targets, classes - 1, "Categorical")


def _ordered(raw: Tensor) -> Tensor:
    """Increasing numbers ``[..., K-1]`` from a first one and the logarithms of the gaps."""
    return torch.cat([raw[..., :1], raw[..., 1:].exp()], dim=-1).cumsum(-1)


@dataclass(frozen=True)
class Ordinal:
    """``P(y <= k) = sigmoid(c_k - output)`` for ordered grades ``0 ... K-1`` and one output.

    The proportional-odds model. Cutpoints are sampled with the model under the prior
    ``c_1 ~ Normal(0, 2)`` and ``log(c_{k+1} - c_k) ~ Normal(0, 1)``, or given.

    Source: McCullagh, "Regression models for ordinal data", 1980.

    Args:
        num_classes: K, at least 2.
        cutpoints: K - 1 increasing numbers, or ``"learned"``. A model with a bias of its own shifts
            learned cutpoints: the prior alone tells the two apart, so leave the bias out.

    Examples:
        >>> law = Ordinal(3, cutpoints=(-1.0, 1.0)).distribution(torch.zeros(1, 1, 1), {})
        >>> law.probs.flatten()
        tensor([0.2689, 0.4621, 0.2689])
    """

    num_classes: int
    cutpoints: tuple[float, ...] | str = "learned"
    classes = True
    binary = False

    def __post_init__(self) -> None:
        check_positive_int("num_classes", self.num_classes, minimum=2)
        object.__setattr__(self, "num_classes", int(self.num_classes))
        if isinstance(self.cutpoints, list):
            object.__setattr__(self, "cutpoints", tuple(self.cutpoints))
        if is_word(self.cutpoints, "learned"):
            return
        found = self.cutpoints
        number = self.num_classes - 1
        if (
            not isinstance(found, tuple)
            or len(found) != number
            or list(found) != sorted(set(found))
        ):
            raise ValueError(
                f'cutpoints must be "learned" or a tuple of {number} increasing numbers, '
                f"got {found!r}."
            )

    @property
    def settings(self) -> Mapping[str, JSON]:
        """The likelihood as JSON."""
        given = self.cutpoints
        cutpoints: JSON = given if isinstance(given, str) else list(given)
        return {"kind": "Ordinal", "num_classes": self.num_classes, "cutpoints": cutpoints}

    def parameters(self) -> dict[str, LikelihoodParameter]:
        """``raw_cutpoints [K-1]`` if the cutpoints are learned."""
        if not is_word(self.cutpoints, "learned"):
            return {}
        number = self.num_classes - 1
        scale = torch.ones(number, dtype=torch.float64)
        scale[0] = 2.0
        prior = torch.distributions.Normal(torch.zeros_like(scale), scale, validate_args=False)
        return {"raw_cutpoints": LikelihoodParameter((number,), prior, "cutpoints", _ordered)}

    def distribution(self, outputs: Tensor, parameters: Mapping[str, Tensor]) -> Any:
        """``Categorical`` over the grades."""
        if is_word(self.cutpoints, "learned"):
            cuts = per_output(_ordered(parameters["raw_cutpoints"]), outputs)
        else:
            cuts = outputs.new_tensor(self.cutpoints)
        edges = cuts - outputs
        first = functional.logsigmoid(edges[..., :1])
        last = functional.logsigmoid(-edges[..., -1:])
        low, high = edges[..., :-1], edges[..., 1:]
        between = functional.logsigmoid(high) + functional.logsigmoid(-low)
        between = between + torch.log(-torch.expm1(low - high))
        logits = torch.cat([first, between, last], dim=-1)
        return torch.distributions.Categorical(logits=logits, validate_args=False)

    def align(self, outputs: Tensor, targets: Tensor, per_particle: bool) -> Tensor:
        """Grades without a dimension for the output."""
        lead = 2 if per_particle else 1
        wanted, got = outputs.shape[2:-1], targets.shape[lead:]
        if outputs.ndim < 3 or outputs.shape[-1] != 1 or got not in (wanted, outputs.shape[2:]):
            raise ValueError(
                "Ordinal needs one output [B, 1] and grades [B]; one datum has outputs "
                f"{list(outputs.shape[2:])} and a target {list(got)}."
            )
        return (targets if got == wanted else targets.squeeze(-1)).long()

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Targets are grades."""
        self.align(outputs, targets, per_particle=False)
        check_integers(targets, self.num_classes - 1, "Ordinal")
