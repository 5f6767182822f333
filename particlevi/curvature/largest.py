"""The largest curvature of a potential, by Lanczos."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_particles, check_positive
from particlevi.gradients.full import pieces, whole
from particlevi.potentials.potential import ModelPotential

__all__ = ["largest_curvature"]


def _hessian_product(model: ModelPotential, point: Tensor, data: Any, chunk_size: int) -> Any:
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

        add(model.prior_energy)
        if model.log_likelihood_fn is not None:
            for batch in pieces(data, model.num_data or 0, chunk_size, point.device):
                add(lambda leaf, batch=batch: model.data_energy(leaf, batch))
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

    check_particles(particles, potential.num_params)
    check_positive("tolerance", tolerance)
    tensors = whole(data, potential)
    size = potential.num_params
    found = []
    for particle in particles.to(potential.device, potential.dtype):
        product = _hessian_product(potential, particle.view(1, -1), tensors, chunk_size)
        if size <= 3:
            dense = np.stack([product(column) for column in np.eye(size)])
            found.append(float(np.linalg.eigvalsh(0.5 * (dense + dense.T)).max()))
            continue
        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(0).normal(size=size)
        top = eigsh(operator, k=1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
        found.append(float(top[0]))
    return max(found)
