"""What is kept of a draw, as objects that can be put side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from particlevi._checks import check_positive_int, check_seed, is_integer
from particlevi.data import place
from particlevi.data.fingerprint import fingerprint
from particlevi.data.tensors import as_tensors
from particlevi.potentials.chunks import chunks
from particlevi.potentials.potential import ModelPotential
from particlevi.typing import JSON, Batch

__all__ = ["Keep", "Kept", "Piece", "as_kept", "moments", "outputs_at", "parameters", "projections"]


class Piece(NamedTuple):
    """Numbers that are kept of a particle.

    Attributes:
        shapes: of the arrays that they are on disk, by name, in the order of the numbers.
        of: from particles ``[P, D]`` to the numbers ``[P, K]``.
        coordinates: ``[K]``, if they are some of the parameters.
    """

    shapes: dict[str, tuple[int, ...]]
    of: Callable[[Tensor], Tensor]
    coordinates: Tensor | None = None


class Kept(Protocol):
    """Something that is kept of a draw."""

    @property
    def name(self) -> str:
        """By which ``draws.only(name)`` finds it."""
        ...

    def open(self, potential: ModelPotential) -> Piece:
        """It, of the particles of a potential."""
        ...

    def describe(self) -> JSON:
        """What tells it from another, so that a run is not resumed with another choice."""
        ...


@dataclass(frozen=True, eq=False)
class parameters:
    """Keep the parameters, or some of them.

    Args:
        which: name patterns such as ``"head.*"`` or a list of them, coordinates
            ``LongTensor [K]``, or None for all.

    Raises:
        TypeError: something else.
        ValueError: patterns that match no parameter, or coordinates that are not there; told when
            the run begins.

    Examples:
        >>> import torch, particlevi as pvi
        >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=3)
        >>> kept = [pvi.storage.parameters(torch.tensor([2])), pvi.storage.moments()]
        >>> draws = pvi.sample(
        ...     pvi.sghmc(normal), step_size=0.5, num_particles=4, num_draws=10, progress=False,
        ...     store=pvi.storage.InMemory(keep=kept),
        ... )
        >>> draws.particles.shape, draws.moments.mean.shape
        (torch.Size([4, 10, 1]), torch.Size([4, 3]))
    """

    which: str | Sequence[str] | Tensor | None = None
    name = "parameters"

    def __post_init__(self) -> None:
        which = [self.which] if isinstance(self.which, str) else self.which
        if which is None or isinstance(which, Tensor):
            return
        if not isinstance(which, (list, tuple)) or not all(isinstance(p, str) for p in which):
            raise TypeError(
                "keep must be name patterns, coordinates LongTensor [K], or things such as "
                f"pvi.outputs_at(inputs) or a list of them, got {self.which!r}."
            )

    def open(self, potential: ModelPotential) -> Piece:
        """The parameters of a potential."""
        shapes, which, num = dict(potential.layout.shapes), self.which, potential.num_params
        if which is None:
            return Piece(shapes, lambda position: position)
        if isinstance(which, Tensor):
            inside = which.ndim == 1 and which.dtype == torch.long and len(which) > 0
            if not inside or which.min() < 0 or which.max() >= num:
                raise ValueError(
                    f"keep as coordinates must be a LongTensor of numbers in 0 ... {num - 1}, "
                    f"got {which.dtype} {list(which.shape)}."
                )
            columns, shapes = which, {"theta": (len(which),)}
        else:
            columns, shapes = self._matched(potential, shapes)
        columns = columns.to(potential.device)
        return Piece(shapes, lambda position: position[:, columns], columns)

    def _matched(
        self, potential: ModelPotential, shapes: dict[str, tuple[int, ...]]
    ) -> tuple[Tensor, dict[str, tuple[int, ...]]]:
        patterns = [self.which] if isinstance(self.which, str) else list(self.which or ())
        where = potential.layout.slices()
        idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in where)]
        if idle or not patterns:
            raise ValueError(
                f"keep={self.which!r}: {idle} match none of the parameters {list(where)}."
            )
        chosen = [n for n in where if any(fnmatchcase(n, p) for p in patterns)]
        columns = [torch.arange(where[name].start, where[name].stop) for name in chosen]
        return torch.cat(columns), {name: shapes[name] for name in chosen}

    def describe(self) -> JSON:
        """Patterns, or a fingerprint of coordinates."""
        if isinstance(self.which, Tensor):
            return {"kind": "coordinates", "coordinates": fingerprint(self.which)}
        which: JSON = None if self.which is None else list(self.which)
        return {
            "kind": "patterns",
            "patterns": [self.which] if isinstance(self.which, str) else which,
        }


@dataclass(frozen=True, eq=False)
class outputs_at:
    """Keep the model's outputs at some inputs.

    Args:
        inputs: one tensor ``[B, ...]``, or a tuple of them for a module with several inputs.
    """

    inputs: Any
    name = "outputs"

    def open(self, potential: ModelPotential) -> Piece:
        """The outputs of a potential."""
        given = self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)
        inputs = Batch(place(as_tensors(given, potential, "inputs"), potential))
        with torch.no_grad():
            probe = potential.outputs(potential.init(1), inputs)

        def of(position: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [
                    potential.outputs(part, inputs).flatten(1)
                    for part, _ in chunks(position, None, potential.chunk_size)
                ]
            return torch.cat(parts)

        return Piece({self.name: tuple(probe.shape[1:])}, of)

    def describe(self) -> JSON:
        """A fingerprint of the inputs."""
        return {"kind": "outputs", "inputs": fingerprint(self.inputs)}


@dataclass(frozen=True, eq=False)
class projections:
    """Keep ``theta @ matrix``, ``[K]``.

    Args:
        matrix: ``[D, K]``, or a number K of random directions, normal with mean square 1 / D. The
            matrix is held in memory.
        seed: of random directions.

    Raises:
        TypeError: neither a matrix nor a number.
        ValueError: a matrix with other than D rows, told when the run begins.

    Examples:
        >>> import torch, particlevi as pvi
        >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=300)
        >>> kept = pvi.storage.projections(5)
        >>> draws = pvi.sample(
        ...     pvi.sghmc(normal), step_size=0.5, num_particles=4, num_draws=10, progress=False,
        ...     store=pvi.storage.InMemory(keep=kept),
        ... )
        >>> draws.particles.shape, kept.directions(300).shape
        (torch.Size([4, 10, 5]), torch.Size([300, 5]))
    """

    matrix: Tensor | int
    seed: int = 0
    name = "projections"

    def __post_init__(self) -> None:
        check_seed("seed", self.seed)
        if isinstance(self.matrix, Tensor):
            if self.matrix.ndim != 2 or not self.matrix.is_floating_point():
                raise TypeError(
                    "projections take a floating-point matrix [D, K] or a number K, got "
                    f"{self.matrix.dtype} {list(self.matrix.shape)}."
                )
            return
        if not is_integer(self.matrix):
            raise TypeError(
                f"projections take a matrix [D, K] or a number K, got {type(self.matrix).__name__}."
            )
        check_positive_int("matrix, as a number of directions,", self.matrix)

    def directions(self, num_params: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix, ``[D, K]``."""
        if isinstance(self.matrix, Tensor):
            return self.matrix.to(dtype)
        generator = torch.Generator().manual_seed(int(self.seed))
        drawn = torch.randn(num_params, int(self.matrix), generator=generator, dtype=dtype)
        return drawn.div_(math.sqrt(num_params))

    def open(self, potential: ModelPotential) -> Piece:
        """The projections of a potential's particles."""
        num = potential.num_params
        matrix = self.directions(num, potential.dtype).to(potential.device)
        if len(matrix) != num:
            raise ValueError(f"projections take a matrix [{num}, K], got {list(matrix.shape)}.")
        return Piece({self.name: (matrix.shape[1],)}, lambda position: position @ matrix)

    def describe(self) -> JSON:
        """A fingerprint of the matrix, or what it is drawn from."""
        if isinstance(self.matrix, Tensor):
            return {"kind": "projections", "matrix": fingerprint(self.matrix)}
        return {"kind": "projections", "number": int(self.matrix), "seed": int(self.seed)}


