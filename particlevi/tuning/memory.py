"""What an automatic run has chosen, written down and read again, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from particlevi.gradients.control_variate import control_variate
from particlevi.potentials.potential import ModelPotential
from particlevi.samplers.mams import mams
from particlevi.samplers.mclmc import mclmc
from particlevi.samplers.randomized_hmc import randomized_hmc
from particlevi.samplers.sghmc import sghmc
from particlevi.tuning.bounded_heat import bounded_heat
from particlevi.tuning.chosen import because, constant
from particlevi.tuning.energy_error import energy_error
from particlevi.tuning.windows import windows
from particlevi.typing import JSON, Sampler, Tuner

__all__ = ["Remembered", "recall", "remember"]

_SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "mams": mams,
    "mclmc": mclmc,
    "randomized_hmc": randomized_hmc,
    "sghmc": partial(sghmc, gradient_noise="online"),
}
_TUNERS: dict[str, Callable[..., Tuner]] = {"energy_error": energy_error, "windows": windows}


class Remembered(NamedTuple):
    """An automatic choice as tensors and JSON."""

    tensors: dict[str, Tensor]
    words: dict[str, JSON]


def remember(sampler: Sampler, tuner: Tuner | None) -> Remembered | None:
    """What was chosen; None where it was the caller's."""
    if not isinstance(tuner, because):
        return None
    inner = tuner.tuner
    chosen = dict(inner.chosen) if isinstance(inner, constant) else {}
    if isinstance(inner, (bounded_heat, energy_error, windows)) and inner.start is not None:
        chosen["start"] = inner.start
    estimator = sampler.estimator
    if isinstance(estimator, control_variate) and estimator.center is not None:
        chosen["center"] = estimator.center
    words: dict[str, JSON] = {
        "sampler": sampler.name,
        "sampler_chosen": tuner.sampler_chosen,
        "until_converged": tuner.until_converged,
        "tuner": inner.name,
        "tuner_settings": dict(inner.settings),
        "reasons": list(tuner.reasons),
        "start_gradients": tuner.start_gradients,
        "start_seconds": tuner.start_seconds,
    }
    return Remembered(chosen, words)


def recall(
    what: Sampler | ModelPotential,
    data: Any,
    tensors: Mapping[str, Tensor],
    words: Mapping[str, Any],
) -> tuple[Sampler, because]:
    """The sampler and the tuner of a choice that was remembered.

    Args:
        what: the potential of the run, or its sampler, where that was the caller's.
        data: as given to ``sample``.
        tensors: from ``remember``.
        words: the same.

    Raises:
        ValueError: a potential where the sampler was the caller's.
    """
    potential = what.potential if isinstance(what, Sampler) else what
    chosen = {name: value.to(potential.device) for name, value in tensors.items()}
    center = chosen.pop("center", None)
    if isinstance(what, Sampler):
        sampler = what
    elif words["sampler_chosen"]:
        sampler = _SAMPLERS[words["sampler"]](what)
        if center is not None and sampler.on is not None:
            sampler = sampler.on(control_variate(what, data, center))
    else:
        raise ValueError(
            f"The sampler of this run, {words['sampler']}, was given to sample: give it to resume."
        )
    settings = words["tuner_settings"]
    inner: Tuner
    if words["tuner"] == "constant":
        inner = constant(chosen)
    elif words["tuner"] == "bounded_heat":
        start = chosen.get("start")
        inner = bounded_heat(sampler.estimator, data, start=start, **settings)
    else:
        inner = _TUNERS[words["tuner"]](**settings, **chosen)
    return sampler, because(
        inner,
        tuple(words["reasons"]),
        words["start_gradients"],
        words["start_seconds"],
        sampler_chosen=words["sampler_chosen"],
        until_converged=words["until_converged"],
    )
