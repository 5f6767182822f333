"""Leader SGD: workers that are pulled towards the best of them.

Worker i of group j takes an SGD step and, every ``period`` steps, moves towards its group's leader;
every ``global_period`` steps towards the leader of all::

    x_i <- x_i - lr g(x_i)
    x_i <- x_i + pull (leader_j - x_i),      x_i <- x_i + global_pull (leader - x_i)

Between two pulls, workers may be drawn by ``stale_pull / period`` a step towards the place where
the leader was at the last pull, which costs no communication.

The leader has the smallest running loss and is a constant of the pull: without stale pulls it
follows plain SGD to the bit. On ``h x^2 / 2`` without noise, two workers with ``period=1`` are
``[(1 - lr h)(1 - pull)]^k`` of their first distance apart after k steps. Elastic averaging, which
pulls to the mean of the workers, moves its centre; a stationary point of leader SGD is one of the
loss.

Reference: Teng, Gao, Chalus, Choromanska, Goldfarb and Weller, "Leader stochastic gradient descent
for distributed training of deep learning models", 2019.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_fraction, check_positive_int
from particlevi.optim._base import Closure, Group, Params, Tensors, descend
from particlevi.optim.workers import Workers, WorkersOptimizer

__all__ = ["LeaderSGD"]


class LeaderSGD(WorkersOptimizer):
    """SGD by several workers, each pulled towards the one with the smallest running loss.

    Every ``period`` steps ``x <- x + pull (leader - x)``, after the step, so that momentum is left
    alone. The loss of a step comes from the closure or as ``step(loss=...)``: ``[P]`` for workers
    along the first axis, one number in each process for workers in processes. A worker whose loss
    is NaN does not lead.

    Buffers, such as the running statistics of normalisation layers, stay each worker's own and are
    never pulled. Evaluate inside ``averaged``, at the mean of the workers.

    Source: Teng, Gao, Chalus, Choromanska, Goldfarb and Weller, "Leader stochastic gradient descent
    for distributed training of deep learning models", 2019.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the learning rate, a number or a tensor with one element.
        pull: towards the group's leader, in [0, 1).
        period: steps between two pulls.
        window: the leader has the smallest mean loss over this many last steps.
        num_groups: groups of neighbouring workers with a leader each.
        global_pull: towards the leader of all, in [0, 1), with ``pull + global_pull < 1``.
        global_period: steps between two global pulls.
        stale_pull: over ``period``, in each of the steps between two pulls towards the place of the
            group's leader at the last one, in [0, 1); costs a copy of the parameters.
        global_stale_pull: the same over ``global_period`` towards the leader of all, before the
            group's.
        momentum: of SGD.
        nesterov: Nesterov's momentum.
        weight_decay: the coefficient of the weight decay, a term of the gradient by default.
        workers: where the workers are, ``Particles()`` or ``Processes()``.
        decoupled_weight_decay: ``theta *= 1 - lr weight_decay`` rather than a term of the gradient.
        maximize: go up; the leader has the largest loss.
        foreach: one kernel for many tensors; by default where that is faster.
        capturable: counts of steps live on the device.

    Raises:
        ValueError: a setting out of its range, or groups of unequal size.
        RuntimeError: a step without its loss, or a sparse gradient.

    Examples:
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> optimizer = LeaderSGD([x], lr=0.1, pull=0.5)
        >>> losses = x.square() / 2
        >>> losses.sum().backward()
        >>> optimizer.step(loss=losses); x.detach()
        tensor([0.9000, 1.8000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        pull: float = 0.1,
        period: int = 1,
        window: int = 16,
        num_groups: int = 1,
        global_pull: float = 0.0,
        global_period: int = 1,
        stale_pull: float = 0.0,
        global_stale_pull: float = 0.0,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        workers: Workers | None = None,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        check_fraction("pull", pull)
        check_fraction("global_pull", global_pull)
        check_fraction("pull + global_pull", pull + global_pull)
        check_fraction("stale_pull", stale_pull)
        check_fraction("global_stale_pull", global_stale_pull)
        pull, global_pull = float(pull), float(global_pull)
        check_fraction("momentum", momentum)
        for name, value in (
            ("period", period),
            ("global_period", global_period),
            ("window", window),
            ("num_groups", num_groups),
        ):
            check_positive_int(name, value)
        check_flag("nesterov", nesterov)
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs a momentum above 0.")
        super().__init__(
            params,
            {
                "lr": lr,
                "pull": pull,
                "period": period,
                "window": window,
                "num_groups": num_groups,
                "global_pull": global_pull,
                "global_period": global_period,
                "stale_pull": float(stale_pull),
                "global_stale_pull": float(global_stale_pull),
                "momentum": momentum,
                "nesterov": nesterov,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
            workers,
        )
        num_workers = self.workers.count(self._params())
        if num_workers % num_groups:
            raise ValueError(f"{num_workers} workers do not make {num_groups} groups of one size.")

    def _buffers(self, group: Group) -> tuple[str, ...]:
        names = {
            "momentum_buffer": group["momentum"],
            "leader": group["stale_pull"],
            "global_leader": group["global_stale_pull"],
        }
        return tuple(name for name, used in names.items() if used)

    def _update(
        self, group: Group, params: Tensors, grads: Tensors, steps: Tensors, *buffers: Tensors
    ) -> None:
        momentum = group["momentum"]
        for velocity in buffers[:1] if momentum else ():
            torch._foreach_mul_(velocity, momentum)
            torch._foreach_add_(velocity, grads)
            ahead = torch._foreach_add(grads, velocity, alpha=momentum)
            grads = list(ahead) if group["nesterov"] else velocity
        descend(params, grads, group["lr"])

    def step(self, closure: Closure | None = None, *, loss: Tensor | None = None) -> Any:
        """One step, and the pull if it is due.

        Args:
            closure: clears the gradients, computes the losses, calls ``backward`` on their sum and
                returns the losses.
            loss: the losses, where there is no closure.

        Returns:
            The closure's losses, or None.

        Raises:
            RuntimeError: there is neither closure nor loss.
        """
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = loss = closure()
        if loss is None:
            raise RuntimeError(
                "The leader is chosen by its loss: give step(closure) or step(loss=...)."
            )
        self._step_groups()
        with torch.no_grad():
            self._record(loss.detach())
            self._pull()
        return found

    def _record(self, loss: Tensor) -> None:
        first = self.param_groups[0]
        loss = loss.reshape(-1)
        here = len(self.workers.numbers(self._params()))
        if len(loss) != here:
            raise ValueError(f"{here} workers are here, got losses {list(loss.shape)}.")
        if "losses" not in first:
            first["losses"] = loss.new_zeros(first["window"], len(loss))
            first["count"] = torch.zeros((), dtype=torch.float32, device=loss.device)
        losses, count = first["losses"], first["count"]
        place = torch.arange(len(losses), device=loss.device) == count % len(losses)
        losses.copy_(torch.where(place[:, None], loss, losses))
        count.add_(1)

    def running_losses(self) -> Tensor:
        """The mean loss of each worker over the last steps, ``[workers]``."""
        first = self.param_groups[0]
        losses, count = first["losses"], first["count"]
        means = losses.sum(0) / count.clamp(max=len(losses))
        return self.workers.gather(means[:, None])[:, 0]

    def _due(self, period: int) -> bool | Tensor:
        count: Tensor = self.param_groups[0]["count"]
        if self.param_groups[0]["capturable"] or torch.compiler.is_compiling():
            return count % period == 0
        return not count.item() % period

    def _wanted(self, group: Group, kind: str) -> bool | Tensor:
        used = group[f"{kind}pull"] or group[f"{kind}stale_pull"]
        return self._due(group[f"{kind}period"]) if used else False

    def _pull(self) -> None:
        first = self.param_groups[0]
        for group in self.param_groups:
            self._pull_back(group, "global_")
            self._pull_back(group, "")
        due = [(self._wanted(g, ""), self._wanted(g, "global_")) for g in self.param_groups]
        if not any(isinstance(d, Tensor) or d for pair in due for d in pair):
            return
        running = self.running_losses()
        running = torch.nan_to_num(-running if first["maximize"] else running, nan=torch.inf)
        grouped = running.reshape(first["num_groups"], -1)
        starts = torch.arange(len(grouped), device=running.device) * grouped.shape[1]
        local = (grouped.argmin(1) + starts).repeat_interleave(grouped.shape[1])
        everywhere = running.argmin().expand(len(running))
        for group, (near, far) in zip(self.param_groups, due, strict=True):
            self._towards(local, group, near, "")
            self._towards(everywhere, group, far, "global_")

    def _towards(self, leaders: Tensor, group: Group, due: bool | Tensor, kind: str) -> None:
        """The pull, and the leader's place for the steps that follow."""
        if due is False:
            return
        pull, keep = group[f"{kind}pull"], group[f"{kind}stale_pull"]
        params = group["params"]
        for p, leader in zip(params, self.workers.copies(params, leaders), strict=True):
            if p.grad is None:
                continue
            p.lerp_(leader, (pull * due).to(p) if isinstance(due, Tensor) else pull)
            if keep:
                old = self.state[p][f"{kind}leader"]
                old.copy_(torch.where(due, leader, old) if isinstance(due, Tensor) else leader)

    def _pull_back(self, group: Group, kind: str) -> None:
        """Towards the leader of the last pull, between two pulls and not before the first."""
        if not group[f"{kind}stale_pull"]:
            return
        period, due = group[f"{kind}period"], self._due(group[f"{kind}period"])
        between = self.param_groups[0]["count"] > period
        strength = group[f"{kind}stale_pull"] / period
        if isinstance(due, Tensor):
            strength = strength * (between & ~due)
        elif due or not bool(between):
            return
        for p in group["params"]:
            if p.grad is not None:
                weight = strength.to(p) if isinstance(strength, Tensor) else strength
                p.lerp_(self.state[p][f"{kind}leader"], weight)

    @contextmanager
    def averaged(self, buffers: Iterable[Tensor] = ()) -> Iterator[None]:
        """Inside, every worker stands at the mean of the workers; then back, to the bit.

        Args:
            buffers: other tensors to be averaged, such as ``model.buffers()``; whole numbers are
                left alone. The statistics of a mean net are not the mean statistics: better let
                ``torch.optim.swa_utils.update_bn`` take them anew, inside.
        """
        tensors = [*self._params(), *(b for b in buffers if b.is_floating_point())]
        with torch.no_grad():
            points = [t.detach().clone() for t in tensors]
            ones = torch.ones(self.workers.count(self._params()), device=tensors[0].device)
            for t, mean in zip(tensors, self.workers.mean(points, ones), strict=True):
                t.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for t, point in zip(tensors, points, strict=True):
                    t.copy_(point)
