"""Potentials from the caller's own functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import as_device, check_flag, check_floating, check_positive_int
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import Evaluation, ModelPotential
from particlevi.potentials.starts import Starts
from particlevi.potentials.vectorize import Vectorized, explained
from particlevi.typing import Batch, Streams

__all__ = ["from_log_density", "from_log_likelihood"]


def from_log_density(
    log_density: Callable[[Tensor], Tensor],
    num_params: int,
    vectorized: bool = False,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    chunk_size: int | None = None,
) -> ModelPotential:
    """A potential without data: ``U(theta) = -log_density(theta)``.

    Args:
        log_density: one particle ``[D]`` to a scalar, in nats, up to a constant.
        num_params: D.
        vectorized: ``log_density`` takes particles ``[P, D]`` to ``[P]`` itself.
        dtype: of the particles; torch's default if absent.
        device: of the particles.
        chunk_size: at most so many particles are evaluated at once.

    Raises:
        ValueError: at the first evaluation, if the shape of the result is wrong.

    Examples:
        >>> normal = from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=2)
        >>> normal(torch.tensor([[3.0, 4.0]]))
        tensor([12.5000])
    """
    check_positive_int("num_params", num_params)
    check_flag("vectorized", vectorized)
    if dtype is not None:
        check_floating("dtype", dtype)
    density = _lifted(log_density, "log_density", vectorized)

    def log_prior(particles: Tensor) -> Tensor:
        return _per_particle(density(particles, None), particles, "log_density", vectorized)

    return ModelPotential(
        layout=Layout({"theta": (int(num_params),)}),
        num_data=None,
        log_prior_fn=log_prior,
        log_likelihood_fn=None,
        starts=Starts({"normal": _standard_normal(num_params)}),
        device=as_device("device", device),
        dtype=dtype or torch.get_default_dtype(),
        evaluation=Evaluation(chunk_size=chunk_size),
        fingerprint={"kind": "log_density", "num_params": num_params},
    )


def from_log_likelihood(
    log_prior: Callable[[Tensor], Tensor],
    log_likelihood: Callable[..., Tensor],
    num_params: int,
    num_data: int,
    vectorized: bool = False,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    chunk_size: int | None = None,
) -> ModelPotential:
    """A potential with data: ``U(theta) = -log_prior(theta) - (N/B) sum_b log_likelihood_b``.

    Args:
        log_prior: one particle ``[D]`` to a scalar, in nats.
        log_likelihood: one particle ``[D]`` and a batch with leaves ``[B, ...]`` to one value per
            datum, ``[B]``. The batch has the structure of the data given to ``sample``.
        num_params: D.
        num_data: N, the number of data in the whole set.
        vectorized: ``log_prior`` takes particles ``[P, D]`` to ``[P]``, and ``log_likelihood``
            particles ``[P, D]`` and a batch with leaves ``[P, B, ...]``, or ``[B, ...]`` when all
            particles share the minibatch, to ``[P, B]``.
        dtype: of the particles; torch's default if absent.
        device: of the particles.
        chunk_size: at most so many particles are evaluated at once.

    Raises:
        ValueError: at the first evaluation, if the shape of a result is wrong.

    Examples:
        >>> mean = from_log_likelihood(
        ...     lambda theta: -0.5 * theta.square().sum(),
        ...     lambda theta, x: -0.5 * (x - theta).square(),
        ...     num_params=1,
        ...     num_data=100,
        ... )
        >>> mean(torch.zeros(1, 1), Batch(torch.ones(10)))
        tensor([50.])
    """
    check_positive_int("num_params", num_params)
    check_positive_int("num_data", num_data)
    check_flag("vectorized", vectorized)
    if dtype is not None:
        check_floating("dtype", dtype)
    prior = _lifted(log_prior, "log_prior", vectorized)
    likelihood = _lifted(log_likelihood, "log_likelihood", vectorized)

    def log_prior_fn(particles: Tensor) -> Tensor:
        return _per_particle(prior(particles, None), particles, "log_prior", vectorized)

    def log_likelihood_fn(particles: Tensor, batch: Batch) -> Tensor:
        values = likelihood(particles, batch)
        wanted = (len(particles), batch.size)
        if not isinstance(values, Tensor) or values.shape != wanted:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"log_likelihood must return one value per datum, {list(wanted)} for "
                f"{wanted[0]} particles and {wanted[1]} data, got {got}: do not sum over the data."
            )
        return values

    return ModelPotential(
        layout=Layout({"theta": (int(num_params),)}),
        num_data=int(num_data),
        log_prior_fn=log_prior_fn,
        log_likelihood_fn=log_likelihood_fn,
        starts=Starts({"normal": _standard_normal(num_params)}),
        device=as_device("device", device),
        dtype=dtype or torch.get_default_dtype(),
        evaluation=Evaluation(chunk_size=chunk_size),
        fingerprint={"kind": "log_likelihood", "num_params": num_params, "num_data": num_data},
    )


def _lifted(function: Callable[..., Tensor], name: str, vectorized: bool) -> Any:
    """The function of particles and a batch, whoever vectorises it."""
    if not callable(function):
        raise TypeError(f"{name} must be a function, got {type(function).__name__}.")
    if not vectorized:
        return Vectorized(function, name)

    def given(particles: Tensor, batch: Batch | None) -> Tensor:
        with explained(name, particles, batch):
            return function(particles) if batch is None else function(particles, batch.data)

    return given


def _per_particle(values: Any, particles: Tensor, name: str, vectorized: bool) -> Tensor:
    if not isinstance(values, Tensor) or values.shape != particles.shape[:1]:
        wanted, after = ("[P]", "") if vectorized else ("a scalar", " after stacking particles")
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name} must return {wanted}, got {got}{after} for particles {list(particles.shape)}."
        )
    return values


def _standard_normal(num_params: int) -> Any:
    def init(num_particles: int, streams: Streams) -> Tensor:
        return streams.normal((num_particles, num_params))

    return init
