"""Kernels of the Stein family, their bandwidths, and the discrepancies made from them."""

from particlevi.kernels.bandwidths import fixed, median
from particlevi.kernels.grouped import additive, graphical, product
from particlevi.kernels.kernels import imq, linear, random_features, rbf

__all__ = [
    "additive",
    "fixed",
    "graphical",
    "imq",
    "linear",
    "median",
    "product",
    "random_features",
    "rbf",
]
