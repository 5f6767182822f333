"""The metric of a method: a linear change of the coordinates in which it moves.

With ``theta = L z`` the potential of z is ``U(L z)``, whose gradient is ``L' grad U(theta)``. A
method that moves z by its own equations, its momenta of unit mass in these coordinates, samples the
law of z, and ``theta = L z`` has the law that is wanted: a mass matrix ``(L L')^-1`` for momentum
methods, a preconditioner ``L L'`` for overdamped ones. No method needs to know of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from particlevi.gradients.halves import Halves
from particlevi.typing import Controls, Gradient

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """``theta = scale * z``, or ``theta = factor @ z``.

    Attributes:
        scale: ``[D]``, positive.
        factor: ``[D, D]``, lower triangular, in place of a scale.
    """

    scale: Tensor | None = None
    factor: Tensor | None = None

    @classmethod
    def of(cls, controls: Controls) -> Metric | None:
        """The metric among the controls of a step; None if there is none."""
        if "scale" in controls:
            return cls(scale=controls["scale"])
        if "factor" in controls:
            return cls(factor=controls["factor"])
        return None

    def whiten(self, theta: Tensor) -> Tensor:
        """``z [P, D]`` of ``theta [P, D]``."""
        if self.scale is not None:
            return theta / self.scale
        assert self.factor is not None
        z: Tensor = torch.linalg.solve_triangular(self.factor, theta.mT, upper=False)
        return z.mT

    def unwhiten(self, z: Tensor) -> Tensor:
        """``theta [P, D]`` of ``z [P, D]``."""
        if self.scale is not None:
            return z * self.scale
        assert self.factor is not None
        return z @ self.factor.mT

    def slope(self, gradient: Tensor) -> Tensor:
        """The gradient by z, ``[P, D]``, of the gradient by theta."""
        if self.scale is not None:
            return gradient * self.scale
        assert self.factor is not None
        return gradient @ self.factor

    def pulled_back(self, gradient_at: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        """``gradient_at`` as a function of z, with gradients by z.

        Raises:
            ValueError: a dense metric under an estimate of the noise of each coordinate alone.
        """

        def at(z: Tensor) -> Any:
            found = gradient_at(self.unwhiten(z))
            if isinstance(found, Halves):
                if self.scale is None:
                    raise ValueError(
                        'gradient_noise="online" takes out the noise of each parameter alone, so '
                        "it goes with a diagonal metric only: use scale in place of factor."
                    )
                return Halves(at_z(found.found), found.variance * self.scale.square())
            return at_z(found)

        def at_z(found: Gradient) -> Gradient:
            return Gradient(self.slope(found.gradient), found.potential)

        return at
