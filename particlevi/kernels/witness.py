"""A witness network and the Stein discrepancy that it is trained on.

For particles x with scores s(x) = grad log p(x) and a function ``f: R^D -> R^D``::

    loss(f) = -mean[ f(x).s(x) + div f(x) ] + regularisation * mean |f(x)|^2

Its minimum over all f is at ``f* = (grad log p - grad log q) / (2 regularisation)``, q the law of
the particles, and has the value ``-E|grad log p - grad log q|^2 / (4 regularisation)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from particlevi._checks import check_positive_int
from particlevi._tracing import is_compiling
from particlevi.typing import Streams

__all__ = ["Witness", "stein_loss", "value_and_gradient"]


class Scale(nn.Module):
    """Multiplies by one learned number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale: nn.Parameter = nn.Parameter(torch.ones(()))

    def forward(self, values: Tensor) -> Tensor:
        """The values, scaled."""
        return self.scale * values


class Witness:
    """A network ``R^D -> R^D`` as a function of a flat vector of its parameters ``[W]``.

    Args:
        network: maps ``[P, D]`` to ``[P, D]``, row by row; it is copied, used in evaluation mode,
            and its weights are where training starts. If absent: an MLP with two hidden layers of
            32 SiLU units and a learned scale, started at random.
        dim: D.

    Raises:
        TypeError: something else than a module.
        ValueError: a network without parameters, or one that does not map ``[P, D]`` to ``[P, D]``.
    """

    def __init__(self, network: nn.Module | None, dim: int):
        check_positive_int("dim", dim)
        self.own: bool = network is None
        if network is None:
            with torch.random.fork_rng(devices=[]):
                network = nn.Sequential(
                    nn.Linear(dim, 32),
                    nn.SiLU(),
                    nn.Linear(32, 32),
                    nn.SiLU(),
                    nn.Linear(32, dim),
                    Scale(),
                )
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}.")
        self.network: nn.Module = copy.deepcopy(network).eval().requires_grad_(False)
        parameters = dict(self.network.named_parameters())
        if not parameters:
            raise ValueError("The witness network has no parameters to learn.")
        self.names: list[str] = list(parameters)
        self.shapes: list[torch.Size] = [value.shape for value in parameters.values()]
        self.sizes: list[int] = [value.numel() for value in parameters.values()]
        probe = torch.zeros(2, dim, dtype=next(iter(parameters.values())).dtype)
        with torch.no_grad():
            shape = tuple(self.network(probe.to(next(iter(parameters.values())).device)).shape)
        if shape != (2, dim):
            raise ValueError(
                f"The witness network must map [P, {dim}] to [P, {dim}], got {list(shape)} "
                f"from [2, {dim}]."
            )

    def init(self, like: Tensor, streams: Streams) -> Tensor:
        """Parameters ``[W]`` to start from, in the dtype and on the device of ``like``."""
        parts = []
        for name, value in self.network.named_parameters():
            start = value.detach()
            if self.own and value.ndim == 2:
                noise = streams.shared.normal(value.shape, like.dtype)
                start = noise * (2 / value.shape[1]) ** 0.5
            elif self.own and name.endswith("bias"):
                start = torch.zeros_like(value)
            parts.append(start.to(like).flatten())
        return torch.cat(parts)

    def __call__(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The witness ``[P, D]`` at ``x [P, D]``."""
        parts: tuple[Tensor, ...] = parameters.split(self.sizes)
        named = {
            name: part.view(shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }
        values: Tensor = torch.func.functional_call(self.network, named, (x,))
        return values


def stein_loss(
    witness: Callable[[Tensor], Tensor],
    x: Tensor,
    scores: Tensor,
    probes: Tensor,
    regularisation: float,
) -> Tensor:
    """``-mean[f.s + e.(J_f' e)] + regularisation mean |f|^2``, 0-d.

    ``e.(J_f' e)`` is Hutchinson's unbiased estimate of the divergence; with probes of +-1 its
    variance per particle is ``2 (|A|_F^2 - sum_i A_ii^2)``, A the symmetric part of the Jacobian.

    Args:
        witness: f, ``[P, D]`` to ``[P, D]``, row by row.
        x: particles ``[P, D]``.
        scores: ``[P, D]``.
        probes: e, ``[P, D]``, independent +-1.
        regularisation: above 0.
    """
    if is_compiling():
        values, pullback = torch.func.vjp(witness, x)[:2]
        (turned,) = pullback(probes)
    else:
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            values = witness(points)
            (turned,) = torch.autograd.grad(values, points, probes, create_graph=True)
    gain = (values * scores + turned * probes).sum(-1)
    loss: Tensor = (regularisation * values.square().sum(-1) - gain).mean()
    return loss


def value_and_gradient(
    loss: Callable[[Tensor], Tensor], parameters: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient ``[W]``, eager and compiled."""
    if is_compiling():
        gradient, value = torch.func.grad_and_value(loss)(parameters)
        return value, gradient
    leaf = parameters.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
        (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient
