"""The largest curvature of a potential, by Lanczos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from particlevi._checks import check_is, check_positive
from particlevi.curvature.hessian import hessian_product, potential_energy
from particlevi.curvature.lanczos import top_eigenpairs
from particlevi.data import DataLike, as_data, as_particles
from particlevi.potentials.protocol import as_potential
from particlevi.typing import Potential

__all__ = ["largest_curvature"]


def largest_curvature(
    potential: Potential,
    particles: Tensor,
    data: DataLike = None,
    *,
    chunk_size: int = 1024,
    tolerance: float = 1e-2,
    scale: Tensor | None = None,
) -> float:
    """The largest eigenvalue of the Hessian of the potential on all the data, by Lanczos.

    Args:
        potential: what is sampled.
        particles: where, ``[P, D]``; the largest over them is returned.
        data: as given to ``sample``.
        chunk_size: data evaluated at once.
        tolerance: relative error of the eigenvalue.
        scale: ``[D]``, if absent ones; the Hessian is that in the coordinates ``theta / scale``.

    Raises:
        ValueError: a scale of another shape, data that do not fit, a curvature that is not finite,
            or a model with an operation that has no second derivative.

    Examples:
        >>> import torch
        >>> import particlevi as pvi
        >>> bowl = pvi.from_log_density(lambda x: -x[0] ** 2 - 3 * x[1] ** 2, num_params=2)
        >>> round(largest_curvature(bowl, torch.zeros(1, 2)), 3)
        6.0
    """
    model = as_potential(potential)
    held = as_data(data, model).held()
    points = as_particles(particles, model, model.num_params)
    check_positive("tolerance", tolerance)
    if scale is not None:
        check_is("scale", scale, Tensor, f"a tensor [{model.num_params}]")
        if scale.shape != (model.num_params,):
            raise ValueError(
                f"scale must have shape [{model.num_params}], got {list(scale.shape)}."
            )
    found = []
    for particle in points:
        energy = potential_energy(model, particle, held, chunk_size)
        product = partial(hessian_product, energy)
        if scale is not None:
            product = partial(_scaled, product, scale.double())
        top = top_eigenpairs(product, model.num_params, 1, tolerance=tolerance)
        found.append(float(top.values[0]))
    return max(found)


def _scaled(product: Callable[[Tensor], Tensor], scale: Tensor, vector: Tensor) -> Tensor:
    return scale * product(scale * vector.to(scale))
