"""Tests on the noise of minibatches at one point of a net, streamed over the data.

A minibatch's gradient along v is the mean of ``g_k . v`` over its data. So the gradients of any
number of minibatches along a few directions come from one pass of per-sample gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_choice, check_finite, check_positive_int, check_seed
from particlevi.noise.gaussianity import MOST_SAMPLES, Gaussianity, compare_with_gaussian
from particlevi.noise.samples import Array, batch_means, varying
from particlevi.noise.scalings import FreshBatching
from particlevi.noise.tails import TailIndex, tail_index

if TYPE_CHECKING:
    from particlevi.noise.covariance import GradientNoise

__all__ = ["gaussianity_of", "tail_index_of"]

_CANDIDATES = 10


def gaussianity_of(
    noise: GradientNoise,
    num_batches: int,
    num_directions: int,
    num_bootstrap: int,
    batching: FreshBatching,
    seed: int,
) -> Gaussianity:
    """See ``GradientNoise.gaussianity``."""
    check_positive_int("num_batches", num_batches, minimum=20)
    if num_batches > MOST_SAMPLES:
        raise ValueError(
            f"num_batches must be at most {MOST_SAMPLES}, got {num_batches}: the weights of the "
            "Shapiro-Wilk test are not known beyond."
        )
    check_positive_int("num_directions", num_directions)
    size, rng = _begin(noise, batching, seed), np.random.default_rng(int(seed))
    columns = _columns(noise, _CANDIDATES * num_directions, rng)
    most = min(num_directions, noise.num_params, noise.num_data - 1)
    vectors = noise.spectrum(top=most, seed=seed).vectors
    assert vectors is not None
    # Only now, in single precision: the spectrum needs the memory.
    shape = (num_directions, noise.num_params)
    random = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    along, single = _projected(noise, torch.cat([random.to(noise.position).T, vectors], 1), columns)
    single, num_constant = varying(single)
    single = single[:, :num_directions]
    slopes = np.concatenate([along[:, :num_directions], single, along[:, num_directions:]], 1)
    drawn = batch_means(slopes, size, num_batches, batching == "subset", rng)
    edges = [num_directions, num_directions + single.shape[1]]
    names = ("random", "coordinates", "eigenvectors")
    families = dict(zip(names, np.split(drawn, edges, axis=1), strict=True))
    return compare_with_gaussian(families, drawn, num_bootstrap, rng, num_constant)


def tail_index_of(
    noise: GradientNoise,
    num_batches: int,
    num_coordinates: int,
    num_null: int,
    batching: FreshBatching,
    seed: int,
) -> TailIndex:
    """See ``GradientNoise.tail_index``."""
    check_positive_int("num_batches", num_batches, minimum=50)
    check_positive_int("num_coordinates", num_coordinates)
    size, rng = _begin(noise, batching, seed), np.random.default_rng(int(seed))
    columns = _columns(noise, num_coordinates, rng).sort().values
    nothing = noise.position.new_empty(noise.num_params, 0)
    values, _ = varying(_projected(noise, nothing, columns)[1])
    drawn = batch_means(values, size, num_batches, batching == "subset", rng)
    # The mean over all the data is known and has been taken off.
    return tail_index(drawn, center=False, num_null=num_null, seed=seed)


def _begin(noise: GradientNoise, batching: FreshBatching, seed: int) -> int:
    """The batch size, once the arguments are good."""
    check_choice("batching", batching, ["replacement", "subset"])
    check_seed("seed", seed)
    if noise.batch_size is None:
        raise ValueError("Which minibatches? Give batch_size to pvi.noise.measure.")
    if batching == "subset" and noise.batch_size >= noise.num_data:
        raise ValueError(
            f"A subset of batch_size={noise.batch_size} is all num_data={noise.num_data} data and "
            "has no noise: take a smaller one."
        )
    fix = "Gradients have overflowed: take a point of a healthy run."
    check_finite("The gradient", noise.gradient, fix)
    return noise.batch_size


def _columns(noise: GradientNoise, count: int, rng: np.random.Generator) -> Tensor:
    chosen = rng.choice(noise.num_params, min(count, noise.num_params), replace=False)
    return torch.from_numpy(chosen).to(noise.position.device)


def _projected(noise: GradientNoise, vectors: Tensor, columns: Tensor) -> tuple[Array, Array]:
    """``g_k . v`` of columns ``[D, n]``, and coordinates of ``g_k``; a row per datum."""
    along, single = [], []
    for rows in noise.per_sample():
        along.append((rows @ vectors).double().cpu())
        single.append(rows[:, columns].double().cpu())
    found = torch.cat(along), torch.cat(single)
    for part in found:
        fix = "Gradients have overflowed: take a point of a healthy run."
        check_finite("The per-sample gradients", part, fix)
    return found[0].numpy(), found[1].numpy()
