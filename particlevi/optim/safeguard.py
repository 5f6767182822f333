"""Safeguard SGD: SGD by workers of which some may send anything.

Each step averages the gradients of the workers that are still good. Sums of each worker's gradients
since the last multiple of a window are compared: with ``A_i`` such a sum and ``A_med`` one that has
more than half of all workers within ``H``,

    worker i stays good while |A_i - A_med| <= 2 H,        H = constant sqrt(window) V,

for the short window and, if there is one, for the long one. Removal is permanent. ``V`` is the
typical norm of a gradient's noise, measured as the median over workers of the median distance of
its gradient to the others', over sqrt(2). A gradient that is not finite is removed before it is
used. The published sums are divided by the number of good workers while the published thresholds
are not, which removes nobody; these are plain sums.

Distances are taken between sketches of ``sketch`` numbers, signed sums of coordinates: exact where
there are no more coordinates, otherwise unbiased squares with relative standard deviation
``sqrt(2 / sketch)``. For m workers in as many processes a step sends d numbers for the average and
m sketches, and its arithmetic is O(d + m^2 sketch) in each.

Gradients may be anything; the program of each process is taken to be this one.

Reference: Allen-Zhu, Ebrahimianghazani, Li and Alistarh, "Byzantine-resilient non-convex stochastic
gradient descent", 2021.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor

from particlevi._checks import (
    check_nonnegative,
    check_positive,
    check_positive_int,
    check_seed,
)
from particlevi.optim._base import Params, Tensors, mixed
from particlevi.optim.workers import Particles, Processes, Workers, WorkersOptimizer

__all__ = ["SafeguardSGD"]


class SafeguardSGD(WorkersOptimizer):
    """SGD that finds and removes workers whose gradients cannot be those of the others.

    Every worker holds the same parameters. Workers along the first axis ``[P, ...]`` of the
    parameters have their gradients in the rows of ``.grad``; workers in processes each have their
    own ``.grad``. A process that dies is a removed worker. ``good`` says who is left.

    Fewer than half of the workers may be bad, and their sums must stay apart from the honest ones'
    for longer than noise would explain: what hides within ``2 H`` is kept.

    Source: Allen-Zhu, Ebrahimianghazani, Li and Alistarh, "Byzantine-resilient non-convex
    stochastic gradient descent", 2021.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the learning rate, a number or a tensor with one element.
        window: steps after which the short sums start anew.
        long_window: the same of the long sums, None for the single safeguard.
        constant: of the threshold ``constant sqrt(window) V``. 2 removed every attack that the
            tests make, 3.5 did not.
        noise: standard deviation of normal noise that is added to the average, 0 for none.
        sketch: how many numbers stand for a gradient in the comparison.
        seed: of the noise and the sketches; all processes give the same.
        weight_decay: the coefficient of the weight decay, a term of the gradient by default.
        workers: where the workers are, ``Particles()`` or ``Processes()``.
        decoupled_weight_decay: ``theta *= 1 - lr weight_decay`` rather than a term of the gradient.
        maximize: go up.
        foreach: one kernel for many tensors; by default where that is faster.
        capturable: counts of steps live on the device.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: a sparse gradient.

    Examples:
        >>> x = torch.ones(4, 2, requires_grad=True)
        >>> optimizer = SafeguardSGD([x], lr=0.1, window=10)
        >>> x.grad = torch.ones(4, 2)
        >>> x.grad[3] = torch.nan
        >>> optimizer.step(); optimizer.good
        tensor([ True,  True,  True, False])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        window: int = 100,
        long_window: int | None = None,
        constant: float = 2.0,
        noise: float = 0.0,
        sketch: int = 4096,
        seed: int = 0,
        weight_decay: float = 0.0,
        workers: Workers | None = None,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        check_positive_int("window", window)
        if long_window is not None:
            check_positive_int("long_window", long_window, window)
        check_positive("constant", constant)
        check_nonnegative("noise", noise)
        check_positive_int("sketch", sketch)
        check_seed("seed", seed)
        super().__init__(
            params,
            {
                "lr": lr,
                "window": window,
                "long_window": long_window,
                "constant": constant,
                "noise": noise,
                "sketch": sketch,
                "seed": seed,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
            workers,
        )
        self._prepare()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._signs = list(self._draw_signs())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; the sums start anew."""
        super().add_param_group(param_group)
        self.workers.count(self._params())
        self._signs = list(self._draw_signs())

    def _draw_signs(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(int(self.param_groups[0]["seed"]))
        for p in self._params():
            size = self.workers.rows(torch.view_as_real(p) if torch.is_complex(p) else p).shape[1]
            bits = torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8)
            yield (2 * bits - 1).to(p.device)

    def _prepare(self) -> None:
        first, params = self.param_groups[0], self._params()
        device = params[0].device
        dtype = torch.promote_types(params[0].dtype.to_real(), torch.float32)
        num_workers, sketch = self.workers.count(params), first["sketch"]
        first["count"] = torch.zeros((), dtype=torch.float32, device=device)
        first["good"] = torch.ones(num_workers, dtype=torch.bool, device=device)
        names = ("short",) if first["long_window"] is None else ("short", "long")
        for name in names:
            first[f"{name}_sums"] = torch.zeros(num_workers, sketch, dtype=dtype, device=device)
            # Not 0-d: a compiled graph drops what is written to a 0-d double on a CPU.
            first[f"{name}_noise"] = torch.zeros(1, dtype=dtype, device=device)

    @property
    def good(self) -> Tensor:
        """Which workers are left, ``[workers]``."""
        return cast(Tensor, self.param_groups[0]["good"].clone())

    def _sketches(self) -> Tensor:
        """Signed sums ``[workers here, sketch]`` of the gradients' coordinates."""
        first, params = self.param_groups[0], self._params()
        size: int = first["sketch"]
        total: Tensor = torch.zeros_like(first["short_sums"][: len(self.workers.numbers(params))])
        start = 0
        for p, signs in zip(params, self._signs, strict=True):
            length = len(signs)
            if p.grad is not None:
                grad = torch.view_as_real(p.grad) if torch.is_complex(p.grad) else p.grad
                signed = self.workers.rows(grad).to(total.dtype) * signs
                padded = torch.nn.functional.pad(signed, (start, -(start + length) % size))
                total = total + padded.reshape(len(total), -1, size).sum(1).to(total.device)
            start = (start + length) % size
        return total

    def _judge(self, sketches: Tensor, now: Tensor) -> None:
        """Who of those averaged at this step is left for the next one."""
        first = self.param_groups[0]
        good, count = first["good"], first["count"]
        sketches = torch.where(now[:, None], sketches, 0)
        level = noise_level(distances(sketches), now)
        good.copy_(now)
        for name, window in (("short", first["window"]), ("long", first["long_window"])):
            if window is None:
                continue
            sums, noise = first[f"{name}_sums"], first[f"{name}_noise"]
            age = count % window
            sums.copy_(torch.where(age == 0, 0, sums) + sketches)
            noise.copy_((noise * age + level) / (age + 1))
            good.logical_and_(within(sums, now, first["constant"] * window**0.5 * noise))
        count.add_(1)

    @torch.no_grad()
    def _step_groups(self) -> None:
        collected = [self._collect(group) for group in self.param_groups]
        if not any(params for params, *_ in collected):
            return
        exchanged = self._exchange([grads for _, grads, *_ in collected])
        if isinstance(exchanged, str):
            self._catch_up(exchanged, collected)
            return
        sketches, now, means = exchanged
        self._judge(sketches, now)
        for group, lists, mean in zip(self.param_groups, collected, means, strict=True):
            lists[1] = mean
            self._step_lists(group, lists)

    def _exchange(self, grads: list[Tensors]) -> tuple[Tensor, Tensor, list[Tensors]] | str:
        """The sketches of all, who is averaged and the averages; or what went wrong."""
        try:
            sketches = self.workers.gather(self._sketches())
            now = self.param_groups[0]["good"] & torch.isfinite(sketches).all(1)
            means = [self.workers.mean(part, now) if part else [] for part in grads]
            self._add_noise([mean for part in means for mean in part])
            return sketches, now, means
        except RuntimeError as error:
            if not isinstance(self.workers, Processes):
                raise
            return str(error)

    def _catch_up(self, failure: str, collected: list[list[Tensors]]) -> None:
        """Do this step without those that died; the others may have done it already."""
        workers, first = cast(Processes, self.workers), self.param_groups[0]
        if not workers.peers.regroup():
            raise RuntimeError(f"A collective failed, though every worker is alive: {failure}")
        counts = workers.gather(first["count"].reshape(1))
        ahead = torch.nan_to_num(counts, nan=-1.0).argmax()
        tensors = [*self._params(), *(first[name] for name in self._names())]
        received = workers.copies(tensors, ahead.expand(len(counts)))
        behind = bool(first["count"] < counts[ahead])
        if not behind:
            self._step_groups()
            return
        for tensor, value in zip(tensors, received, strict=True):
            tensor.copy_(value)
        for _, _, steps, *_ in collected:
            torch._foreach_add_(steps, 1)

    def _names(self) -> list[str]:
        """What every worker knows, in the first group."""
        first = self.param_groups[0]
        return ["count", "good", *(n for n in first if n.endswith(("_sums", "_noise")))]

    def _add_noise(self, means: Tensors) -> None:
        first = self.param_groups[0]
        if not first["noise"]:
            return
        count = int(first["count"])
        for index, mean in enumerate(means):
            # The same for every worker: rows of particles share it.
            shape = mean[:1].shape if isinstance(self.workers, Particles) else mean.shape
            generator = torch.Generator(mean.device)
            generator.manual_seed(mixed(first["seed"], count, index))
            xi = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
            mean.add_(xi, alpha=first["noise"])


def distances(rows: Tensor) -> Tensor:
    """Pairwise distances ``[m, m]`` from the Gram matrix of the rows.

    They are taken from the median row first, since rounding is that of the squared norms.
    """
    rows = rows - rows.median(0).values
    norms = rows.square().sum(1)
    squares = (norms[:, None] + norms - 2 * rows @ rows.T).clamp(min=0)
    same = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return torch.where(same, 0, squares).sqrt()


def noise_level(apart: Tensor, good: Tensor) -> Tensor:
    """The median over good workers of their median distance to good workers, over sqrt(2).

    Of an even number the larger middle one, so that a majority of honest workers bounds it from
    below; one's own distance, 0, is counted.
    """
    half = good.sum() // 2
    apart = torch.where(good, apart, torch.inf)
    medians = apart.sort(1).values.gather(1, half.expand(len(apart), 1))[:, 0]
    medians = torch.where(good, medians, torch.inf).sort().values
    return medians.gather(0, ((good.sum() - 1).clamp(min=0) // 2)[None])[0] / 2**0.5


def within(sums: Tensor, good: Tensor, threshold: Tensor) -> Tensor:
    """Who is within twice the threshold of the sum that has most others within the threshold."""
    apart = distances(sums)
    near = ((apart <= threshold) & good).sum(1)
    median = torch.where(good, near, -1).argmax()
    return apart.index_select(0, median[None])[0] <= 2 * threshold
