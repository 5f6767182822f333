"""Optimisers of the SGD-noise literature, for any torch loop."""

from particlevi.optim.adapnm import AdaPNM
from particlevi.optim.perturbed import PerturbedGD, Smoothed
from particlevi.optim.pnm import PNM
from particlevi.optim.power import Power, power

__all__ = ["PNM", "AdaPNM", "PerturbedGD", "Power", "Smoothed", "power"]
