"""The groups of a hierarchy of draws, and what lies in which of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from particlevi.storage.hierarchy import DRAW, Hierarchy
from particlevi.storage.store import Recording

__all__ = ["Names", "Own", "check_name", "group_names", "group_names_of"]


@dataclass(frozen=True)
class Names:
    """The groups of a hierarchy."""

    posterior: str
    unconstrained: str
    stats: str
    chain: str

    def prefixed(self, warm: bool) -> Names:
        """Of the warm-up, or of the draws."""
        if not warm:
            return self
        return Names(
            f"warmup_{self.posterior}",
            f"warmup_{self.unconstrained}",
            f"warmup_{self.stats}",
            self.chain,
        )

    def raw(self, replaced: set[str], name: str) -> str:
        """The group in which a sampled tensor lies."""
        return self.unconstrained if name in replaced else self.posterior


def group_names(kind: str) -> Names:
    """Of chains, and of particles of which only the last state is a draw."""
    if kind == "particles":
        return Names("particles", "unconstrained_particles", "particle_stats", "particle")
    return Names("posterior", "unconstrained_posterior", "sample_stats", "chain")


def group_names_of(hierarchy: Hierarchy) -> list[str]:
    """The groups that hold the draws of a run, each draw once."""
    known = ("posterior", "particles")
    return [name for name in hierarchy.groups if name.removeprefix("warmup_") in known]


class Own:
    """The model's own quantities, where they are not what is sampled.

    Attributes:
        shapes: of the quantities, by name.
        replaced: the sampled tensors in whose place they stand.
    """

    def __init__(self, recording: Recording):
        self.recorder = recording.recorder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.replaced: set[str] = set()
        if not self.recorder.whole:
            return
        potential = self.recorder.potential
        with torch.no_grad():
            point = torch.zeros(1, potential.num_params, device=potential.device)
            given = potential.unravel(point.to(potential.dtype))
            found = potential.sites.constrain(dict(given))
        same = {name for name, value in found.items() if value is given.get(name)}
        self.shapes = {n: tuple(v.shape[1:]) for n, v in found.items() if n not in same}
        self.replaced = set(given) - same if self.shapes else set()

    def of(self, kept: Tensor) -> dict[str, Tensor]:
        """The quantities at ``kept [P, D]``."""
        return self.recorder.potential.constrain(kept)


def check_name(name: str) -> None:
    """A name that is neither a path nor a dimension that all draws share.

    Raises:
        ValueError: it is.
    """
    if "/" in name or name in ("chain", DRAW, "particle", ""):
        raise ValueError(
            f"Names of tensors on disk must not contain '/', nor be 'chain', 'draw' or 'particle', "
            f"got {name!r}: give it another name in the model."
        )
