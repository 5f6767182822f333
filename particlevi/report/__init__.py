"""One page about a set of draws, or about several side by side, to send to a colleague."""

from particlevi.report.comparing import write_comparison
from particlevi.report.drawing import write_draws

__all__ = ["write_comparison", "write_draws"]
