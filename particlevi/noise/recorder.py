"""Recording of the SGD run of a user's own loop, for the bound on its generalisation gap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from particlevi._checks import check_positive_int
from particlevi.noise.bounds import SGDRun

__all__ = ["SGDRecorder"]


class SGDRecorder:
    """Keeps every k-th step of a ``torch.optim.SGD`` loop: ``2 (T/k) D`` numbers.

    Before each such step it copies the parameters and the gradient that the step will use, which
    must be that of the mean loss of the minibatch. Nothing else of the loop changes.

    Reference: Neu, Dziugaite, Haghifam and Roy, "Information-theoretic generalization bounds for
    stochastic gradient descent", 2021, whose bound needs such a run.

    Args:
        optimizer: plain SGD, of ``net.parameters()`` in their order.
        every: k.

    Raises:
        TypeError: another optimiser.
        ValueError: momentum, weight decay or ``maximize``, with which the bound does not hold.

    Examples:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = torch.optim.SGD([w], lr=0.5)
        >>> recorder = SGDRecorder(optimizer)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (w.square() / 2).sum().backward()
        ...     optimizer.step()
        >>> recorder.run().gradients.flatten().tolist()
        [1.0, 0.5]
    """

    def __init__(self, optimizer: torch.optim.SGD, every: int = 1) -> None:
        if not isinstance(optimizer, torch.optim.SGD):
            raise TypeError(f"optimizer must be torch.optim.SGD, got {type(optimizer).__name__}.")
        check_positive_int("every", every)
        self._optimizer, self._every, self._count = optimizer, int(every), 0
        self._positions: list[Tensor] = []
        self._gradients: list[Tensor] = []
        self._rates: list[float] = []
        self._check()
        self._hook = optimizer.register_step_pre_hook(self._see)

    def _check(self) -> None:
        for group in self._optimizer.param_groups:
            for name in ("momentum", "weight_decay", "maximize"):
                if group[name]:
                    raise ValueError(
                        f"The bound is for plain SGD, got {name}={group[name]}: leave it out."
                    )
        rates = {float(group["lr"]) for group in self._optimizer.param_groups}
        if len(rates) > 1:
            raise ValueError(f"All parameter groups must have one lr, got {sorted(rates)}.")

    def _params(self) -> list[Tensor]:
        return [p for group in self._optimizer.param_groups for p in group["params"]]

    def _see(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(a is not None for a in (*args[1:], *kwargs.values())):
            raise ValueError(
                "A step with a closure has no gradient yet when it is recorded: call backward() "
                "and then step() without a closure."
            )
        if self._count % self._every == 0:
            self._check()
            params = self._params()
            slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            self._positions.append(_flat(params))
            self._gradients.append(_flat(slopes))
            self._rates.append(float(self._optimizer.param_groups[0]["lr"]))
        self._count += 1

    def run(self) -> SGDRun:
        """Ends the recording; ``final`` is where the parameters are now.

        Raises:
            ValueError: no step was taken.
        """
        if not self._count:
            raise ValueError("No step has been recorded: call run() after the loop.")
        self._hook.remove()
        positions = torch.stack(self._positions)
        return SGDRun(
            positions=positions,
            gradients=torch.stack(self._gradients),
            rates=torch.tensor(self._rates).to(positions),
            every=self._every,
            final=_flat(self._params()),
        )


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])
