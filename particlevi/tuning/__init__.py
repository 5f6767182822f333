"""Step sizes, their stability, and what adapts during the warm-up."""

from particlevi.tuning.stability import check_stability
from particlevi.tuning.step_size import StepSize, suggest_step_size

__all__ = ["StepSize", "check_stability", "suggest_step_size"]
