"""The posterior predictive, summarised over draws."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi._checks import as_list, check_positive_int, check_seed, is_number
from particlevi._shown import Shown
from particlevi.data import as_particles, place
from particlevi.data.tensors import as_tensors
from particlevi.diagnostics.outputs import as_inputs
from particlevi.drawset import DrawSet, check_draws
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch

__all__ = ["Prediction", "draw_sites", "epistemic_series", "predict"]

_MIN_TARGETS = 1000


@dataclass(frozen=True, eq=False, repr=False)
class Prediction(Shown):
    """The posterior predictive at B inputs, summarised over all draws.

    Iterating gives ``mean, std``.

    Attributes:
        mean: of a new target, ``[B, ...]``; class probabilities ``[B, C]`` for a categorical.
        std: standard deviation of a new target, ``[B, ...]``: that of the model's mean between
            draws and that of the noise, by the law of total variance. For class probabilities,
            their standard deviation between draws.
        epistemic_std: that of the model's mean between draws alone; None for Pyro models, which
            give targets but not the mean of their law.
        probs: class probabilities ``[B, C]``, or ``P(y = 1)`` for a Bernoulli; None otherwise.
        quantiles: of a new target, ``[Q, B, ...]``, or None if none were asked for.
    """

    mean: Tensor
    std: Tensor
    epistemic_std: Tensor | None
    probs: Tensor | None = None
    quantiles: Tensor | None = None

    def __iter__(self) -> Iterator[Tensor]:
        yield self.mean
        yield self.std


def predict(
    draws: DrawSet,
    inputs: Any,
    *,
    quantiles: tuple[float, ...] = (),
    thin: int = 1,
    chunk_size: int = 64,
    batch_size: int = 1024,
    seed: int = 0,
) -> Prediction:
    """The posterior predictive at some inputs; see ``Draws.predict``."""
    check_draws(draws)
    model = draws.model()
    check_positive_int("chunk_size", chunk_size)
    check_positive_int("batch_size", batch_size)
    check_seed("seed", seed)
    quantiles = tuple(as_list("quantiles", quantiles, "a tuple of numbers in [0, 1]"))
    for each in quantiles:
        if not is_number(each) or not 0 <= each <= 1:
            raise ValueError(f"quantiles must be numbers in [0, 1], got {quantiles!r}.")
    flat = draws.parameters(thin)
    if model.predictive_fn is not None:
        return _predict_sites(model, flat, inputs, quantiles, int(seed))
    if model.likelihood is None:
        raise ValueError(
            "Predictions need a potential made from a module or a Pyro model; draws of a "
            "density are in .particles."
        )
    batch = as_inputs(inputs, model)
    return _predict_outputs(
        model, flat, batch, quantiles, int(chunk_size), int(batch_size), int(seed)
    )


def epistemic_series(draws: DrawSet, inputs: Any, *, thin: int = 1, chunk_size: int = 64) -> Tensor:
    """How far the model's mean is from its average over draws, for every draw ``[P, T]``.

    The square distance, mean over inputs (and outputs, or classes): its mean over draws is the
    epistemic variance, and its Monte-Carlo error the error of that.

    Raises:
        ValueError: a potential without a likelihood of outputs.
    """
    model = draws.model()
    check_positive_int("chunk_size", chunk_size)
    kept, likelihood = draws.by_chain(thin), model.likelihood
    draws.check_complete()
    if likelihood is None:
        raise ValueError("The mean of a new target needs a potential made from a module.")
    batch = as_inputs(inputs, model)
    parts = kept.flatten(0, 1).split(int(chunk_size))

    def centers(part: Tensor) -> Tensor:
        return _centers(model, as_particles(part, model, model.num_params), batch)[0]

    total = sum(centers(part).sum(0) for part in parts)
    mean = total / (kept.shape[0] * kept.shape[1])
    squares = [(centers(part) - mean).square().flatten(1).mean(1) for part in parts]
    return torch.cat(squares).view(kept.shape[:2])


def _centers(model: ModelPotential, particles: Tensor, batch: Batch) -> tuple[Tensor, Any]:
    """The model's mean, or class probabilities, ``[S, B, ...]`` in float64, and the law."""
    assert model.likelihood is not None
    with torch.no_grad():
        outputs = model.outputs(particles, batch)
    scales = {k: v.double() for k, v in model.likelihood_parameters(particles).items()}
    law = model.likelihood.distribution(outputs.double(), scales)
    return (law.probs if model.likelihood.classes else law.mean), law


