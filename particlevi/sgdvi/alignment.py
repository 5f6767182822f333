"""Whether SGD's noise lies along the directions in which the loss is curved.

With Hessian ``F`` and per-sample gradient covariance ``C``: the noise in each of the stiffest
directions, the share of all noise in them, and the cosine between the two matrices,
``tr(F C) / (|F| |C|)``, 1 where they are proportional. Near a minimum of minus a log
likelihood that fits, ``C`` is the Fisher matrix and so is ``F``.

Reference: Zhu, Wu, Yu, Wu and Ma, "The anisotropic noise in stochastic gradient descent", 2019;
Thomas, Pedregosa, van Merrienboer, Mangazol, Bengio and Le Roux, "On the interplay between noise
and curvature and its effect on optimization and generalization", 2020.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed
from particlevi.curvature.lanczos import top_eigenpairs
from particlevi.noise.covariance import GradientNoise, check_noise
from particlevi.sgdvi.subspace import hessian_vector_product

__all__ = ["Alignment", "alignment"]


class Alignment(NamedTuple):
    """Noise and curvature at one point.

    Attributes:
        curvature: the largest eigenvalues of ``F``, ``[K]``.
        noise: ``v' C v`` along their eigenvectors, ``[K]``.
        share: of the trace of ``C`` in these directions.
        cosine: between the matrices.
        cosine_error: its standard error over the probes.
    """

    curvature: Tensor
    noise: Tensor
    share: float
    cosine: float
    cosine_error: float


def alignment(
    noise: GradientNoise, top: int = 10, num_probes: int = 30, seed: int = 0
) -> Alignment:
    """How curvature and noise lie to each other.

    Args:
        noise: at the point; of losses without dropout masks. Its loss's prior counts in ``F``.
        top: K, at most D.
        num_probes: random sign vectors, one product with each matrix, at least 4.
        seed: of the probes.

    Raises:
        ValueError: numbers out of range, or an operation without second derivatives.

    Examples:
        Least squares without a fit: ``C`` is nearly proportional to ``F``.

        >>> import particlevi as pvi
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(2000, 3, generator=generator) * torch.tensor([1.0, 2.0, 4.0])
        >>> y = torch.randn(2000, 1, generator=generator)
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(net.weight)
        >>> noise = pvi.noise.measure(net, (x, y), torch.nn.functional.mse_loss)
        >>> alignment(noise, top=1).cosine > 0.99
        True
    """
    check_noise(noise)
    check_positive_int("top", top)
    check_positive_int("num_probes", num_probes, minimum=4)
    check_seed("seed", seed)
    size = noise.num_params
    if top > size:
        raise ValueError(f"top must be at most D = {size}, got {top}.")

    def product(vector: Tensor) -> Tensor:
        return hessian_vector_product(noise, vector)

    precise = noise.position.dtype == torch.float64
    pairs = top_eigenpairs(product, size, int(top), tolerance=0.0 if precise else 1e-6, seed=seed)
    along = torch.stack([noise.slopes(v).double().var(correction=0) for v in pairs.vectors.T])
    generator = torch.Generator().manual_seed(int(seed))
    sums = []
    for _ in range(num_probes):
        signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1
        curved = product(signs.to(noise.position)).cpu()
        noisy = noise.matvec(signs.to(noise.position)).double().cpu()
        sums.append(torch.stack([curved @ noisy, curved @ curved, noisy @ noisy]))
    each = torch.stack(sums)
    left = each.sum(0) - each
    cosines = left[:, 0] / (left[:, 1] * left[:, 2]).sqrt()
    whole = each.sum(0)
    error = math.sqrt((num_probes - 1) * float(cosines.var(correction=0)))
    trace = float(noise.diagonal().double().sum())
    return Alignment(
        curvature=pairs.values,
        noise=along.cpu(),
        share=float(along.sum()) / trace,
        cosine=float(whole[0] / (whole[1] * whole[2]).sqrt()),
        cosine_error=error,
    )
