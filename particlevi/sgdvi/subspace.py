"""The stiffest directions of a large net, where the stationary law can be solved.

The Lyapunov equation takes matrices ``[D, D]``. For many parameters it is solved in a subspace
that the Hessian maps into itself, spanned by its top eigenvectors (by Lanczos, from
Hessian-vector products): there ``F`` is diagonal and ``C`` is ``V' C V``, without any
approximation. The same in a subspace of top directions of ``C`` would be wrong, because the
Hessian leads out of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from particlevi._checks import check_positive_int
from particlevi.noise.covariance import GradientNoise
from particlevi.progress import progress_bar

__all__ = ["Subspace", "hessian_vector_product", "invariant_subspace"]


class Subspace(NamedTuple):
    """An invariant subspace of the Hessian, ready for ``stationary_law(hessian, noise)``.

    Attributes:
        hessian: the eigenvalues on the diagonal, ``[K, K]``, largest first.
        noise: ``V' C V [K, K]``.
        directions: ``V [D, K]``, orthonormal.
        residual: ``|F v - l v|`` of each pair, ``[K]``: how invariant it is.
    """

    hessian: Tensor
    noise: Tensor
    directions: Tensor
    residual: Tensor


def hessian_vector_product(noise: GradientNoise, vector: Tensor) -> Tensor:
    """``F v [D]`` with the Hessian ``F`` of the mean loss, by double backward over the data."""
    theta = noise.position.detach().requires_grad_()
    direction = vector.to(theta)
    total = torch.zeros_like(noise.position, dtype=torch.float64)
    for start in range(0, noise.num_data, noise.chunk_size):
        stop = min(start + noise.chunk_size, noise.num_data)
        with torch.enable_grad():
            loss = noise.samples.losses(theta, start, stop).sum()
            (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
            (product,) = torch.autograd.grad(slope @ direction, theta)
        total += product
    return total / noise.num_data


def invariant_subspace(noise: GradientNoise, num: int, seed: int = 0) -> Subspace:
    """The ``num`` eigenvectors of the Hessian with the largest eigenvalues, and the noise in them.

    Args:
        noise: at a minimum; of losses without dropout masks.
        num: K, below D.
        seed: of Lanczos' starting vector.

    Raises:
        ValueError: ``num`` out of range, or an eigenvalue that is not positive, so that there is
            no stationary law in these directions.
    """
    from scipy.sparse.linalg import LinearOperator, eigsh

    check_positive_int("num", num)
    size = noise.num_params
    if num >= size:
        raise ValueError(f"num must be below D = {size}, got {num}: solve the whole equation.")
    if noise.samples.random:
        raise ValueError("The Hessian of a loss with random masks is random: use mode='eval'.")
    with progress_bar("Hessian-vector products", 0, 0, noise.progress) as bar:

        def product(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            bar.update()
            found = hessian_vector_product(noise, torch.from_numpy(vector.reshape(-1)))
            return found.cpu().numpy()

        operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
        start = np.random.default_rng(seed).standard_normal(size)
        # ARPACK cannot do better than the precision of the products.
        precise = noise.position.dtype == torch.float64
        values, vectors = eigsh(operator, num, which="LA", v0=start, tol=0 if precise else 1e-6)
    order = values.argsort()[::-1].copy()
    top = torch.from_numpy(values[order].copy())
    directions = torch.from_numpy(vectors[:, order].copy())
    if top[-1] <= 0:
        raise ValueError(
            f"Only {int((top > 0).sum())} of the top {num} curvatures are positive: ask for fewer, "
            "or add weight decay (a narrower prior)."
        )
    images = torch.stack([hessian_vector_product(noise, v).cpu() for v in directions.T], 1)
    inside = noise.matmat(directions.to(noise.position)).double().cpu()
    covariance = directions.T @ inside
    return Subspace(
        hessian=torch.diag(top),
        noise=(covariance + covariance.T) / 2,
        directions=directions,
        residual=(images - directions * top).norm(dim=0),
    )
