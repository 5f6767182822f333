"""The joint prior of all parameters in a particle, in few terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi.potentials.priors.base import Block, PriorLike, by_pattern
from particlevi.potentials.random import draw_seeds, seeded
from particlevi.typing import Streams

__all__ = ["JointPrior", "joint_prior"]


class _Run(NamedTuple):
    """A stretch of consecutive parameters that are independent under one law."""

    size: int
    law: Any


@dataclass(frozen=True)
class JointPrior:
    """The prior of a particle: its tensors in order, then the parameters that priors bring.

    Attributes:
        sizes: of the stretches that the particle is split into.
        runs: laws of stretches by themselves, with their number.
        blocks: laws of several stretches together, with their numbers.
        shapes: of the parameters that priors bring, by name.
        constrained: the name and the map under which each of those is shown.
    """

    sizes: tuple[int, ...]
    runs: tuple[tuple[int, Any], ...]
    blocks: tuple[tuple[tuple[int, ...], Block], ...]
    shapes: Mapping[str, tuple[int, ...]]
    constrained: Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]

    @property
    def factorised(self) -> bool:
        """Whether it is a product over coordinates."""
        return not self.blocks

    @property
    def proper(self) -> bool:
        """Whether there are draws of it."""
        return all(hasattr(law, "sample") for _, law in self.runs)

    def log_prob(self, particles: Tensor) -> Tensor:
        """Log densities ``[P]`` of particles ``[P, D]``."""
        many = len(self.sizes) > 1
        pieces = particles.split(self.sizes, dim=-1) if many else (particles,)
        terms = [law.log_prob(pieces[i]).sum(-1) for i, law in self.runs]
        terms += [block.log_prob(*(pieces[i] for i in where)) for where, block in self.blocks]
        total: Tensor = terms[0]
        for term in terms[1:]:
            total = total + term
        return total

    def sample(self, num_particles: int, streams: Streams) -> Tensor:
        """Draws ``[P, D]``."""
        rows = []
        for seed in draw_seeds(streams, num_particles):
            with seeded(seed):
                rows.append(self._one())
        return torch.cat(rows)

    def _one(self) -> Tensor:
        """One draw ``[1, D]``, from torch's global generator."""
        pieces: dict[int, Tensor] = {}
        for i, law in self.runs:
            shape = (1,) if law.batch_shape else (1, self.sizes[i])
            pieces[i] = law.sample(shape).view(1, self.sizes[i])
        for where, block in self.blocks:
            pieces.update(zip(where, block.sample(1), strict=True))
        return torch.cat([pieces[i] for i in range(len(self.sizes))], dim=-1)


def joint_prior(
    prior: PriorLike,
    shapes: Mapping[str, tuple[int, ...]],
    like: Tensor,
    fan_in: Mapping[str, int],
    others: Mapping[str, tuple[int, Any]],
) -> JointPrior:
    """The prior as few laws of consecutive parameters.

    Args:
        prior: one prior, or one per name pattern.
        shapes: of the module's tensors, in order.
        like: a tensor whose dtype and device the scales take.
        fan_in: of the tensors.
        others: parameters with a law of their own that follow the module's: size and law, by name.

    Raises:
        ValueError: a parameter that no pattern matches, or a pattern that matches nothing.
    """
    used = _Used()
    sizes: list[int] = []
    runs: list[tuple[int, Any]] = []
    blocks: list[tuple[tuple[str, int], Block]] = []
    open_run: list[tuple[Any, Tensor, Tensor | None]] = []

    def close() -> None:
        if open_run:
            scale = torch.cat([scale for _, scale, _ in open_run])
            mean = None
            if any(part is not None for _, _, part in open_run):
                means = [torch.zeros_like(s) if m is None else m for _, s, m in open_run]
                mean = torch.cat(means)
            runs.append((len(sizes), open_run[0][0].elementwise(scale, mean)))
            sizes.append(len(scale))
            open_run.clear()

    for name, shape in shapes.items():
        chosen = by_pattern(prior, name, "prior", used.of(prior))
        scale = by_pattern(chosen.scale, name, "prior's scale", used.of(chosen.scale))
        if chosen.fan_in and len(shape) >= 2:
            scale = scale / math.sqrt(fan_in[name])
        size = math.prod(shape)
        scales = torch.full((size,), float(scale), dtype=like.dtype, device=like.device)
        if hasattr(chosen, "block"):
            close()
            blocks.append(((name, len(sizes)), chosen.block(name, shape, scales)))
            sizes.append(size)
            continue
        if open_run and open_run[-1][0] is not chosen:
            close()
        means = getattr(chosen, "mean", 0.0)
        mean = by_pattern(means, name, "prior's mean", set(), default=0.0)
        open_run.append((chosen, scales, _filled(mean, name, shape, like)))
    close()
    used.check(list(shapes))
    for size, law in others.values():
        runs.append((len(sizes), law))
        sizes.append(size)
    added: dict[str, tuple[int, ...]] = {}
    constrained: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {}
    placed = []
    for (name, first), block in blocks:
        where = [first]
        for suffix, shape in block.shapes.items():
            where.append(len(sizes))
            sizes.append(math.prod(shape))
            added[f"prior.{name}.{suffix}"] = shape
            shown, transform = block.constrained[suffix]
            constrained[f"prior.{name}.{suffix}"] = (f"prior.{name}.{shown}", transform)
        placed.append((tuple(where), block))
    return JointPrior(tuple(sizes), tuple(runs), tuple(placed), added, constrained)


class _Used:
    """Which patterns of which dictionaries have matched."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Any, set[str]]] = {}

    def of(self, patterns: Any) -> set[str]:
        return self._found.setdefault(id(patterns), (patterns, set()))[1]

    def check(self, names: list[str]) -> None:
        for patterns, used in self._found.values():
            unused = [p for p in patterns if p not in used] if isinstance(patterns, Mapping) else []
            if unused:
                raise ValueError(
                    f"The prior's patterns {unused} match no parameter that an earlier one does "
                    f"not; the parameters are {names}."
                )


def _filled(mean: Any, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
    """A mean as one number per element; None for zero."""
    if not isinstance(mean, Tensor) and mean == 0.0:
        return None
    if isinstance(mean, Tensor):
        if mean.shape != shape:
            raise ValueError(
                f"The prior's mean of {name!r} must have shape {list(shape)}, "
                f"got {list(mean.shape)}."
            )
        return mean.detach().reshape(-1).to(like)
    try:
        return torch.full((math.prod(shape),), float(mean), dtype=like.dtype, device=like.device)
    except (OverflowError, RuntimeError) as error:
        raise ValueError(
            f"The prior's mean of {name!r} must be a number of {like.dtype}, got {mean!r}."
        ) from error
