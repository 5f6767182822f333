"""Gradient descent with the gradient taken at a perturbed point.

Step, with step size ``lr`` and ``Xi`` of independent normal entries, standard deviation ``s``::

    theta' = theta - lr grad f(theta + Xi)

To first order in ``lr`` it descends the smoothed objective ``E f(theta + Xi) = f + s^2/2 tr Hess f
+ O(s^4)``, so that among equally good points it prefers flat ones. Noise that is added to the step
instead of the point has no such bias. For ``f = |X Y^T - M|^2 / 2``, X of d1 rows and Y of d2, the
smoothed objective is exactly ``f + (d2 s2^2 |X|^2 + d1 s1^2 |Y|^2) / 2 + const``: the singular
values of M are soft-thresholded by ``s1 s2 sqrt(d1 d2)``, and ``|X|^2 / |Y|^2 = d1 s1^2 / (d2
s2^2)`` wherever the descent began.

Reference: Liu, Li, Wei, Zhou and Zhao, "Noisy gradient descent converges to flat minima for
nonconvex matrix factorization", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_nonnegative, check_positive, check_positive_int, check_seed
from particlevi.optim._base import Closure, Params, TorchOptimizer, mixed, real

__all__ = ["PerturbedGD", "Smoothed"]


class Smoothed(NamedTuple):
    """An estimate of ``E f(theta + Xi)`` and its standard error."""

    value: float
    standard_error: float


class PerturbedGD(TorchOptimizer):
    """Gradient descent at perturbed points: ``theta' = theta - lr grad f(theta + Xi)``.

    ``step(closure)`` calls the closure at the perturbed point and gives its loss there. Without a
    closure, take the gradient inside ``perturbed()``. The parameters come back to the bit before
    the step. The perturbation is a function of ``seed`` and a count that ``state_dict`` holds.
    Normalisation layers see the perturbed activations.

    The perturbation of draw k has ``s = std 2^(-k / half_life)``; ``std`` and ``half_life`` may
    differ between parameter groups, and ``group["std"]`` may be changed between steps.

    Source: Liu, Li, Wei, Zhou and Zhao, "Noisy gradient descent converges to flat minima for
    nonconvex matrix factorization", 2021.

    Args:
        params: parameters, named parameters or parameter groups.
        lr: the learning rate, a number or a tensor with one element.
        std: the standard deviation of the perturbation of each coordinate.
        half_life: in how many draws the perturbation halves; None keeps it.
        seed: of the perturbations; processes that share their gradients share it.
        weight_decay: the coefficient of the weight decay.
        decoupled_weight_decay: ``theta *= 1 - lr weight_decay`` rather than a term of the gradient.
        maximize: go up.
        foreach: one kernel for many tensors; by default where that is faster.
        capturable: the count of steps lives on the device.

    Raises:
        ValueError: a setting out of its range.
        RuntimeError: a sparse gradient, or a gradient that was not taken at a perturbed point.

    Examples:
        >>> theta = torch.ones(2, requires_grad=True)
        >>> optimizer = PerturbedGD([theta], lr=0.1, std=0.01)
        >>> with optimizer.perturbed():
        ...     theta.square().sum().backward()
        >>> optimizer.step()
        >>> theta.round(decimals=1)
        tensor([0.8000, 0.8000], grad_fn=...)
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        std: float = 1e-2,
        half_life: float | None = None,
        seed: int = 0,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        check_nonnegative("std", std)
        if half_life is not None:
            check_positive("half_life", half_life)
        check_seed("seed", seed)
        super().__init__(
            params,
            {
                "lr": lr,
                "std": std,
                "half_life": half_life,
                "seed": int(seed),
                "draws": 0,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
            },
        )
        self._inside = self._taken = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._inside = self._taken = False

    @torch.no_grad()
    def _perturbation(self, *key: int) -> list[tuple[Tensor, Tensor]]:
        drawn = []
        for index, group in enumerate(self.param_groups):
            half_life, draw = group["half_life"], group["draws"]
            std = group["std"] * (1.0 if half_life is None else 2.0 ** (-draw / half_life))
            generators: dict[torch.device, torch.Generator] = {}
            for p in group["params"]:
                if p.device not in generators:
                    seed = mixed(group["seed"], index, draw, *key)
                    generators[p.device] = torch.Generator(p.device).manual_seed(int(seed))
                xi = torch.empty_like(p)
                real([xi])[0].normal_(0.0, std, generator=generators[p.device])
                drawn.append((p, xi))
        return drawn

    @contextmanager
    def _at(self, perturbation: list[tuple[Tensor, Tensor]], sign: float = 1.0) -> Iterator[None]:
        if self._inside:
            raise RuntimeError("The parameters are perturbed already: leave perturbed() first.")
        points = [(p, p.detach().clone()) for p, _ in perturbation]
        self._inside = True
        try:
            with torch.no_grad():
                for p, xi in perturbation:
                    p.add_(xi, alpha=sign)
            yield
        finally:
            self._inside = False
            with torch.no_grad():
                for p, point in points:
                    p.copy_(point)

    @contextmanager
    def perturbed(self) -> Iterator[None]:
        """Inside, the parameters stand at ``theta + Xi``, a fresh ``Xi`` each time; then back.

        Call ``backward`` inside.
        """
        with self._at(self._perturbation()):
            yield
        for group in self.param_groups:
            group["draws"] += 1
        self._taken = True

    def step(self, closure: Closure | None = None) -> Any:
        """One step along the gradient that was taken at the perturbed point.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward``, returns the loss.

        Returns:
            The closure's loss, at the perturbed point, or None.

        Raises:
            RuntimeError: there is no closure, and no gradient was taken inside ``perturbed()``.
        """
        loss = None
        if closure is not None:
            with self.perturbed(), torch.enable_grad():
                loss = closure()
        if not self._taken:
            raise RuntimeError(
                "step() without a closure needs a gradient at the perturbed point: call backward() "
                "inside `with optimizer.perturbed():`."
            )
        self._taken = False
        self._step_groups()
        return loss

    @torch.no_grad()
    def smoothed(
        self, objective: Callable[[], Tensor], num_pairs: int = 50, seed: int = 0
    ) -> Smoothed:
        """The smoothed objective ``E f(theta + Xi)`` at the current scales, by sampling.

        Pairs ``(f(theta + Xi) + f(theta - Xi)) / 2`` take out the odd terms of f. Estimates with
        one seed share their perturbations, so that differences between them are less noisy.

        Args:
            objective: the loss at the parameters as they stand, without ``backward``.
            num_pairs: how many pairs, at least 2.
            seed: of the sampling; it changes nothing about the steps.
        """
        check_positive_int("num_pairs", num_pairs, 2)
        check_seed("seed", seed)
        values = []
        for pair in range(num_pairs):
            xi = self._perturbation(seed, pair)
            with self._at(xi):
                up = float(objective())
            with self._at(xi, -1.0):
                values.append((up + float(objective())) / 2)
        found = torch.tensor(values, dtype=torch.float64)
        return Smoothed(float(found.mean()), float(found.std()) / math.sqrt(num_pairs))
