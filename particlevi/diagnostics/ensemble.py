"""Posterior draws as one ``nn.Module``, for code that knows nothing of this package.

Of S draws with class probabilities p_s, the uncertainty of a prediction is::

    total      H(p),  p = mean_s p_s
    aleatoric  mean_s H(p_s)
    epistemic  I = H(p) - mean_s H(p_s),   the mutual information of label and parameters

Source: Houlsby, Huszar, Ghahramani and Lengyel, "Bayesian active learning for classification and
preference learning", 2011.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from particlevi._checks import check_positive_int
from particlevi._tracing import is_compiling
from particlevi.drawset import DrawSet
from particlevi.potentials.layout import Layout
from particlevi.potentials.likelihoods import Likelihood
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.vectorize import Vectorized
from particlevi.typing import Batch

__all__ = ["Ensemble", "to_module"]


@final
class Ensemble(nn.Module):
    """The module at S draws of its parameters, evaluated together.

    Called on the module's inputs it gives a dict of the posterior predictive at B inputs:

    * ``mean``: of a new target, ``[B, ...]``; class probabilities for labels.
    * for labels ``entropy`` of that and ``mutual_information``, ``[B, ...]`` in nats;
    * else ``std`` of a new target and ``epistemic_std``, that of the mean between draws.

    ``torch.export`` takes it, with the draws one after the other, so that the program grows with
    S. ``.to()`` moves it, and its ``state_dict`` holds the draws. It has no parameters to train.
    """

    def __init__(self, potential: ModelPotential, particles: Tensor, chunk_size: int | None = None):
        super().__init__()
        outputs = potential.model
        if outputs is None or not hasattr(outputs.function, "run"):
            raise ValueError("to_module() needs draws of a potential made by from_module.")
        function: Any = outputs.function
        self.chunk_size = chunk_size
        self.likelihood: Likelihood = outputs.likelihood
        self.layout: Layout = potential.layout
        self.random: bool = potential.random
        self.run: Any = function.run
        self.inner: Any = function.layout
        what = f"The module {type(function.module).__name__}"
        self.lifted = Vectorized(self._member, what, "different" if self.random else "error")
        self.lifted.looping = function.lifted.looping
        # A copy: the potential's own module stays where it is.
        self.base: Any = function.fresh_copy()
        self.register_buffer("particles", particles)
        self.particles: Tensor

    def members(self, *inputs: Any) -> Tensor:
        """The module's outputs under every draw, ``[S, B, ...]``."""
        rows = self.particles[:, : self.inner.num_params]
        if is_compiling():
            # vmap over batch normalisation fixes the batch size in what is exported.
            return torch.stack([self._member(row, inputs) for row in rows.unbind(0)])
        batch = Batch(inputs)
        parts = rows.split(self.chunk_size or len(rows))
        with sdpa_kernel(SDPBackend.MATH):  # the one that vmap lifts
            return torch.cat([self.lifted(part, batch) for part in parts])

    def _member(self, particle: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        found: Tensor = self.run(self.base, self.inner.unravel(particle), inputs)
        return found

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        """The posterior predictive."""
        tensors = self.layout.unravel(self.particles)
        own = {
            name.removeprefix("likelihood."): value
            for name, value in tensors.items()
            if name.startswith("likelihood.")
        }
        law = self.likelihood.distribution(self.members(*inputs), own)
        if self.likelihood.classes or self.likelihood.binary:
            return _of_labels(law.probs, self.likelihood.binary)
        return _of_numbers(law.mean, law.variance)

    def extra_repr(self) -> str:
        """How many draws."""
        return f"{len(self.particles)} draws, {type(self.likelihood).__name__}"


def to_module(draws: DrawSet, num: int | None = None, chunk_size: int | None = None) -> Ensemble:
    """Draws as an ensemble module; see ``Draws.to_module``."""
    flat, model = draws.parameters(), draws.model()
    if num is not None:
        check_positive_int("num", num)
        picks = torch.linspace(0, len(flat) - 1, min(int(num), len(flat)), dtype=torch.float64)
        flat = flat[picks.round().long()]
    if chunk_size is not None:
        check_positive_int("chunk_size", chunk_size)
    return Ensemble(model, flat.to(model.device, model.dtype).clone(), chunk_size)


def _of_labels(probs: Tensor, binary: bool) -> dict[str, Tensor]:
    """From probabilities ``[S, B, ...]`` of classes, or of the label 1."""
    mean = probs.mean(0)
    total = _entropy(mean, binary)
    return {
        "mean": mean,
        "entropy": total,
        "mutual_information": (total - _entropy(probs, binary).mean(0)).clamp(min=0),
    }


def _entropy(probs: Tensor, binary: bool) -> Tensor:
    """In nats, of classes along the last dimension, or of each label by itself."""
    if binary:
        return -torch.xlogy(probs, probs) - torch.xlogy(1 - probs, 1 - probs)
    return -torch.xlogy(probs, probs).sum(-1)


def _of_numbers(mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
    """From means and variances ``[S, B, ...]``, by the law of total variance."""
    between = mean.var(0, correction=0)
    return {
        "mean": mean.mean(0),
        "std": (variance.mean(0) + between).sqrt(),
        "epistemic_std": between.sqrt(),
    }
