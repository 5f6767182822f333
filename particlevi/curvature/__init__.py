"""Curvature: operators, their products, spectra, traces and diagonals; one of each."""

from particlevi.curvature.density import Cumulative, SpectralDensity, spectral_density
from particlevi.curvature.edge import Edge, edge_of_stability
from particlevi.curvature.gauss_newton import gauss_newton_product
from particlevi.curvature.hessian import (
    Energy,
    dense_hessian,
    hessian_product,
    potential_energy,
)
from particlevi.curvature.lanczos import Eigenpairs, top_eigenpairs
from particlevi.curvature.largest import largest_curvature
from particlevi.curvature.operators import CurvatureOperator, curvature_operator
from particlevi.curvature.second_order import second_order
from particlevi.curvature.squares import GradientSquares, gradient_squares
from particlevi.curvature.traces import TraceEstimate, estimate_trace

__all__ = [
    "Cumulative",
    "CurvatureOperator",
    "Edge",
    "Eigenpairs",
    "Energy",
    "GradientSquares",
    "SpectralDensity",
    "TraceEstimate",
    "curvature_operator",
    "dense_hessian",
    "edge_of_stability",
    "estimate_trace",
    "gauss_newton_product",
    "gradient_squares",
    "hessian_product",
    "largest_curvature",
    "potential_energy",
    "second_order",
    "spectral_density",
    "top_eigenpairs",
]
