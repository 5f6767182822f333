"""What is a potential, and what one that only has the protocol's members can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_particles, is_integer
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import Energy, Evaluation, ModelPotential, Sites
from particlevi.potentials.random import draw_seeds
from particlevi.potentials.starts import Starts
from particlevi.typing import JSON, Batch, Potential, Streams

__all__ = ["as_potential", "is_potential", "probe_values"]

_PROBES = 3
"""Particles at which a fingerprint evaluates a potential."""


def is_potential(candidate: Any) -> bool:
    """Whether an object has ``num_params``, ``num_data`` and can be called."""
    return (
        not isinstance(candidate, type)
        and callable(candidate)
        and hasattr(candidate, "num_params")
        and hasattr(candidate, "num_data")
    )


def as_potential(candidate: Potential) -> ModelPotential:
    """A potential with all that samplers and diagnostics ask for.

    A ``ModelPotential`` is returned as it is. Of any other object ``num_params``, ``num_data`` and
    ``__call__`` are taken, and these where it has them:

    * ``log_prior(particles)`` and ``log_likelihood(particles, batch)``: for scores, predictive
      densities and estimators that weight the two differently. Without them those are refused.
    * ``shapes``, tensors by name: one tensor ``theta [D]`` if absent.
    * ``dtype`` and ``device``: torch's default dtype, and the CPU, if absent.
    * ``init(num_particles, generator)``: standard normal if absent.
    * ``constrain(tensors)``: the model's own quantities.
    * ``compilable``, ``chunk_size``: True and None if absent.
    * ``fingerprint``: what identifies it in a checkpoint; its class and sizes, and without data its
      values at three points, if absent.

    Args:
        candidate: an object that keeps the protocol ``particlevi.typing.Potential``.

    Raises:
        TypeError: an object that does not, or a member of the wrong type.

    Examples:
        >>> class Bowl:
        ...     num_params, num_data = 2, None
        ...     def __call__(self, particles, batch=None):
        ...         return 0.5 * particles.square().sum(1)
        >>> as_potential(Bowl())
        ModelPotential(Bowl, D=2, N=None, float32)
    """
    if isinstance(candidate, ModelPotential):
        return candidate
    if not is_potential(candidate):
        missing = [n for n in ("num_params", "num_data") if not hasattr(candidate, n)]
        missing += [] if callable(candidate) else ["__call__(particles, batch)"]
        raise TypeError(
            "This takes a potential: from pvi.from_module, from_pyro, from_log_density or "
            "from_log_likelihood, or an object with num_params, num_data and "
            f"__call__(particles, batch), got {type(candidate).__name__} without {missing}."
        )
    return _viewed(candidate)


def _viewed(candidate: Any) -> ModelPotential:
    name = type(candidate).__name__
    num_params, num_data = candidate.num_params, candidate.num_data
    for what, value in (("num_params", num_params), ("num_data", num_data)):
        if not (is_integer(value) and value >= 1) and not (value is None and what == "num_data"):
            raise TypeError(f"{name}.{what} must be an integer of at least 1, got {value!r}.")
    shapes = getattr(candidate, "shapes", None) or {"theta": (int(num_params),)}
    layout = Layout({key: tuple(shape) for key, shape in shapes.items()})
    if layout.num_params != num_params:
        raise TypeError(
            f"{name}.shapes hold {layout.num_params} numbers but num_params is {num_params}."
        )
    dtype = getattr(candidate, "dtype", None) or torch.get_default_dtype()
    device = torch.device(getattr(candidate, "device", None) or "cpu")

    def energy(particles: Tensor, batch: Batch | None) -> Tensor:
        values = candidate(particles, batch)
        if not isinstance(values, Tensor) or values.shape != particles.shape[:1]:
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"{name} must give one energy per particle, {list(particles.shape[:1])} for "
                f"particles {list(particles.shape)}, got {got}."
            )
        return values

    constrain = getattr(candidate, "constrain", None)
    fingerprint: Mapping[str, JSON] | None = getattr(candidate, "fingerprint", None)
    if fingerprint is None:
        own: dict[str, JSON] = {"kind": name, "num_params": int(num_params), "num_data": num_data}
        if num_data is None:
            own["values"] = _values(energy, int(num_params), dtype, device, None)
        fingerprint = own
    return ModelPotential(
        layout=layout,
        num_data=None if num_data is None else int(num_data),
        log_prior_fn=_log_prior(candidate, name, energy),
        log_likelihood_fn=None if num_data is None else _log_likelihood(candidate, name),
        starts=Starts(_starts(candidate, name, int(num_params))),
        device=device,
        dtype=dtype,
        energy_fn=energy,
        sites=Sites() if constrain is None else Sites(constrain),
        evaluation=Evaluation(
            compilable=getattr(candidate, "compilable", True),
            chunk_size=getattr(candidate, "chunk_size", None),
        ),
        fingerprint=fingerprint,
    )


def _log_prior(candidate: Any, name: str, energy: Energy) -> Callable[[Tensor], Tensor]:
    given: Callable[[Tensor], Tensor] | None = getattr(candidate, "log_prior", None)
    if given is not None:
        return given
    if candidate.num_data is None:
        return lambda particles: -energy(particles, None)

    def refuse(particles: Tensor) -> Tensor:
        raise ValueError(
            f"This needs the prior apart from the data, and {name} gives their sum only: add a "
            "method log_prior(particles) -> [P]."
        )

    return refuse


def _log_likelihood(candidate: Any, name: str) -> Callable[[Tensor, Batch], Tensor]:
    given: Callable[[Tensor, Batch], Tensor] | None = getattr(candidate, "log_likelihood", None)
    if given is not None:
        return given

    def refuse(particles: Tensor, batch: Batch) -> Tensor:
        raise ValueError(
            f"This needs the log-likelihood of every datum, and {name} gives their sum only: add a "
            "method log_likelihood(particles, batch) -> [P, B]."
        )

    return refuse


def _starts(candidate: Any, name: str, num_params: int) -> dict[str, Any]:
    given = getattr(candidate, "init", None)

    def normal(num_particles: int, streams: Streams) -> Tensor:
        return streams.normal((num_particles, num_params))

    if given is None:
        return {"normal": normal}

    def init(num_particles: int, streams: Streams) -> Tensor:
        (seed,) = draw_seeds(streams, 1)
        points: Tensor = given(num_particles, torch.Generator().manual_seed(int(seed)))
        check_particles(points, num_params, f"the result of {name}.init")
        return points

    return {"init": init, "normal": normal}


def _values(
    energy: Energy,
    num_params: int,
    dtype: torch.dtype,
    device: torch.device,
    batch: Batch | None,
) -> list[JSON]:
    points = torch.randn(_PROBES, num_params, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = energy(points.to(device, dtype), batch)
    return [float(f"{float(value):.5g}") for value in values]


def probe_values(potential: ModelPotential, batch: Batch | None) -> list[JSON]:
    """Energies at three fixed particles, to five digits: what tells potentials of one form apart.

    A fingerprint cannot read a function of the caller's own; it can evaluate it.

    Args:
        potential: what is sampled.
        batch: shared by all particles; None for a density without data.
    """
    return _values(potential, potential.num_params, potential.dtype, potential.device, batch)
