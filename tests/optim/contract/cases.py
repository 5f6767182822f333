"""Every optimiser once, and the problem that the contract runs them on.

Three workers stand along the first axis of each parameter, so that the optimisers over workers run
the same problem as the others.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from particlevi.optim import PNM, AdaPNM, LeaderSGD, PerturbedGD, SafeguardSGD, power

WORKERS = 3
SHAPES = [(WORKERS, 4, 2), (WORKERS, 5), (WORKERS,)]
DTYPE = torch.float64


@dataclass(frozen=True)
class Case:
    """An optimiser and how a gradient reaches it."""

    name: str
    make: Callable[..., Optimizer]
    around: Callable[[Any], AbstractContextManager[Any]] = lambda optimizer: nullcontext()
    arguments: Callable[[Tensor], dict[str, Tensor]] = lambda losses: {}
    differentiable: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    still: dict[str, Any] = field(default_factory=dict)
    """Settings under which nothing but the learning rate moves a parameter."""
    mixes_gradients: bool = False
    """Whether weight decay is added to something else than the worker's own gradient."""

    def __call__(self, params: Any, **settings: Any) -> Any:
        """An optimiser of ``params``."""
        return self.make(params, **{"lr": 0.05, **self.settings, **settings})


def powered(inner: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """``power(inner, 0.6)``."""
    return lambda params, **settings: power(inner(params, **settings), 0.6)


CASES = [
    Case("PNM", PNM, differentiable=True),
    Case("AdaPNM", AdaPNM, differentiable=True),
    Case("AdaPNM-v", AdaPNM, differentiable=True, settings={"amsgrad": False}),
    Case("PerturbedGD", PerturbedGD, around=lambda optimizer: optimizer.perturbed()),
    Case(
        "LeaderSGD",
        LeaderSGD,
        arguments=lambda losses: {"loss": losses},
        settings={"period": 2, "momentum": 0.9, "window": 3, "stale_pull": 0.2},
        still={"pull": 0.0, "stale_pull": 0.0},
    ),
    Case(
        "SafeguardSGD", SafeguardSGD, settings={"window": 3, "constant": 1e3}, mixes_gradients=True
    ),
    Case("power-PNM", powered(PNM), mixes_gradients=True),
    Case(
        "power-PerturbedGD",
        powered(PerturbedGD),
        around=lambda o: o.optimizer.perturbed(),
        mixes_gradients=True,
    ),
]


def fresh(seed: int = 0, dtype: torch.dtype = DTYPE) -> list[Tensor]:
    """Parameters ``[3, ...]``; the workers differ."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in SHAPES
    ]


def losses_at(params: list[Tensor], step: int) -> Tensor:
    """Losses ``[3]``: a quartic about a target that changes with the step."""
    total = torch.zeros(WORKERS, dtype=DTYPE)
    for index, p in enumerate(params):
        offset = (p - torch.sin(torch.tensor(1.0 + step + index, dtype=DTYPE))).abs()
        total = total + (offset**2 / 2 + offset**4 / 8).reshape(WORKERS, -1).sum(1)
    return total


def gradients(case: Case, optimizer: Any, params: list[Tensor], step: int) -> Tensor:
    """Losses ``[3]``, with fresh gradients in ``.grad``."""
    for p in params:
        p.grad = None
    with case.around(optimizer):
        losses = losses_at(params, step)
        losses.sum().backward()
    return losses.detach()


def advance(
    case: Case, optimizer: Any, params: list[Tensor], steps: int = 1, start: int = 0
) -> None:
    """Some steps."""
    for step in range(start, start + steps):
        losses = gradients(case, optimizer, params, step)
        optimizer.step(**case.arguments(losses))


def ran(case: Case, steps: int = 5, **settings: Any) -> list[Tensor]:
    """Where some steps end."""
    params = fresh()
    advance(case, case(params, **settings), params, steps)
    return [p.detach() for p in params]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the bit."""
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-12) -> bool:
    """Whether two lists of tensors are equal to rounding."""
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(first, second, strict=True)
    )
