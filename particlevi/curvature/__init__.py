"""Curvature of potentials: Hessians and their spectra."""

from particlevi.curvature.largest import largest_curvature

__all__ = ["largest_curvature"]
