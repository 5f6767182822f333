"""The stiffest directions of a large net, where the stationary law can be solved.

The Lyapunov equation takes matrices ``[D, D]``. For many parameters it is solved in a subspace
that the Hessian maps into itself, spanned by its top eigenvectors (by Lanczos, from
Hessian-vector products): there ``F`` is diagonal and ``C`` is ``V' C V``, without any
approximation. The same in a subspace of top directions of ``C`` would be wrong, because the
Hessian leads out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed
from particlevi.curvature.hessian import Energy, hessian_product
from particlevi.curvature.lanczos import top_eigenpairs
from particlevi.noise.covariance import GradientNoise, check_noise
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
    """``F v [D]`` in float64, with the Hessian ``F`` of the mean loss, over all the data.

    Args:
        noise: at the point; of losses without dropout masks.
        vector: ``v [D]``.

    Raises:
        ValueError: a vector of another shape, a curvature that is not finite, or a model with an
            operation that has no second derivative.
    """
    check_noise(noise)
    if not isinstance(vector, Tensor) or vector.shape != noise.position.shape:
        got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ValueError(f"vector must be a tensor [{noise.num_params}], got {got}.")
    return hessian_product(_mean_loss(noise), vector)


def _mean_loss(noise: GradientNoise) -> Energy:
    def part(start: int, stop: int, theta: Tensor) -> Tensor:
        return noise.samples.losses(theta, start, stop).sum()

    def terms() -> Iterator[Callable[[Tensor], Tensor]]:
        for start in range(0, noise.num_data, noise.chunk_size):
            yield partial(part, start, min(start + noise.chunk_size, noise.num_data))

    return Energy(terms, noise.position, 1 / noise.num_data)


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
    check_noise(noise)
    check_positive_int("num", num)
    check_seed("seed", seed)
    size = noise.num_params
    if num >= size:
        raise ValueError(f"num must be below D = {size}, got {num}: solve the whole equation.")
    if noise.samples.random:
        raise ValueError("The Hessian of a loss with random masks is random: use mode='eval'.")
    energy = _mean_loss(noise)
    with progress_bar("Hessian-vector products", 0, 0, noise.progress) as bar:

        def product(vector: Tensor) -> Tensor:
            bar.update()
            return hessian_product(energy, vector)

        # Lanczos cannot do better than the precision of the products.
        precise = noise.position.dtype == torch.float64
        tolerance = 0.0 if precise else 1e-6
        top, directions = top_eigenpairs(product, size, num, tolerance=tolerance, seed=seed)
    if top[-1] <= 0:
        raise ValueError(
            f"Only {int((top > 0).sum())} of the top {num} curvatures are positive: ask for fewer, "
            "or add weight decay (a narrower prior)."
        )
    images = torch.stack([hessian_product(energy, v).cpu() for v in directions.T], 1)
    inside = noise.matmat(directions).double().cpu()
    covariance = directions.T @ inside
    return Subspace(
        hessian=torch.diag(top),
        noise=(covariance + covariance.T) / 2,
        directions=directions,
        residual=(images - directions * top).norm(dim=0),
    )
