"""Curvature: one Hessian, one product with it, the Gauss-Newton matrix, Lanczos."""

from particlevi.curvature.gauss_newton import gauss_newton_product
from particlevi.curvature.hessian import (
    Energy,
    dense_hessian,
    hessian_product,
    potential_energy,
)
from particlevi.curvature.lanczos import Eigenpairs, top_eigenpairs
from particlevi.curvature.largest import largest_curvature
from particlevi.curvature.second_order import second_order

__all__ = [
    "Eigenpairs",
    "Energy",
    "dense_hessian",
    "gauss_newton_product",
    "hessian_product",
    "largest_curvature",
    "potential_energy",
    "second_order",
    "top_eigenpairs",
]
