"""Where the workers of an optimiser are: rows of one process, or processes."""

from __future__ import annotations

from typing import Any, Protocol, final

import torch
from torch import Tensor

from particlevi._checks import check_has
from particlevi.optim._base import Params, Tensors, TorchOptimizer

__all__ = ["Particles", "Processes", "Workers", "WorkersOptimizer"]


class Workers(Protocol):
    """Workers, numbered from 0. "Here" means those in this process."""

    def count(self, params: Tensors) -> int:
        """The number of workers."""
        ...

    def numbers(self, params: Tensors) -> list[int]:
        """Those here."""
        ...

    def rows(self, tensor: Tensor) -> Tensor:
        """``[workers here, D]`` of a tensor of a parameter's shape."""
        ...

    def gather(self, rows: Tensor) -> Tensor:
        """``[workers, ...]`` from ``[workers here, ...]``."""
        ...

    def copies(self, params: Tensors, sources: Tensor) -> Tensors:
        """Parameters of worker ``sources[i]`` in the place of worker i's."""
        ...

    def mean(self, tensors: Tensors, weights: Tensor) -> Tensors:
        """The mean over workers with weights 0 or 1, everywhere; those of weight 0 are not read."""
        ...


@final
class Particles:
    """Workers along the first axis ``[P, ...]`` of every parameter, in one process."""

    def count(self, params: Tensors) -> int:
        """P."""
        sizes = {p.shape[0] if p.ndim else None for p in params}
        if len(sizes) != 1 or None in sizes:
            shapes = [list(p.shape) for p in params][:5]
            raise ValueError(
                f"Every parameter needs the workers along its first axis, got shapes {shapes}: "
                "stack them, or use workers=Processes() with one worker per process."
            )
        return next(iter(sizes)) or 0

    def numbers(self, params: Tensors) -> list[int]:
        """All."""
        return list(range(self.count(params)))

    def rows(self, tensor: Tensor) -> Tensor:
        """``[P, D]``."""
        return tensor.reshape(tensor.shape[0], -1)

    def gather(self, rows: Tensor) -> Tensor:
        """All are here."""
        return rows

    def copies(self, params: Tensors, sources: Tensor) -> Tensors:
        """Rows ``sources``."""
        return [p[sources.to(p.device)] for p in params]

    def mean(self, tensors: Tensors, weights: Tensor) -> Tensors:
        """The mean row, in every row."""
        total = weights.sum().clamp(min=1)
        found = []
        for t in tensors:
            chosen = weights.to(t.device).reshape(-1, *[1] * (t.ndim - 1)) > 0
            sums = torch.where(chosen, t, 0).sum(0, keepdim=True)
            found.append((sums / total.to(t)).expand_as(t).contiguous())
        return found


@final
class Processes:
    """One worker per process of a ``torch.distributed`` group, started by ``torchrun`` or alike.

    Args:
        group: a process group; the default one if None.
        patience: seconds that the others wait for the answer of a process once one has failed; one
            that hangs is noticed after three times as long.

    Raises:
        RuntimeError: there is no process group.
    """

    def __init__(self, group: Any = None, patience: float = 10.0) -> None:
        from particlevi.distributed import Peers

        self.peers: Peers = Peers(group, patience)

    def count(self, params: Tensors) -> int:
        """The number of processes, the dead ones included."""
        return self.peers.size

    def numbers(self, params: Tensors) -> list[int]:
        """This one."""
        return [self.peers.number]

    def rows(self, tensor: Tensor) -> Tensor:
        """``[1, D]``."""
        return tensor.reshape(1, -1)

    def gather(self, rows: Tensor) -> Tensor:
        """One row per process; NaN for those that died."""
        return self.peers.all_gather(rows[0])

    def copies(self, params: Tensors, sources: Tensor) -> Tensors:
        """Parameters of process ``sources[number]``; all take part in each copy."""
        wanted = sources.tolist()
        mine = list(params)
        for source in sorted(set(wanted)):
            received = self.peers.copy_from(source, params)
            if wanted[self.peers.number] == source:
                mine = received
        return mine

    def mean(self, tensors: Tensors, weights: Tensor) -> Tensors:
        """The mean over the processes of weight 1."""
        counts = bool(weights[self.peers.number] > 0)
        sums = self.peers.sum([t if counts else torch.zeros_like(t) for t in tensors])
        total = weights.sum().clamp(min=1)
        return [s / total.to(s) for s in sums]


_MEMBERS = ("count", "numbers", "rows", "gather", "copies", "mean")


class WorkersOptimizer(TorchOptimizer):
    """An optimiser that several workers share."""

    def __init__(self, params: Params, defaults: dict[str, Any], workers: Workers | None) -> None:
        if workers is not None:
            check_has("workers", workers, _MEMBERS, "Particles(), Processes() or of their kind")
        self.workers: Workers = Particles() if workers is None else workers
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "workers": self.workers}

    def _params(self) -> Tensors:
        return [p for group in self.param_groups for p in group["params"]]
