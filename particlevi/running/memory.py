"""What a step takes at its peak, before the first.

One particle is tried: its state, its blocks of random numbers or what a step takes of them, and
what autograd keeps of one evaluation are measured and taken P times. The rest is counted: states
before and after the step, the gradient and temporaries of the size of the particles, and the work
space that a sampler declares.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from particlevi.streams import ParticleStreams
from particlevi.typing import Batch, Sampler

__all__ = ["step_nbytes"]

_TEMPORARIES = 4
"""Tensors of the size of the particles in a step, beside states and noise."""

_BACKWARD = 2.5
"""What is kept for the backward pass, gradients of the same size on the way back, and results that
the forward pass drops again."""


def step_nbytes(sampler: Sampler, initial: Tensor, batch: Batch | None) -> dict[str, int]:
    """The most memory of one step by what takes it, without draws, minibatches and estimator.

    Args:
        sampler: what runs.
        initial: starting points ``[P, D]``.
        batch: an example.
    """
    potential, num_particles = sampler.potential, len(initial)
    streams = ParticleStreams(0, device=initial.device)
    state = sampler.init(initial[:1], streams)
    noise = _storages(sampler.draw_noise(state, streams))
    leaves = pytree.tree_leaves((state.position, state.memory))
    own = sum(_nbytes(leaf) for leaf in leaves if leaf.shape[:1] == (1,))
    common = sum(_nbytes(leaf) for leaf in leaves) - own
    at_once = min(num_particles, potential.chunk_size or num_particles)
    kept = _kept_for_backward(sampler, initial[:1], batch)
    work = sampler.work_bytes(num_particles) if sampler.work_bytes is not None else 0
    return {
        "states": num_particles * (2 * own + _TEMPORARIES * _nbytes(initial[:1])) + 2 * common,
        "random numbers": num_particles * max(streams.nbytes, noise)
        + streams.shared.streams.nbytes,
        "one evaluation": int(_BACKWARD * at_once * kept),
        f"the work of {sampler.name}": work,
    }


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _storages(tree: Any) -> int:
    """Bytes that a tree of tensors keeps, what they share counted once."""
    parts = [leaf.untyped_storage() for leaf in pytree.tree_leaves(tree)]
    return sum({part.data_ptr(): part.nbytes() for part in parts}.values())


def _kept_for_backward(sampler: Sampler, point: Tensor, batch: Batch | None) -> int:
    """Bytes that autograd keeps of one evaluation at ``point [1, D]``."""
    if batch is not None and batch.per_particle:
        batch = batch._replace(data=pytree.tree_map(lambda leaf: leaf[:1], batch.data))
    given = () if batch is None else pytree.tree_leaves(batch.data)
    leaf = point.detach().requires_grad_()
    known = {each.untyped_storage().data_ptr() for each in (*given, leaf)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        energy: Any = sampler.potential(leaf, batch)
    total = sum(saved.values())
    del energy
    return total
