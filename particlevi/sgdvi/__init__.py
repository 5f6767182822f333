"""SGD as variational inference: the effective potential that SGD minimises, and its circulation."""

from particlevi.errors import NotStationaryWarning
from particlevi.sgdvi.adaptive import AdamLaw, adam_law
from particlevi.sgdvi.alignment import Alignment, alignment
from particlevi.sgdvi.chains import (
    GaussianChain,
    epoch_chain,
    rate_schedule_moments,
    sgd_chain,
)
from particlevi.sgdvi.circulation import Circulation, circulation, entropy_production
from particlevi.sgdvi.connectivity import Barrier, Curve, barrier, connect, straight
from particlevi.sgdvi.crossing import Crossing, crossing
from particlevi.sgdvi.currents import Current, DriftParts, decompose_drift, probability_current
from particlevi.sgdvi.designs import Design, design
from particlevi.sgdvi.effective_potential import GaussianPotential, gaussian_potential
from particlevi.sgdvi.epochs import EpochLaw, epoch_law
from particlevi.sgdvi.escape import Escape, escape_time, eyring_kramers_time
from particlevi.sgdvi.fitted_potential import FittedPotential, fit_potential
from particlevi.sgdvi.free_energy import (
    FreeEnergy,
    Moments,
    free_energy_along,
    gaussian_kl,
    moments_along,
)
from particlevi.sgdvi.learning_coefficient import (
    LearningCoefficient,
    local_learning_coefficient,
)
from particlevi.sgdvi.least_squares import largest_rate, least_squares_law
from particlevi.sgdvi.optimal import (
    effective_temperatures,
    kl_to_posterior,
    optimal_preconditioner,
    optimal_rate,
)
from particlevi.sgdvi.plans import SGDPlan, plan
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
from particlevi.sgdvi.verification import Verification

__all__ = [
    "AdamLaw",
    "Alignment",
    "Barrier",
    "Circulation",
    "Crossing",
    "Current",
    "Curve",
    "Design",
    "DriftParts",
    "EpochLaw",
    "Escape",
    "FittedPotential",
    "FreeEnergy",
    "GaussianChain",
    "GaussianPotential",
    "LearningCoefficient",
    "Moments",
    "NotStationaryWarning",
    "Projection",
    "SGDPlan",
    "Slice",
    "Spectra",
    "StationaryLaw",
    "Subspace",
    "Verification",
    "adam_law",
    "alignment",
    "barrier",
    "circulation",
    "compare_potentials",
    "connect",
    "crossing",
    "decompose_drift",
    "design",
    "effective_temperatures",
    "entropy_production",
    "epoch_chain",
    "epoch_law",
    "escape_time",
    "exact_law",
    "eyring_kramers_time",
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
    "local_learning_coefficient",
    "mean_loss",
    "moments_along",
    "optimal_preconditioner",
    "optimal_rate",
    "ou_covariance",
    "plan",
    "plane",
    "principal_directions",
    "probability_current",
    "project",
    "rate_schedule_moments",
    "sgd_chain",
    "spectra",
    "stationary_law",
    "straight",
    "swag",
]
