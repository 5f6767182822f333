"""The contract of every part, as checks for parts that are written elsewhere.

``check_sampler``, ``check_estimator``, ``check_potential`` and ``check_kernel`` raise an
``AssertionError`` that says what is broken. The package's own tests run the same checks on its own
parts, so that what passes here works with everything else.
"""

from particlevi.testing.estimators import check_estimator
from particlevi.testing.kernels import check_kernel
from particlevi.testing.potentials import check_potential
from particlevi.testing.problems import Problem, problems
from particlevi.testing.samplers import Setting, check_sampler

__all__ = [
    "Problem",
    "Setting",
    "check_estimator",
    "check_kernel",
    "check_potential",
    "check_sampler",
    "problems",
]
