"""Pictures: each takes a result and returns matplotlib axes. ``pip install particlevi[plots]``."""

from particlevi.plots.flow import current, lag_covariance_loops, reversible_null
from particlevi.plots.heat import temperatures
from particlevi.plots.landscape import potential_against_loss
from particlevi.plots.methods import effective_temperature
from particlevi.plots.noise_laboratory import balance, bound, normality, tails
from particlevi.plots.noise_spectra import spectrum
from particlevi.plots.training import training

__all__ = [
    "balance",
    "bound",
    "current",
    "effective_temperature",
    "lag_covariance_loops",
    "normality",
    "potential_against_loss",
    "reversible_null",
    "spectrum",
    "tails",
    "temperatures",
    "training",
]
