"""The largest curvature of a potential, by Lanczos."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_positive
from particlevi.data import Data, as_data, as_particles
from particlevi.potentials.potential import ModelPotential

__all__ = ["largest_curvature"]


def _hessian_product(model: ModelPotential, point: Tensor, data: Data, chunk_size: int) -> Any:
    def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        direction = torch.as_tensor(vector, dtype=point.dtype, device=point.device).view(1, -1)
        total = torch.zeros_like(point)

        def add(energy: Any) -> None:
            leaf = point.detach().requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(energy(leaf).sum(), leaf, create_graph=True)
                along = (gradient * direction).sum()
                if along.requires_grad:
                    (part,) = torch.autograd.grad(along, leaf, allow_unused=True)
                    if part is not None:
                        total.add_(part)

        add(lambda leaf: -model.log_prior(leaf))
        for batch in data.chunks(chunk_size):
            add(lambda leaf, batch=batch: -model.log_likelihood(leaf, batch).sum(1))
        return total.double().cpu().numpy().ravel()

    return product


def largest_curvature(
    potential: ModelPotential,
    particles: Tensor,
    data: Any = None,
    *,
    chunk_size: int = 1024,
    tolerance: float = 1e-2,
) -> float:
    """The largest eigenvalue of the Hessian of the potential on all the data, by Lanczos.

    Args:
        potential: what is sampled.
        particles: where, ``[P, D]``; the largest over them is returned.
        data: as given to ``sample``.
        chunk_size: data evaluated at once.
        tolerance: relative error of the eigenvalue.

    >>> import particlevi as pvi
    >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
    >>> round(largest_curvature(bowl, torch.zeros(1, 2)), 3)
    6.0
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    points = as_particles(particles, potential, potential.num_params)
    check_positive("tolerance", tolerance)
    held = as_data(data, potential).held()
    size = potential.num_params
    found = []
    for particle in points:
        product = _hessian_product(potential, particle.view(1, -1), held, chunk_size)
        if size <= 3:
            dense = np.stack([product(column) for column in np.eye(size)])
            found.append(float(np.linalg.eigvalsh(0.5 * (dense + dense.T)).max()))
            continue
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).normal(size=size)
        top = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
        found.append(float(top[0]))
    return max(found)
