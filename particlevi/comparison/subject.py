"""What scores are computed from: one set of draws, and what all sets share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from particlevi.data import Data
from particlevi.diagnostics import arviz
from particlevi.diagnostics.outputs import log_predictive_density
from particlevi.diagnostics.predictive import epistemic_series, predict
from particlevi.drawset import DrawSet
from particlevi.potentials.likelihoods import plain_targets
from particlevi.potentials.potential import ModelPotential

__all__ = ["Predictive", "Setting", "Subject"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What the sets of a comparison share.

    Attributes:
        model: what they are draws of.
        data: held-out data ``(inputs, targets)``, on the model's device.
        train: all training data, or None.
        thin: every ``thin``-th draw is used.
        max_hessian: with more parameters than that there is no Hessian.
        seed: of all that is random.
    """

    model: ModelPotential
    data: tuple[Any, ...]
    train: Data | None
    thin: int
    max_hessian: int
    seed: int

    @property
    def inputs(self) -> Any:
        """Of the held-out data."""
        return self.data[:-1]

    @property
    def targets(self) -> Tensor:
        """Of the held-out data."""
        return plain_targets(self.data[-1], "A comparison").cpu()


@dataclass(frozen=True, eq=False)
class Predictive:
    """The predictive distributions ``[B]`` of one set: class probabilities, or mixed normals."""

    mean: Tensor
    std: Tensor
    probs: Tensor | None

    def at(self, index: Tensor) -> Predictive:
        """Of some of the inputs."""
        probs = None if self.probs is None else self.probs[index]
        return Predictive(self.mean[index], self.std[index], probs)


@dataclass(frozen=True, eq=False)
class Subject:
    """One set of draws, with what several scores need of it.

    Attributes:
        name: of the set.
        draws: the draws.
        setting: what it shares with the others.
    """

    name: str
    draws: DrawSet
    setting: Setting

    @cached_property
    def parameters(self) -> Tensor:
        """``[S, D]`` in float64."""
        return self.draws.parameters(self.setting.thin).double().cpu()

    @cached_property
    def predictive(self) -> Predictive:
        """At the held-out inputs, in float64."""
        prediction = predict(self.draws, self.setting.inputs, thin=self.setting.thin)
        probs = None if prediction.probs is None else prediction.probs.double().cpu()
        likelihood = self.setting.model.likelihood
        if probs is not None and likelihood is not None and likelihood.binary:
            probs = probs.reshape(len(probs), -1)[:, :1]
            probs = torch.cat([1 - probs, probs], -1)
        return Predictive(prediction.mean.double().cpu(), prediction.std.double().cpu(), probs)

    @cached_property
    def log_density(self) -> Tensor:
        """Of each held-out datum, ``[B]``, in nats."""
        return log_predictive_density(self.draws, self.setting.data, thin=self.setting.thin).cpu()

    @cached_property
    def epistemic_variance(self) -> tuple[float, float]:
        """The variance of the model's mean between draws, mean over inputs, and its error."""
        values = epistemic_series(self.draws, self.setting.inputs, thin=self.setting.thin)
        count = values.numel()
        if self.draws.facts.kind == "chains" and values.shape[1] >= arviz.MIN_DRAWS:
            error = float(arviz.mcse(values))
        else:
            error = float(values.std()) / math.sqrt(count) if count > 1 else math.nan
        return float(values.mean()), error
