"""Sets of draws of one posterior, side by side."""

from particlevi.comparison.collapse import check_collapse
from particlevi.comparison.table import Comparison, compare

__all__ = ["Comparison", "check_collapse", "compare"]
