"""A set of draws from a hierarchy on disk, which it leaves there."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from particlevi.drawset import DrawSet
from particlevi.drawset.lazy import LazyTensor
from particlevi.potentials.potential import ModelPotential
from particlevi.storage import drawfile
from particlevi.storage.groups import Names, group_names
from particlevi.storage.hierarchy import Hierarchy
from particlevi.storage.zarrsource import ZarrSource, read_stats

__all__ = ["read"]

Set = TypeVar("Set", bound=DrawSet)


def read(kind: type[Set], path: Path, potential: ModelPotential | None) -> Set:
    """See ``pvi.load``."""
    hierarchy = Hierarchy(path.absolute())
    if "particlevi" not in hierarchy.attributes:
        raise ValueError(f"{path} was not written by particlevi: xarray.open_datatree reads it.")
    meta = json.loads(str(hierarchy.attributes["particlevi"]))
    drawfile.check_potential(meta, potential)
    parts = {name: tuple(shape) for name, shape in meta.pop("parts").items()}
    replaced, dtype = set(meta.pop("own")), getattr(torch, meta.pop("dtype"))
    rows = meta.pop("rows")
    fields = drawfile.fields_of(meta)
    names = group_names(fields["facts"].kind)
    places = [rows.index(chain) for chain in fields["chains"]]
    groups = {
        warm: _part(hierarchy, names.prefixed(warm), parts, replaced, dtype)
        for warm in (False, True)
        if names.prefixed(warm).posterior in hierarchy.groups
    }

    def cut(value: Tensor) -> Tensor:
        return value if value.ndim == 1 or len(places) == len(rows) else value[places]

    particles, stats = groups[False]
    warmup, warmup_stats = groups.get(True, (None, {}))
    others = {
        name: torch.from_numpy(np.asarray(hierarchy.reader("constant_data", name)[...]))
        for name in drawfile.OTHERS
        if f"constant_data/{name}" in hierarchy.nodes
    }
    return kind(
        particles=cut(particles),
        stats={name: cut(value) for name, value in stats.items()},
        warmup=None if warmup is None else cut(warmup),
        warmup_stats={name: cut(value) for name, value in warmup_stats.items()},
        potential=potential,
        **fields,
        **drawfile.others_of(others),
    )


def _part(
    hierarchy: Hierarchy,
    names: Names,
    parts: Mapping[str, tuple[int, ...]],
    replaced: set[str],
    dtype: torch.dtype,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draws ``[P, T, K]`` and their statistics, of the warm-up or of the rest."""
    arrays = {f"{names.raw(replaced, name)}/{name}": shape for name, shape in parts.items()}
    num = hierarchy.nodes[f"{names.posterior}/{names.chain}"]["shape"][0]
    count = hierarchy.counts[names.posterior]
    width = sum(math.prod(shape) for shape in parts.values())
    source = ZarrSource(hierarchy.path, arrays, dtype)
    values = LazyTensor.of(source, range(num), range(count), width)
    return values, read_stats(hierarchy, names.stats, 0, count)
