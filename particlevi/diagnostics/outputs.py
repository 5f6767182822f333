"""The model at the draws: outputs, log-likelihoods, the model's own quantities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_positive_int
from particlevi.data import DataLike, as_data, as_particles, place
from particlevi.data.tensors import as_tensors, is_tensors
from particlevi.drawset import DrawSet, check_draws
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import Batch

__all__ = ["as_inputs", "constrained", "log_likelihood", "log_predictive_density", "outputs"]


def as_inputs(inputs: Any, model: ModelPotential) -> Batch:
    """One tensor of inputs, or a tuple of them, as a batch where the model is.

    A loader or a list of batches is read, and the targets in it are left out.
    """
    if isinstance(inputs, Iterable) and not is_tensors(inputs):
        read = as_data(inputs, model, complete=False, name="inputs").whole().data
        inputs = read[:-1] if isinstance(read, tuple) and len(read) > 1 else read
    parts = inputs if isinstance(inputs, tuple) else (inputs,)
    return Batch(place(as_tensors(parts, model, "inputs"), model))


def constrained(draws: DrawSet) -> dict[str, Tensor]:
    """The draws as the model's own quantities by name, ``[P, T, *shape]``."""
    model = draws.model()
    draws.check_complete()
    draws.check_some()
    chains, length, size = draws.particles.shape
    values = model.constrain(draws.particles.reshape(-1, size).to(model.dtype))
    return {name: v.reshape(chains, length, *v.shape[1:]) for name, v in values.items()}


def outputs(draws: DrawSet, inputs: Any, thin: int = 1, chunk_size: int = 64) -> Tensor:
    """The model's outputs at some inputs for every draw, ``[P, T, B, ...]``.

    Args:
        draws: with all parameters kept.
        inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs.
        thin: use every ``thin``-th draw.
        chunk_size: draws evaluated at once.
    """
    check_draws(draws)
    check_positive_int("chunk_size", chunk_size)
    draws.check_complete()
    kept, model = draws.by_chain(thin), draws.model()
    batch = as_inputs(inputs, model)
    with torch.no_grad():
        values = torch.cat(
            [
                model.outputs(as_particles(part, model, model.num_params), batch)
                for part in kept.flatten(0, 1).split(int(chunk_size))
            ]
        )
    return values.reshape(*kept.shape[:2], *values.shape[1:])


def log_likelihood(
    draws: DrawSet, data: DataLike, *, thin: int = 1, chunk_size: int = 64, batch_size: int = 1024
) -> Tensor:
    """Log-likelihoods of data under every draw, ``[P, T, N]``, in nats.

    Args:
        draws: with all parameters kept.
        data: as given to ``sample``, a loader too; other data of the same structure for scores on
            held-out data.
        thin: use every ``thin``-th draw.
        chunk_size: draws evaluated at once.
        batch_size: data evaluated at once.
    """
    check_draws(draws)
    model = draws.model()
    check_positive_int("chunk_size", chunk_size)
    check_positive_int("batch_size", batch_size)
    flat = draws.parameters(thin)
    checked = as_data(data, model, complete=False)
    columns = []
    with torch.no_grad():
        for batch in checked.chunks(model.at_once(int(batch_size))):
            one = as_particles(flat[:1], model, model.num_params)
            model.target_check(one, batch)(batch.data)
            rows = [
                model.log_likelihood(as_particles(part, model, model.num_params), batch)
                for part in flat.split(int(chunk_size))
            ]
            columns.append(torch.cat(rows))
    values = torch.cat(columns, dim=1)
    return values.reshape(len(draws), -1, values.shape[1])


def log_predictive_density(
    draws: DrawSet, data: DataLike, *, thin: int = 1, chunk_size: int = 64, batch_size: int = 1024
) -> Tensor:
    """``log (1/S) sum_s p(y_n | x_n, theta_s)`` per datum, ``[N]``, in nats.

    Its mean is the test log-likelihood, its negative mean the NLL.
    """
    values = log_likelihood(
        draws, data, thin=thin, chunk_size=chunk_size, batch_size=batch_size
    ).double()
    flat = values.flatten(0, 1)
    return flat.logsumexp(0) - math.log(len(flat))
