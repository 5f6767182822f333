"""The right calls, by name: a new public name is one line here."""

from __future__ import annotations

from itertools import chain

import particlevi as pvi
from tests.calls.call import Call
from tests.calls.rooms import ROOMS
from tests.calls.sgd import SGD
from tests.calls.top import TOP

CALLS: dict[str, Call] = dict(chain(TOP.items(), ROOMS.items(), SGD.items()))

# What functions give back, and what a caller writes or implements: nothing is computed from
# arguments there.
RESULTS = {
    pvi.diagnostics: ["Finding", "GroupDiagnostics", "Prediction", "Temperature", "Verdict"],
    pvi.tuning: ["Invariance", "StepSize"],
    pvi.comparison: ["Collapse", "Comparison", "Estimate", "Row", "Setting", "Subject"],
    pvi.testing: ["Problem", "Setting"],
    pvi.optim: ["Smoothed", "Workers"],
    pvi.gradients: ["NoiseClass"],
    pvi.storage: ["Kept", "Part", "Recording", "Storage", "Store"],
    pvi.running: ["Look", "OneProcess", "Rule", "Target"],
    pvi.noise: ["AveragedNoise", "Balance", "BalancePath", "Batching", "Estimate", "FamilyTest",
                "FiniteRate", "Gaussianity", "GeneralizationBound", "GradientNoise", "NoisePath",
                "Pair",
                "Regulariser", "SGDRun", "Scalings", "Spectrum", "TailIndex"],
    pvi.sgdvi: ["AdamLaw", "Alignment", "Barrier", "Crossing", "Curve", "Design", "Escape",
                "GaussianChain",
                "LearningCoefficient", "SGDPlan", "Verification",
                "Circulation", "Current", "DriftParts", "EpochLaw", "FittedPotential",
                "FreeEnergy", "GaussianPotential", "Moments", "Projection", "Slice", "Spectra",
                "StationaryLaw", "Subspace"],
}  # fmt: skip
# A contract that takes minutes for each call; tests/test_testing.py tries it.
TOO_LONG = ["testing.check_sampler"]
