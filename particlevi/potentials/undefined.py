"""Particles at which a model has no density, since a matrix of it cannot be factorised.

A covariance that is positive definite where the posterior lies may not be so far out, in numbers of
finite precision, and torch then raises an error for all particles of the call. As in Pyro and Stan,
such a particle has no density, and the others do not suffer for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.overrides import TorchFunctionMode

from particlevi._tracing import is_compiling
from particlevi._warning import warn
from particlevi.potentials.chunks import chunks
from particlevi.typing import Batch

__all__ = ["LinAlgError", "where_defined"]

Energies = Callable[[Tensor, Batch | None], Tensor]

_FACTORISATIONS: dict[Any, Callable[..., Any]] = {
    torch.linalg.cholesky: torch.linalg.cholesky_ex,
    torch.linalg.inv: torch.linalg.inv_ex,
    torch.linalg.solve: torch.linalg.solve_ex,
}
"""What raises an error for all matrices if it fails for one, and what tells which."""


class _Unchecked(TorchFunctionMode):
    """Where a matrix cannot be factorised, the identity takes its place, and no error is raised.

    Args:
        marked: give NaN there instead.
    """

    def __init__(self, marked: bool):
        super().__init__()
        self.marked = marked

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """A factorisation in another way, everything else as it is."""
        kwargs = kwargs or {}
        if func not in _FACTORISATIONS or not args or "out" in kwargs:
            return func(*args, **kwargs)
        tells = _FACTORISATIONS[func]
        matrix, *others = args
        failed = tells(matrix.detach(), *others, **kwargs)[1] != 0
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        sound = torch.where(failed[..., None, None], identity, matrix)
        result = tells(sound, *others, **kwargs)[0]
        if not self.marked:
            return result
        axes = [1] * (result.ndim - failed.ndim)
        return torch.where(failed.view(*failed.shape, *axes), torch.nan, result)


def where_defined(energy: Energies, particles: Tensor, batch: Batch | None) -> Tensor:
    """Energies ``[P]``, infinite and of gradient 0 for particles at which a factorisation fails."""
    try:
        return energy(particles, batch)
    except LinAlgError as error:
        if is_compiling():
            raise
        why = str(error)
    try:
        values, failed = _together(energy, particles, batch)
    except LinAlgError:
        values, failed = _one_by_one(energy, particles, batch)
    if bool(failed.all()):
        warn(
            f"No particle of {len(failed)} has a density, since a matrix of the model cannot be "
            f"factorised: {why} Add to its diagonal (1e-6 of its size), use float64, or start "
            "elsewhere.",
        )
    return torch.where(failed, torch.inf, values)


def _together(energy: Energies, particles: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
    """Energies ``[P]``, and for which a factorisation failed: NaN if marked, and else not."""
    with torch.no_grad(), _Unchecked(marked=True):
        marked = energy(particles, batch)
    with _Unchecked(marked=False):
        values = energy(particles, batch)
    return values, marked.isnan() & ~values.detach().isnan()


def _one_by_one(energy: Energies, particles: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
    """The same, for factorisations that do not tell for which matrix they failed."""
    values, failed = [], []
    for particle, part in chunks(particles, batch, 1):
        try:
            values.append(energy(particle, part))
            failed.append(False)
        except LinAlgError:
            values.append(0.0 * particle.sum(1))
            failed.append(True)
    return torch.cat(values), torch.tensor(failed, device=particles.device)
