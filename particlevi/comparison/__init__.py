"""Sets of draws of one posterior, side by side."""

from particlevi.comparison.collapse import Collapse, CollapseWarning, check_collapse
from particlevi.comparison.comparing import compare, default_scores
from particlevi.comparison.estimates import Estimate
from particlevi.comparison.score import Score
from particlevi.comparison.subject import Setting, Subject
from particlevi.comparison.table import Comparison, Row

__all__ = [
    "Collapse",
    "CollapseWarning",
    "Comparison",
    "Estimate",
    "Row",
    "Score",
    "Setting",
    "Subject",
    "check_collapse",
    "compare",
    "default_scores",
]
