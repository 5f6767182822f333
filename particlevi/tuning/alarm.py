"""The test by an exact kernel as a part of a verdict, where it costs no more than the run did."""

from __future__ import annotations

from typing import Any

from particlevi.data import Data, as_data
from particlevi.diagnostics.verdict import Verdict
from particlevi.drawset import DrawSet
from particlevi.tuning.invariance import TUNING_STEPS, check_invariance

__all__ = ["add_alarm", "affordable"]

_LEVEL = 0.01
_FEWEST_CHAINS = 8
_NUM_STARTS, _NUM_STEPS = 4, 150


def affordable(draws: DrawSet, data: Data) -> bool:
    """Whether the test takes no more gradients of single data than the run did."""
    chains = len(draws.particles)
    number = max(1, data.num_data)
    wanted = chains * (_NUM_STARTS * (_NUM_STEPS + 1) + TUNING_STEPS) * number
    size = int(draws.attrs.get("batch_size") or number)
    return wanted <= (draws.gradients or 0.0) * size


def add_alarm(
    draws: DrawSet, data: Any, inputs: Any, wanted: bool | None, verdict: Verdict
) -> None:
    """Put into a verdict what an exact kernel on all the data does to the draws.

    A finding is made where the test rejects at 1 %, which eight chains just allow, and a functional
    moved by more than a tenth of its standard deviation.

    Args:
        draws: of at least eight chains, with their potential and all parameters.
        data: as given to ``sample``.
        inputs: at which outputs are looked at.
        wanted: whether to test; if it is affordable where None.
        verdict: to which it is added.

    Raises:
        ValueError: a test that is wanted, of draws that allow none.
    """
    if wanted is False or (wanted is None and data is None):
        return
    if wanted is None:
        if draws.potential is None or not draws.complete or draws.facts.kind != "chains":
            return
        if len(draws.particles) < _FEWEST_CHAINS or draws.particles.shape[1] < 2:
            return
        if draws.potential.random or not affordable(draws, as_data(data, draws.potential)):
            return
    found = check_invariance(
        draws, data, num_starts=_NUM_STARTS, num_steps=_NUM_STEPS, inputs=inputs
    )
    name, shift, error = found.largest
    verdict.note("p-value of invariance", found.p_value)
    verdict.note(f"shift of the {name}", shift, error)
    verdict.note("gradients of that test", found.num_gradients)
    verdict.note("its seconds", found.seconds)
    if found.p_value <= _LEVEL and not found.ok:
        verdict.add(
            "not invariant",
            "wrong",
            f"Another law than the posterior: an exact kernel on all the data moves the {name} of "
            f"these draws by {shift:+.2g} +- {error:.1g} standard deviations "
            f"(p = {found.p_value:.2g}).",
            "Take all the data (pvi.sample(potential, data)), a smaller step size, or larger "
            "batches; after too short a warm-up, run longer.",
            p_value=found.p_value,
            shift=shift,
            error=error,
        )
