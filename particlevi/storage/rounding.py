"""What is lost when draws are stored in a narrower type: large numbers, and narrow laws."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi._warning import warn

__all__ = ["Rounding"]

_FEWEST = 64
_SHARE = 0.01


class Rounding:
    """Looks at draws ``[P, K]`` as they are stored, and warns once of each of two losses.

    A finite number that is infinite in the narrower type has overflowed. Rounding errors e widen
    the law of a parameter by the share ``E e^2 / Var theta``, over draws and particles; more than
    1 % is told.

    Args:
        dtype: of the store.
        every: of the parameters every so many are looked at.
    """

    def __init__(self, dtype: torch.dtype, every: int = 1):
        self.dtype = dtype
        self.every = every
        self.count: int = 0
        self.origin: Tensor | None = None
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None
        self.told: set[str] = set()

    def note(self, kept: Tensor, stored: Tensor) -> None:
        """A draw ``[P, K]`` and what was stored of it."""
        if kept.dtype == self.dtype or kept.dtype.itemsize <= self.dtype.itemsize:
            return
        kept = kept[:, :: self.every].to(stored.device)
        stored = stored[:, :: self.every]
        lost = ~torch.isfinite(stored).all(1)
        if lost.any():
            self._tell_overflow(kept, stored)
            kept, stored = kept[~lost], stored[~lost]
        if not len(kept):
            return
        if self.origin is None:
            self.origin = kept[0].clone()
        error, moved = kept - stored.to(kept.dtype), kept - self.origin
        new = (error.square().sum(0), moved.sum(0), moved.square().sum(0))
        if self.sums is None:
            self.sums = new
        else:
            for k in range(len(new)):
                self.sums[k].add_(new[k])
        self.count += len(kept)

    def share(self) -> Tensor | None:
        """Of rounding errors in the variance of each parameter, ``[K]``; None of too few draws."""
        if self.sums is None or self.count < _FEWEST:
            return None
        error, first, second = (total / self.count for total in self.sums)
        variance = (second - first.square()).clamp(min=0)
        return torch.where(variance > 0, error / variance, 0.0)

    def tell(self) -> None:
        """Warn if the stored law is wider than the law of the draws."""
        share = self.share()
        if share is None or "rounding" in self.told or not (share > _SHARE).any():
            return
        self.told.add("rounding")
        worst = int(share.argmax())
        seen = "kept" if self.every == 1 else "looked at"
        warn(
            f"Storage in {self.dtype} rounds {int((share > _SHARE).sum())} of {len(share)} {seen} "
            f"numbers so much that their variance grows by over 1 % (by {float(share[worst]):.1%} "
            f"for number {worst * self.every}): their law is narrow beside their size. Store in a "
            "wider type, "
            "pvi.storage.InMemory(dtype=torch.float32).",
        )

    def _tell_overflow(self, kept: Tensor, stored: Tensor) -> None:
        over = (torch.isfinite(kept) & ~torch.isfinite(stored)).any(1)
        if "overflow" in self.told or not over.any():
            return
        self.told.add("overflow")
        particles = over.nonzero().flatten().tolist()
        largest = float(kept[over].abs().nan_to_num(posinf=0).max())
        warn(
            f"A draw of particles {particles[:10]} holds {largest:.3g}, and {self.dtype} storage "
            f"ends at {torch.finfo(self.dtype).max:.3g}: it is stored as infinite, and such draws "
            "cannot be saved. Store in torch.bfloat16 or a wider type, "
            "pvi.storage.InMemory(dtype=torch.bfloat16).",
        )
