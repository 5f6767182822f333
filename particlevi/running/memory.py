"""What a run takes at its peak, before it starts.

The activations of one evaluation are measured, on one particle: what autograd saves for the
backward pass, and the largest tensor beside it. The rest is counted: states before and after a
step, gradients and temporaries of the size of the particles, blocks of random numbers, the work
space that a sampler declares, and copies for a checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.potentials.chunks import chunks
from particlevi.streams import calls_at_once
from particlevi.typing import Batch, Sampler

__all__ = ["activation_nbytes", "state_nbytes", "step_nbytes"]

_TEMPORARIES = 5
"""Tensors ``[P, D]`` of a step beside states, gradient and noise."""


def activation_nbytes(sampler: Sampler, particle: Tensor, batch: Batch | None) -> int:
    """What autograd keeps of one evaluation at one particle ``[1, D]``, in bytes."""
    (piece, part), *_ = chunks(particle[:1], _first(batch), None)
    known = (
        {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves(part.data)}
        if (part is not None)
        else set()
    )
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = piece.detach().requires_grad_()
    known.add(leaf.untyped_storage().data_ptr())
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        energy: Any = sampler.potential(leaf, part)
    del energy
    return sum(saved.values())


def _first(batch: Batch | None) -> Batch | None:
    """The batch of the first particle."""
    if batch is None or not batch.per_particle:
        return batch
    return batch._replace(data=pytree.tree_map(lambda leaf: leaf[:1], batch.data))


def state_nbytes(state: Any) -> int:
    """Memory of a sampler's position and its own tensors, without the estimator's."""
    leaves = pytree.tree_leaves((state.position, state.memory))
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def step_nbytes(sampler: Sampler, num_particles: int, state: int, activations: int) -> int:
    """The most memory of one step, beside draws, minibatches and the estimator.

    Args:
        sampler: what runs.
        num_particles: P.
        state: of one particle, in bytes.
        activations: of one particle, in bytes.
    """
    potential = sampler.potential
    at_once = min(num_particles, potential.chunk_size or num_particles)
    size = potential.num_params
    item = torch.finfo(potential.dtype).bits // 8
    noise = size * calls_at_once(size) * item
    per_particle = 2 * state + noise + _TEMPORARIES * size * item
    return int(num_particles * per_particle + 2 * at_once * activations)
