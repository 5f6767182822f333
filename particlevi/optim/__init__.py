"""Optimisers of the SGD-noise literature, for any torch loop."""

from particlevi.optim.adapnm import AdaPNM
from particlevi.optim.leader import LeaderSGD
from particlevi.optim.perturbed import PerturbedGD, Smoothed
from particlevi.optim.pnm import PNM
from particlevi.optim.power import Power, power
from particlevi.optim.safeguard import SafeguardSGD
from particlevi.optim.workers import Particles, Processes, Workers

__all__ = [
    "PNM",
    "AdaPNM",
    "LeaderSGD",
    "Particles",
    "PerturbedGD",
    "Power",
    "Processes",
    "SafeguardSGD",
    "Smoothed",
    "Workers",
    "power",
]
