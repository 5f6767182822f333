"""What the loss of a training loop is like at the present weights: gradient noise and curvature.

With the mean loss ``f`` over the data and the covariance C of the gradients of single data, a batch
of b data has a gradient of covariance ``C / b``. Of K micro-batches of m data with gradients g_k::

    tr C   = m / (K - 1) sum_k |g_k - g|^2,      g = mean of the g_k
    |G|^2  = |g|^2 - tr C / (m K)
    scale  = tr C / |G|^2

The scale is the batch size at which noise and signal are equal. Heavy-ball SGD with rate eta and
momentum m is stable on a quadratic up to a curvature of ``2 (1 + m) / eta``.

References: McCandlish, Kaplan, Amodei and others, "An empirical model of large-batch training",
2018; Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically occurs
at the edge of stability", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from particlevi import _html
from particlevi._checks import check_positive, check_positive_int
from particlevi.curvature import top_eigenpairs

__all__ = [
    "Loss",
    "Noise",
    "edge_of_stability",
    "gradient_noise",
    "load_probes",
    "running_statistics",
    "top_curvature",
    "trainable",
]

Loss: TypeAlias = Callable[[Any], Tensor]
"""From a batch to the mean training loss of the module on it, one number."""


class Noise(NamedTuple):
    """The gradient noise at a point.

    Attributes:
        trace: of the covariance C of the gradients of single data.
        error: its standard error.
        gradient: ``|G|^2``, the square norm of the gradient without its noise; below zero where
            the noise hides it.
        scale: ``tr C / |G|^2``, in data; infinite where ``|G|^2`` is not above zero.
    """

    trace: float
    error: float
    gradient: float
    scale: float

    def __str__(self) -> str:
        return (
            f"Gradient noise: trace {self.trace:.3g} +- {self.error:.2g}, as large as the gradient "
            f"in batches of {self.scale:.3g} data."
        )

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return _html.block("Gradient noise", _html.notes([("", str(self))]))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are trained, by name, as ``from_module`` orders them.

    Raises:
        ValueError: there are none.
    """
    found = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError(f"{type(module).__name__} has no parameters with requires_grad=True.")
    return found


