"""What draws say: effective sample size, R-hat, temperatures, scores, the verdict."""

from particlevi.diagnostics.groups import group_diagnostics
from particlevi.diagnostics.predictive import Prediction
from particlevi.kernels.discrepancies import (
    ksd,
    ksd_test,
    mmd,
    mmd_test,
    sliced_wasserstein,
    sliced_wasserstein_test,
)

__all__ = [
    "Prediction",
    "group_diagnostics",
    "ksd",
    "ksd_test",
    "mmd",
    "mmd_test",
    "sliced_wasserstein",
    "sliced_wasserstein_test",
]
