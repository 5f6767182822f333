"""Stein variational gradient descent.

Step, with scores ``s_j = -g(x_j)``::

    phi(x_i) = (1/P) sum_j [ k(x_j, x_i) s_j + grad_{x_j} k(x_j, x_i) ]
    x_i' = x_i + h phi(x_i)

Target: ``exp(-U)`` as P grows. With few particles in many dimensions the RBF kernel makes the
particles collapse: 100 particles on a standard Gaussian keep 0.96 of the variance in 1 dimension,
0.43 in 10, 0.09 in 50. With one particle it is gradient descent on U.

Reference: Liu and Wang, "Stein variational gradient descent: a general purpose Bayesian inference
algorithm", 2016.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import GradientAt, Target, assemble
from particlevi.stein.kernels import Kernel, rbf
from particlevi.typing import Controls, Sampler

__all__ = ["Info", "Memory", "svgd"]


class Memory(NamedTuple):
    """Moments of the direction, ``[P, D]`` each, and the number of steps, 0-d."""

    first: Tensor
    second: Tensor
    num_steps: Tensor


class Info(NamedTuple):
    """Potential and the norms of attraction and repulsion ``[P]``, where they were evaluated."""

    potential: Tensor
    attraction_norm: Tensor
    repulsion_norm: Tensor


def svgd(target: Target, kernel: Kernel | None = None, optimizer: str = "plain") -> Sampler:
    """Stein variational gradient descent: ``x_i' = x_i + h phi(x_i)``.

    ``phi(x_i) = (1/P) sum_j [k(x_j, x_i) s_j + grad_{x_j} k(x_j, x_i)]`` with scores
    ``s = -grad U``. Particles interact, so they are a set of P draws, not chains. The kernel
    matrix is P x P; nothing of size P x P x D is formed.

    Source: Liu and Wang, "Stein variational gradient descent: a general purpose Bayesian inference
    algorithm", 2016.

    Args:
        target: a potential, or a gradient estimator.
        kernel: ``pvi.rbf()`` with the bandwidth ``med(r^2) / log(P + 1)`` if absent.
        optimizer: how ``phi`` becomes a step: ``"plain"`` (h phi), ``"adagrad"``, ``"rmsprop"`` or
            ``"adam"`` (with the usual constants 0.9, 0.999, 1e-8). All have the same fixed points.

    Raises:
        ValueError: an unknown optimizer.
    """
    check_choice("optimizer", optimizer, ["plain", "adagrad", "rmsprop", "adam"])
    layout = as_estimator(target).potential.layout
    chosen = (rbf() if kernel is None else kernel).bind(layout)

    def memory(position: Tensor, generator: torch.Generator) -> Memory:
        empty = position.new_zeros((0,)) if optimizer == "plain" else torch.zeros_like(position)
        first = torch.zeros_like(position) if optimizer == "adam" else position.new_zeros((0,))
        return Memory(first, empty, position.new_zeros(()))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        g, potential = gradient_at(position)
        attraction, repulsion = chosen.direction(position, -g)
        phi = attraction + repulsion
        count = memory.num_steps + 1
        first, second, direction = memory.first, memory.second, phi
        if optimizer == "adagrad":
            second = second + phi.square()
            direction = phi / (second.sqrt() + 1e-8)
        elif optimizer == "rmsprop":
            kept = torch.where(count > 1, 0.9, 0.0)
            second = kept * second + (1 - kept) * phi.square()
            direction = phi / (second.sqrt() + 1e-8)
        elif optimizer == "adam":
            first = 0.9 * first + 0.1 * phi
            second = 0.999 * second + 0.001 * phi.square()
            direction = first / (1 - 0.9**count)
            direction = direction / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        info = Info(
            potential,
            torch.linalg.vector_norm(attraction, dim=-1),
            torch.linalg.vector_norm(repulsion, dim=-1),
        )
        position = position + controls["step_size"] * direction
        return position, Memory(first, second, count), info

    return assemble(
        "svgd",
        target,
        transition,
        settings={"kernel": str(chosen), "optimizer": optimizer},
        memory=memory,
        interacting=True,
    )
