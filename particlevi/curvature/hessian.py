"""The Hessian of an energy: its product with a vector, and the matrix itself.

``H v = grad (grad E . v)`` by double backward. The energy is a sum of terms, each evaluated and
freed in turn, so that memory is that of the largest term.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from particlevi.curvature.second_order import second_order
from particlevi.data import DataLike, as_data, as_particles
from particlevi.potentials.protocol import as_potential
from particlevi.typing import Batch, Potential

__all__ = ["Energy", "dense_hessian", "hessian_product", "potential_energy"]

Term = Callable[[Tensor], Tensor]
_ROWS = 32


@dataclass(frozen=True, eq=False)
class Energy:
    """A function of ``theta [D]`` at one point, ``scale sum_i E_i(theta)``.

    Attributes:
        terms: gives the ``E_i``, each ``theta [D]`` to a scalar, differentiable twice.
        position: ``theta [D]``.
        scale: of the sum.
    """

    terms: Callable[[], Iterable[Term]]
    position: Tensor
    scale: float = 1.0


def potential_energy(
    potential: Potential, position: Tensor, data: DataLike = None, chunk_size: int = 1024
) -> Energy:
    """The potential on all the data as an energy at one point.

    Args:
        potential: what is sampled.
        position: ``theta [D]``.
        data: as given to ``sample``; None for a density without data.
        chunk_size: data in a term.

    Raises:
        ValueError: data missing, superfluous, or not all of them.
    """
    model = as_potential(potential)
    if not isinstance(position, Tensor) or position.shape != (model.num_params,):
        got = list(position.shape) if isinstance(position, Tensor) else type(position).__name__
        raise ValueError(f"position must be a tensor [{model.num_params}], got {got}.")
    held = as_data(data, model).held()
    (theta,) = as_particles(position.unsqueeze(0), model, model.num_params, "position")

    def surprise(batch: Batch, leaf: Tensor) -> Tensor:
        return model.data_energy(leaf[None], batch)[0]

    def terms() -> Iterator[Term]:
        yield lambda leaf: model.prior_energy(leaf[None])[0]
        for batch in held.chunks(model.at_once(chunk_size)):
            yield partial(surprise, batch)

    return Energy(terms, theta)


def _slope(term: Term, leaf: Tensor) -> Tensor | None:
    """The gradient of a term, itself differentiable; None where it is constant."""
    value = term(leaf)
    if not value.requires_grad:
        return None
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True, allow_unused=True)
    return slope if slope is not None and slope.requires_grad else None


def _along(slope: Tensor, leaf: Tensor, direction: Tensor) -> Tensor | None:
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        slope, leaf, grad_outputs=direction, retain_graph=True, allow_unused=True
    )
    return found[0]


def _rows(slope: Tensor, leaf: Tensor, units: Tensor) -> Tensor:
    """Rows ``[K, D]`` of the derivative of a slope, at once where its operations allow that."""
    found: tuple[Tensor | None, ...]
    try:
        found = torch.autograd.grad(
            slope, leaf, grad_outputs=units, retain_graph=True, allow_unused=True,
            is_grads_batched=True,
        )  # fmt: skip
    except RuntimeError:
        rows = [_along(slope, leaf, unit) for unit in units]
        return torch.stack([torch.zeros_like(leaf) if row is None else row for row in rows])
    return torch.zeros_like(units) if found[0] is None else found[0]


def _check_curvature(values: Tensor) -> None:
    if not values.is_meta and not torch.isfinite(values).all():
        raise ValueError(
            "The curvature at this point is not finite: the potential or one of its derivatives "
            "overflows there. Give points near a mode, or use float64."
        )


def hessian_product(energy: Energy, vector: Tensor) -> Tensor:
    """``H v [D]`` in float64.

    Args:
        energy: at its point.
        vector: ``v [D]``, of any floating dtype.

    Raises:
        ValueError: a curvature that is not finite, or an operation without second derivatives.

    Examples:
        >>> cube = Energy(lambda: [lambda x: x.pow(3).sum()], torch.tensor([1.0, 2.0]))
        >>> hessian_product(cube, torch.tensor([1.0, 1.0]))
        tensor([ 6., 12.], dtype=torch.float64)
    """
    leaf = energy.position.detach().requires_grad_()
    direction = vector.to(leaf)
    total = torch.zeros_like(leaf, dtype=torch.float64)
    with second_order(), torch.enable_grad():
        for term in energy.terms():
            slope = _slope(term, leaf)
            product = None if slope is None else _along(slope, leaf, direction)
            if product is not None:
                total += product.detach()
    _check_curvature(total)
    return energy.scale * total


def dense_hessian(energy: Energy) -> Tensor:
    """``H [D, D]`` in float64, symmetric; one forward and D backward passes per term.

    Raises:
        ValueError: as ``hessian_product``.

    Examples:
        >>> saddle = Energy(lambda: [lambda x: x[0] * x[1]], torch.zeros(2))
        >>> dense_hessian(saddle)
        tensor([[0., 1.],
                [1., 0.]], dtype=torch.float64)
    """
    leaf = energy.position.detach().requires_grad_()
    total = torch.zeros(len(leaf), len(leaf), dtype=torch.float64, device=leaf.device)
    with second_order(), torch.enable_grad():
        for term in energy.terms():
            slope = _slope(term, leaf)
            if slope is None:
                continue
            units = torch.eye(len(leaf)).to(leaf)
            for rows, some in zip(total.split(_ROWS), units.split(_ROWS), strict=True):
                rows.add_(_rows(slope, leaf, some).detach())
    _check_curvature(total)
    return energy.scale * (total + total.T) / 2
