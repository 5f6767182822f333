"""Where particles start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import check_finite, check_particles, check_positive_int
from particlevi.streams import ParticleStreams
from particlevi.typing import Streams

if TYPE_CHECKING:
    from particlevi.potentials.potential import ModelPotential

__all__ = ["Draw", "Starts", "starting_points"]

Draw: TypeAlias = Callable[[int, Streams], Tensor]
"""``(P, streams)`` to starting points ``[P, D]``."""


@dataclass(frozen=True)
class Starts:
    """Ways to choose starting points.

    Attributes:
        methods: by name, each ``(P, streams) -> [P, D]``.
        choose: the name of the default, where it takes a look to know; the first if absent.
        named: tensors of one particle by name, as in a ``state_dict``, P and streams to
            ``[P, D]``; the layout's own tensors if absent.
    """

    methods: Mapping[str, Draw]
    choose: Callable[[], str] | None = None
    named: Callable[[Mapping[str, Tensor], int, Streams], Tensor] | None = None

    def default(self) -> str:
        """The name of the default method."""
        return next(iter(self.methods)) if self.choose is None else self.choose()


def starting_points(
    potential: ModelPotential, num_particles: int | None, initial: Any, seed: int
) -> Tensor:
    """Starting points ``[P, D]`` from what a caller gives as ``initial``.

    Args:
        potential: what is sampled.
        num_particles: P; needed unless ``initial`` tells it.
        initial: None for the potential's default; the name of a method of ``potential.starts``; a
            tensor ``[P, D]``; a ``state_dict`` (or, of a Pyro model, values by site), which all
            particles share, all but the first with 1 % of noise; a list of them, one per particle;
            or draws, of which each chain's last is taken, or ``num_particles`` at random if that is
            another number.
        seed: of the randomness.

    Raises:
        TypeError: none of these.
        ValueError: a wrong number of particles, shape or name, or values that are not finite.
    """
    streams = ParticleStreams(seed, "start")
    if initial is None or isinstance(initial, str):
        if num_particles is None:
            raise ValueError("Give num_particles, or starting points initial [P, D].")
        check_positive_int("num_particles", num_particles)
        return potential.init(int(num_particles), streams, initial or "default")
    if num_particles is not None:
        check_positive_int("num_particles", num_particles)
    if isinstance(initial, Tensor):
        points = initial
    elif isinstance(initial, Mapping):
        points = _from_named(potential, initial, num_particles or 1, streams)
    elif isinstance(initial, (list, tuple)) and all(isinstance(x, Mapping) for x in initial):
        if not initial:
            raise ValueError("initial is an empty list: give one state_dict per particle.")
        points = torch.cat([_from_named(potential, one, 1, streams) for one in initial])
    elif isinstance(getattr(initial, "particles", None), Tensor) and initial.particles.ndim == 3:
        end = getattr(initial, "end", None)
        if end is not None and num_particles in (None, len(end)):
            # Draws are of some of the particles only, as of the coldest replicas.
            points = end
        else:
            points = _from_draws(potential, initial.particles, num_particles, streams)
    else:
        raise TypeError(
            "initial must be a tensor [P, D] or the name of a way to draw starting points, a "
            f"state_dict, a list of them or Draws, got {type(initial).__name__}."
        )
    check_particles(points, potential.num_params, "initial")
    check_finite("initial", points, "Choose finite starting points.")
    if num_particles is not None and num_particles != len(points):
        raise ValueError(
            f"initial holds {len(points)} particles but num_particles is {num_particles}: "
            "leave num_particles out."
        )
    return points.detach().to(potential.device, potential.dtype)


def _from_named(
    potential: ModelPotential,
    tensors: Mapping[str, Tensor],
    num_particles: int,
    streams: Streams,
) -> Tensor:
    named = potential.starts.named
    if named is not None:
        return named(tensors, num_particles, streams)
    try:
        point = potential.ravel({name: torch.as_tensor(v) for name, v in tensors.items()})
    except KeyError as error:
        raise ValueError(f"initial does not fit the potential: {error.args[0]}") from None
    return jittered(point.reshape(1, -1), potential.layout.sizes, num_particles, streams)


def _from_draws(
    potential: ModelPotential,
    particles: Tensor,
    num_particles: int | None,
    streams: Streams,
) -> Tensor:
    chains, draws, size = particles.shape
    if size != potential.num_params:
        raise ValueError(
            f"initial holds draws of {size} coordinates but a particle has {potential.num_params}: "
            "it takes draws of this model, run without keep=."
        )
    if num_particles in (None, chains):
        return particles[:, -1]
    assert num_particles is not None
    if num_particles > chains * draws:
        raise ValueError(
            f"initial holds {chains * draws} draws but num_particles is {num_particles}."
        )
    order = streams.shared.uniform((chains * draws,), torch.float64).argsort()[:num_particles]
    return particles.reshape(-1, size)[order.to(particles.device)]


def jittered(point: Tensor, sizes: tuple[int, ...], num_particles: int, streams: Streams) -> Tensor:
    """A point ``[1, D]`` as P particles, all but the first with 1 % of noise.

    The noise of a tensor has a hundredth of its root mean square as standard deviation, or 0.01 if
    the tensor is zero: too little to change a fit, enough for interacting particles, which could
    not leave one and the same point.
    """
    noise = streams.normal((num_particles, point.shape[1])).to(point)
    noise[0] = 0.0
    scales = []
    for part in point[0].split(sizes):
        size = part.square().mean().sqrt()
        scales.append(torch.where(size > 0, size, torch.ones_like(size)).expand(part.shape))
    return point + 0.01 * torch.cat(scales) * noise
