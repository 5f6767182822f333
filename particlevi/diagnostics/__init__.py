"""What draws say: predictions, effective sample sizes, R-hat, temperatures, scores, the verdict."""

from particlevi.diagnostics._agreement import agreement
from particlevi.diagnostics.calibration import brier, calibration_error, coverage, crps, loo, nll
from particlevi.diagnostics.convergence import autocorrelation_time, ess, mcse, rhat
from particlevi.diagnostics.export import to_arviz
from particlevi.diagnostics.groups import GroupDiagnostics, group_diagnostics, recombine
from particlevi.diagnostics.nested import nested_rhat
from particlevi.diagnostics.outputs import log_likelihood, log_predictive_density
from particlevi.diagnostics.predictive import Prediction, predict
from particlevi.diagnostics.temperatures import Temperature
from particlevi.diagnostics.verdict import Finding, Verdict, diagnose
from particlevi.kernels.discrepancies import (
    ksd,
    ksd_test,
    mmd,
    mmd_test,
    sliced_wasserstein,
    sliced_wasserstein_test,
)

__all__ = [
    "Finding",
    "GroupDiagnostics",
    "Prediction",
    "Temperature",
    "Verdict",
    "agreement",
    "autocorrelation_time",
    "brier",
    "calibration_error",
    "coverage",
    "crps",
    "diagnose",
    "ess",
    "group_diagnostics",
    "ksd",
    "ksd_test",
    "log_likelihood",
    "log_predictive_density",
    "loo",
    "mcse",
    "mmd",
    "mmd_test",
    "nested_rhat",
    "nll",
    "predict",
    "recombine",
    "rhat",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
    "to_arviz",
]