def _predict_outputs(
    model: ModelPotential,
    flat: Tensor,
    batch: Batch,
    quantiles: tuple[float, ...],
    chunk_size: int,
    batch_size: int,
    seed: int,
) -> Prediction:
    """From the likelihood at the model's outputs, for draws ``flat [S, D]``."""
    length = len(pytree.tree_leaves(batch.data)[0])
    generator = torch.Generator().manual_seed(int(seed))
    parts = []
    for start in range(0, length, batch_size):
        piece = pytree.tree_map(lambda leaf, a=start: leaf[a : a + batch_size], batch.data)
        parts.append(_summary(model, flat, Batch(piece), quantiles, chunk_size, generator))
    has_probs, has_quantiles = parts[0].probs is not None, parts[0].quantiles is not None
    between = [part.epistemic_std for part in parts if part.epistemic_std is not None]
    return Prediction(
        mean=torch.cat([part.mean for part in parts]),
        std=torch.cat([part.std for part in parts]),
        epistemic_std=torch.cat(between),
        probs=torch.cat([part.mean for part in parts]) if has_probs else None,
        quantiles=torch.cat([part.quantiles for part in parts if part.quantiles is not None], 1)
        if has_quantiles
        else None,
    )


def _summary(
    model: ModelPotential,
    flat: Tensor,
    batch: Batch,
    quantiles: tuple[float, ...],
    chunk_size: int,
    generator: torch.Generator,
) -> Prediction:
    assert model.likelihood is not None
    mean = second = noise = torch.zeros(())
    targets = []
    reference = None
    probabilities = model.likelihood.classes
    for part in flat.split(chunk_size):
        center, law = _centers(model, as_particles(part, model, model.num_params), batch)
        reference = center.mean(0) if reference is None else reference
        mean = mean + (center - reference).sum(0)
        second = second + (center - reference).square().sum(0)
        noise = noise + (0.0 if probabilities else law.variance.sum(0))
        if quantiles:
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
                each = math.ceil(_MIN_TARGETS / len(flat))
                targets.append(law.sample((each,)).flatten(0, 1))
    assert reference is not None
    mean, second, noise = mean / len(flat), second / len(flat), noise / len(flat)
    between = (second - mean.square()).clamp(min=0)
    mean, dtype = mean + reference, model.dtype
    has_probs = model.likelihood.classes or model.likelihood.binary
    return Prediction(
        mean=mean.to(dtype),
        std=(between + noise).sqrt().to(dtype),
        epistemic_std=between.sqrt().to(dtype),
        probs=mean.to(dtype) if has_probs else None,
        quantiles=_quantiles(torch.cat(targets), quantiles, dtype) if quantiles else None,
    )


def _quantiles(targets: Tensor, quantiles: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    values = np.quantile(targets.double().cpu().numpy(), quantiles, axis=0)
    return torch.from_numpy(values).to(targets.device, dtype)


def _predict_sites(
    model: ModelPotential, flat: Tensor, args: Any, quantiles: tuple[float, ...], seed: int
) -> Prediction:
    """From targets that the model draws itself, at least a thousand, for draws ``flat [S, D]``.

    Raises:
        ValueError: several observed sites, or one of class numbers, which have no mean.
    """
    each = math.ceil(_MIN_TARGETS / len(flat))
    sites = draw_sites(model, flat.repeat(each, 1), args, seed)
    how = "potential.predictive_fn(potential.constrain(draws.flat()), inputs, seed=0)"
    if len(sites) != 1:
        raise ValueError(
            f"The model has the observed sites {list(sites)}, and predict() summarises one. Draws "
            f"of all of them: {how}, or to_arviz(posterior_predictive=True)."
        )
    ((name, targets),) = sites.items()
    if not targets.is_floating_point():
        raise ValueError(
            f"Site {name!r} has integer targets, class numbers whose mean says nothing. Count "
            f"them: torch.nn.functional.one_hot({how}[{name!r}]).double().mean(0)."
        )
    dtype, wide = model.dtype, targets.double()
    return Prediction(
        mean=wide.mean(0).to(dtype),
        std=wide.std(0, correction=0).to(dtype),
        epistemic_std=None,
        quantiles=_quantiles(targets, quantiles, dtype) if quantiles else None,
    )


def draw_sites(model: ModelPotential, flat: Tensor, args: Any, seed: int) -> dict[str, Tensor]:
    """One draw of each observed site for each of the draws ``flat [S, D]``, by name."""
    assert model.predictive_fn is not None
    if args is not None:
        args = place(as_tensors(args, model, "inputs"), model)
    samples = model.constrain(as_particles(flat, model, model.num_params))
    return model.predictive_fn(samples, args, seed)
