"""How particles move, one file per method; and what a method of one's own is made of."""

from particlevi.samplers._assemble import (
    Declared,
    GradientAt,
    Info,
    MomentumInfo,
    Target,
    assemble,
    configurational_temperature,
    gaussian,
    momenta,
    standard_normal,
)

__all__ = [
    "Declared",
    "GradientAt",
    "Info",
    "MomentumInfo",
    "Target",
    "assemble",
    "configurational_temperature",
    "gaussian",
    "momenta",
    "standard_normal",
]