def running_statistics(module: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Running means and variances of normalisation layers: layer and attribute, by name."""
    return {
        f"{name}.{which}".lstrip("."): (layer, which)
        for name, layer in module.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
        for which in ("running_mean", "running_var")
    }


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Leave buffers and torch's random numbers as they were, whatever is evaluated inside."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    devices = sorted({p.device.index for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in kept:
                    buffer.copy_(value)


def gradient_noise(
    module: nn.Module, loss: Loss, batch: Any, *, num_parts: int = 8, seed: int = 0
) -> Noise:
    """Trace and scale of the gradient noise, from the gradients of parts of a batch.

    It takes as long as one gradient of the whole batch, about.

    Args:
        module: as it is trained; its mode is left as it is.
        loss: from a batch to the mean loss on it.
        batch: tensors with a first dimension of B data, at least two per part for a module with
            batch normalisation; drawn at random from the data, else the result is that of a law
            of their own.
        num_parts: K; data that do not fill K equal parts are left out.
        seed: of the random numbers in the loss, as under dropout.

    Raises:
        ValueError: fewer data than parts, fewer than two parts, or a loss that is not one number.

    Examples:
        >>> net, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [1.0], [3.0], [3.0]])
        >>> _ = nn.init.zeros_(net.weight)
        >>> found = gradient_noise(net, lambda b: -net(b).mean(), x, num_parts=2)
        >>> found.trace, found.gradient  # m = 2: variance of the means 1 and 3 is 2
        (4.0, 3.0)
    """
    check_positive_int("num_parts", num_parts, minimum=2)
    size = len(next(leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)))
    each = size // num_parts
    if each == 0:
        raise ValueError(
            f"A batch of {size} data has no {num_parts} parts: give more data or fewer num_parts."
        )
    parameters = list(trainable(module).values())
    rows = []
    with untouched(module):
        torch.manual_seed(seed)
        for k in range(num_parts):
            part = pytree.tree_map(lambda leaf, k=k: _rows(leaf, k * each, each), batch)
            rows.append(_flat(torch.autograd.grad(_value(loss, part), parameters)))
    return _noise(torch.stack(rows).double(), each)


def _noise(gradients: Tensor, each: int) -> Noise:
    """From the gradients ``[K, D]`` of parts of ``each`` data."""
    count = len(gradients)
    mean = gradients.mean(0)
    squares = each * (gradients - mean).square().sum(1) * count / (count - 1)
    trace = float(squares.mean())
    signal = float(mean.square().sum()) - trace / (each * count)
    error = float(squares.std()) / math.sqrt(count)
    return Noise(trace, error, signal, trace / signal if signal > 0 else math.inf)


def top_curvature(
    module: nn.Module, loss: Loss, batch: Any, *, tolerance: float = 0.02, seed: int = 0
) -> float:
    """The largest eigenvalue of the Hessian of the loss on a batch, by Lanczos.

    It takes about as long as thirty gradients of the batch.

    Args:
        module: as it is trained; its mode is left as it is.
        loss: from a batch to the mean loss on it.
        batch: what ``loss`` takes.
        tolerance: relative error of the eigenvalue.
        seed: of the random numbers in the loss, as under dropout.

    Raises:
        ValueError: a loss that is not one number, or one without a second derivative.

    Examples:
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
        >>> round(top_curvature(net, lambda b: net(b).square().mean(), x), 3)
        9.0
    """
    check_positive("tolerance", tolerance)
    parameters = list(trainable(module).values())
    like = parameters[0]
    with untouched(module):
        torch.manual_seed(seed)
        value = _value(loss, batch)
        slopes = torch.autograd.grad(value, parameters, create_graph=True)
        if not any(slope.requires_grad for slope in slopes):
            return 0.0
        slope = _flat(slopes)

        def product(vector: Tensor) -> Tensor:
            found = torch.autograd.grad(
                slope, parameters, vector.to(like), retain_graph=True, materialize_grads=True
            )
            return _flat(found)

        top = top_eigenpairs(product, slope.numel(), 1, tolerance=tolerance)
    return float(top.values[0])


def edge_of_stability(optimizer: torch.optim.Optimizer) -> float:
    """The largest curvature of the loss at which the optimiser is stable on a quadratic.

    ``2 (1 + m) / (eta (1 - d)) - w`` for SGD with rate eta, momentum m, dampening d and weight
    decay w, at the largest rate of its groups; ``2 (1 + m) / (eta (1 + 2 m)) - w`` with Nesterov's
    momentum. NaN for other optimisers, whose steps are in coordinates of their own.

    Args:
        optimizer: from ``torch.optim``.

    Examples:
        >>> weight = nn.Parameter(torch.zeros(1))
        >>> edge_of_stability(torch.optim.SGD([weight], lr=0.1, momentum=0.5))
        30.0
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return math.nan
    group = max(optimizer.param_groups, key=lambda each: float(each["lr"]))
    rate, momentum = float(group["lr"]), float(group["momentum"])
    if rate == 0:
        return math.inf
    damped = 1 + 2 * momentum if group["nesterov"] else 1.0
    if momentum:
        damped *= 1 - float(group["dampening"])
    return 2 * (1 + momentum) / (rate * damped) - float(group["weight_decay"])


def load_probes() -> None:
    """Load what the first probe would load in the middle of a training."""
    top_eigenpairs(torch.arange(8.0, dtype=torch.float64).mul, 8, 1)


def _rows(leaf: Any, start: int, count: int) -> Any:
    return leaf[start : start + count] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _value(loss: Loss, batch: Any) -> Tensor:
    value = loss(batch)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            "loss must take a batch and return the mean loss of the recorded module on it, one "
            f"number with a gradient, got {got}."
        )
    return value.reshape(())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
