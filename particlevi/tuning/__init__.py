"""Step sizes, their stability, and what adapts during the warm-up."""

from particlevi.tuning.bounded_heat import bounded_heat
from particlevi.tuning.dual_averaging import dual_averaging
from particlevi.tuning.energy_error import energy_error, implied_bias
from particlevi.tuning.invariance import Invariance, check_invariance
from particlevi.tuning.stability import check_stability
from particlevi.tuning.step_size import StepSize, suggest_step_size
from particlevi.tuning.windows import windows

__all__ = [
    "Invariance",
    "StepSize",
    "bounded_heat",
    "check_invariance",
    "check_stability",
    "dual_averaging",
    "energy_error",
    "implied_bias",
    "suggest_step_size",
    "windows",
]
