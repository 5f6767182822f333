"""The metric of a method: a linear change of the coordinates in which it moves.

With ``theta = L z`` the potential of z is ``U(L z)``, whose gradient is ``L' grad U(theta)``. A
method that moves z by its own equations, its momenta of unit mass in these coordinates, samples the
law of z, and ``theta = L z`` has the law that is wanted: a mass matrix ``(L L')^-1`` for momentum
methods, a preconditioner ``L L'`` for overdamped ones. No method needs to know of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi.typing import Controls, Gradient

__all__ = ["Metric"]


@dataclass(frozen=True, eq=False)
class Metric:
    """``theta = scale * (z + V (s - 1) V' z)``, or ``theta = factor @ z``.

    Attributes:
        scale: ``[D]``, positive.
        factor: ``[D, D]``, lower triangular, in place of a scale.
        basis: V, orthonormal columns ``[D, K]`` beside a scale, or none.
        spread: s, ``[K]``, positive, along them.
    """

    scale: Tensor | None = None
    factor: Tensor | None = None
    basis: Tensor | None = None
    spread: Tensor | None = None

    @classmethod
    def of(cls, controls: Controls) -> Metric | None:
        """The metric among the controls of a step; None if there is none."""
        if "scale" in controls:
            basis, spread = controls.get("basis"), controls.get("spread")
            return cls(scale=controls["scale"], basis=basis, spread=spread)
        if "factor" in controls:
            return cls(factor=controls["factor"])
        return None

    def _stretched(self, z: Tensor, inverse: bool = False) -> Tensor:
        if self.basis is None or self.spread is None:
            return z
        spread = self.spread.reciprocal() if inverse else self.spread
        return z + ((z @ self.basis) * (spread - 1)) @ self.basis.mT

    def whiten(self, theta: Tensor) -> Tensor:
        """``z [P, D]`` of ``theta [P, D]``."""
        if self.scale is not None:
            return self._stretched(theta / self.scale, inverse=True)
        assert self.factor is not None
        z: Tensor = torch.linalg.solve_triangular(self.factor, theta.mT, upper=False)
        return z.mT

    def unwhiten(self, z: Tensor) -> Tensor:
        """``theta [P, D]`` of ``z [P, D]``."""
        if self.scale is not None:
            return self._stretched(z) * self.scale
        assert self.factor is not None
        return z @ self.factor.mT

    def slope(self, found: Gradient) -> Gradient:
        """The gradient by z of a gradient by theta, ``[P, D]``."""
        if self.scale is not None:
            return found._replace(gradient=self._stretched(found.gradient * self.scale))
        assert self.factor is not None
        return found._replace(gradient=found.gradient @ self.factor)

    def variance(self, variance: float | Tensor) -> float | Tensor:
        """The variance of each coordinate of the gradient by z, from that of the one by theta.

        Raises:
            ValueError: a metric under which the noise of coordinates mixes.
        """
        if self.scale is None or self.basis is not None:
            raise ValueError(
                "gradient_noise is known for each parameter alone, so it goes with a diagonal "
                "metric only: use scale in place of factor, or leave gradient_noise out."
            )
        return variance * self.scale.square()