@dataclass(frozen=True, eq=False)
class moments:
    """Keep mean and variance of every parameter over the draws, per chain.

    They are updated at every draw after the warm-up, in float64 (Welford), and no draws are held
    for them: two numbers for each parameter of each chain. They are in ``draws.moments``.

    Source: Welford, *Note on a method for calculating corrected sums of squares and products*,
    Technometrics 4 (1962).

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda theta: -0.5 * (theta**2).sum(), num_params=3)
        >>> draws = pvi.sample(
        ...     pvi.sghmc(normal), step_size=0.5, num_particles=4, num_draws=10, progress=False,
        ...     store=pvi.storage.InMemory(keep=pvi.storage.moments()),
        ... )
        >>> draws.moments.count, draws.moments.variance.shape, draws.particles.shape
        (10, torch.Size([4, 3]), torch.Size([4, 10, 0]))
    """

    name = "moments"

    def open(self, potential: ModelPotential) -> Piece:
        """Nothing of a single draw."""
        return Piece({}, lambda position: position[:, :0])

    def describe(self) -> JSON:
        """There is one kind."""
        return {"kind": "moments"}


Keep: TypeAlias = str | Sequence[str | Kept] | Tensor | Kept | None
"""What is kept of a draw: name patterns, coordinates, an object, or several; None for all."""


def as_kept(keep: Keep) -> list[Kept]:
    """What is kept, as objects of different names.

    Raises:
        TypeError: something else.
        ValueError: two of one name.
    """
    if _is_kept(keep):
        return [keep]  # type: ignore[list-item]
    if not isinstance(keep, (list, tuple)) or not any(map(_is_kept, keep)):
        return [parameters(keep)]  # type: ignore[arg-type]
    patterns = [each for each in keep if not _is_kept(each)]
    found = [each for each in keep if _is_kept(each)]
    found = [parameters(patterns), *found] if patterns else found
    names = [each.name for each in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"keep holds {twice} twice: put them into one.")
    return found


def _is_kept(thing: Any) -> bool:
    return all(hasattr(thing, name) for name in ("open", "describe", "name"))
