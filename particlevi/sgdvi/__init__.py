"""SGD as variational inference: the effective potential that SGD minimises, and its circulation."""

from particlevi.errors import NotStationaryWarning
from particlevi.sgdvi.circulation import Circulation, circulation, entropy_production
from particlevi.sgdvi.currents import Current, DriftParts, decompose_drift, probability_current
from particlevi.sgdvi.effective_potential import GaussianPotential, gaussian_potential
from particlevi.sgdvi.epochs import EpochLaw, epoch_law
from particlevi.sgdvi.fitted_potential import FittedPotential, fit_potential
from particlevi.sgdvi.free_energy import (
    FreeEnergy,
    Moments,
    free_energy_along,
    gaussian_kl,
    moments_along,
)
from particlevi.sgdvi.least_squares import largest_rate, least_squares_law
from particlevi.sgdvi.optimal import (
    effective_temperatures,
    kl_to_posterior,
    optimal_preconditioner,
    optimal_rate,
)
from particlevi.sgdvi.series import is_stationary
from particlevi.sgdvi.slices import (
    Projection,
    Slice,
    compare_potentials,
    line,
    mean_loss,
    plane,
    principal_directions,
    project,
)
from particlevi.sgdvi.spectra import Spectra, spectra
from particlevi.sgdvi.stationary import (
    StationaryLaw,
    exact_law,
    ou_covariance,
    stationary_law,
)
from particlevi.sgdvi.subspace import Subspace, hessian_vector_product, invariant_subspace
from particlevi.sgdvi.swag import iterate_average, swag

__all__ = [
    "Circulation",
    "Current",
    "DriftParts",
    "EpochLaw",
    "FittedPotential",
    "FreeEnergy",
    "GaussianPotential",
    "Moments",
    "NotStationaryWarning",
    "Projection",
    "Slice",
    "Spectra",
    "StationaryLaw",
    "Subspace",
    "circulation",
    "compare_potentials",
    "decompose_drift",
    "effective_temperatures",
    "entropy_production",
    "epoch_law",
    "exact_law",
    "fit_potential",
    "free_energy_along",
    "gaussian_kl",
    "gaussian_potential",
    "hessian_vector_product",
    "invariant_subspace",
    "is_stationary",
    "iterate_average",
    "kl_to_posterior",
    "largest_rate",
    "least_squares_law",
    "line",
    "mean_loss",
    "moments_along",
    "optimal_preconditioner",
    "optimal_rate",
    "ou_covariance",
    "plane",
    "principal_directions",
    "probability_current",
    "project",
    "spectra",
    "stationary_law",
    "swag",
]
