"""Any optimiser of torch's kind, as a sampler.

Step, with loss f, the potential per datum by default, and the optimiser's own rule::

    theta' = optimiser(theta, grad f(theta)),        learning rate = step size

Target: none that is set. The noise is that of the minibatches and the optimiser shapes it, so that
its stationary law can be put beside the posterior.

Reference: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian inference",
2017.
"""

from __future__ import annotations

import itertools
from collections import namedtuple
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from particlevi._checks import check_choice, check_function
from particlevi.gradients.minibatch import as_estimator
from particlevi.samplers._assemble import (
    SHOWN,
    GradientAt,
    Info,
    Target,
    assemble,
    configurational_temperature,
)
from particlevi.typing import Controls, Landscape, Sampler, Streams

__all__ = ["Memory", "optimizer"]

Make = Callable[[list[Tensor]], Optimizer]


class Memory(NamedTuple):
    """What the optimiser remembers.

    Attributes:
        tensors: its state by name, ``[P, D]`` or 0-d, a NamedTuple.
        begun: false before the first step, when the optimiser has no state.
    """

    tensors: Any
    begun: Tensor


class Stepper:
    """An optimiser as a function: position, gradient and state in, position and state out."""

    def __init__(self, make: Make, like: Tensor):
        param = torch.zeros_like(like, requires_grad=True)
        made = make([param])
        if not isinstance(made, Optimizer):
            raise TypeError(f"make must give a torch optimizer, got {type(made).__name__}.")
        if len(made.param_groups) != 1:
            raise ValueError(
                "make must put all parameters into one group: there is one tensor [P, D]."
            )
        self.optimizer = made
        self.group: dict[str, Any] = made.param_groups[0]
        before = dict(self.group)
        self._step(torch.zeros_like(param), torch.zeros_like(param), None)
        changed = {
            key: value
            for key, value in self.group.items()
            if key not in {"params", "lr"} and (key not in before or value is not before[key])
        }
        state = self._state()
        self.kinds: dict[tuple[str, str], Any] = {
            ("state", key): value for key, value in state.items()
        }
        self.kinds |= {("group", key): value for key, value in changed.items()}
        names = [f"{place}_{key}" for place, key in self.kinds]
        self.names: Callable[..., Any] = cast(Any, namedtuple)("Tensors", names)
        self.before: dict[str, Any] = {key: before[key] for key in changed if key in before}

    def _state(self) -> dict[str, Any]:
        found = self.optimizer.state[self.group["params"][0]]
        return {key: value for key, value in found.items() if value is not None}

    def _step(self, position: Tensor, gradient: Tensor, lr: float | None) -> Tensor:
        # A fresh leaf, so that nothing outside is written.
        param = position.detach().clone().requires_grad_()
        old = self.group["params"][0]
        if old in self.optimizer.state:
            self.optimizer.state[param] = self.optimizer.state.pop(old)
        self.group["params"] = [param]
        if lr is not None:
            kind = self.group["lr"]
            self.group["lr"] = torch.full_like(kind, lr) if isinstance(kind, Tensor) else lr
        param.grad = gradient.detach().clone()
        self.optimizer.step()
        return param.detach()

    def __call__(
        self, position: Tensor, gradient: Tensor, lr: Tensor, begun: Tensor, tensors: list[Tensor]
    ) -> list[Tensor]:
        """The next position, then the next state."""
        self.optimizer.state.clear()
        param = self.group["params"][0]
        if begun:
            for ((place, key), kind), value in zip(self.kinds.items(), tensors, strict=True):
                tensor = isinstance(kind, Tensor)
                held = value.to(kind, copy=True) if tensor else type(kind)(value.item())
                (self.optimizer.state[param] if place == "state" else self.group)[key] = held
        else:
            for place, key in self.kinds:
                if place == "group":
                    self.group.pop(key, None)
            self.group.update(self.before)
        position = self._step(position, gradient, lr.item())
        state = self._state()
        values = [(state if place == "state" else self.group)[key] for place, key in self.kinds]
        return [position, *(stored(value, position) for value in values)]

    def empty(self, like: Tensor) -> Any:
        """A state of the right shapes, for particles ``[P, D]``, before the first step."""
        shape = like.shape
        kinds = [stored(kind, like) for kind in self.kinds.values()]
        return self.names(*(k.new_zeros(shape if k.ndim else ()) for k in kinds))


def stored(value: Any, like: Tensor) -> Tensor:
    """A value of the state as a tensor, real numbers in the particles' dtype."""
    tensor = torch.as_tensor(value).detach()
    return tensor.to(like.dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


_steppers: WeakValueDictionary[int, Stepper] = WeakValueDictionary()
_handles = itertools.count()


@torch.library.custom_op(
    "particlevi::optimizer_step",
    mutates_args=(),
    schema="(Tensor position, Tensor gradient, Tensor lr, Tensor begun, Tensor[] tensors, "
    "int handle) -> Tensor[]",  # older torch reads no list[Tensor]
)
def _optimizer_step(
    position: Tensor,
    gradient: Tensor,
    lr: Tensor,
    begun: Tensor,
    tensors: list[Tensor],
    handle: int,
) -> list[Tensor]:
    with torch.no_grad():
        return _steppers[handle](position, gradient, lr, begun, tensors)


@_optimizer_step.register_fake
def _(
    position: Tensor,
    gradient: Tensor,
    lr: Tensor,
    begun: Tensor,
    tensors: list[Tensor],
    handle: int,
) -> list[Tensor]:
    return [torch.empty_like(t) for t in (position, *tensors)]


def check_rows(make: Make, like: Tensor) -> None:
    """A row moves as it would alone."""
    size = max(int(like.shape[-1]), 2)
    points = torch.linspace(-1.0, 2.0, 2 * size, dtype=like.dtype).view(2, -1)

    def after(start: Tensor) -> Tensor:
        stepper, position = Stepper(make, start), start
        tensors, begun = list(stepper.empty(start)), torch.zeros((), dtype=torch.bool)
        for _ in range(3):
            lr = torch.tensor(0.01)
            position, *tensors = stepper(position, position.sin() + 0.1, lr, begun, tensors)
            begun = torch.ones_like(begun)
        return position

    together, alone = after(points), torch.cat([after(row[None]) for row in points])
    if not torch.allclose(together, alone, rtol=1e-4, atol=1e-6):
        raise ValueError(
            "The optimiser mixes the rows of a parameter [P, D], for instance by a norm over all "
            "of it, so that particles would not be chains: use one that works elementwise, or run "
            "it in your own loop."
        )


def optimizer(target: Target, make: Make, loss: Literal["mean", "total"] = "mean") -> Sampler:
    """Any elementwise ``torch.optim.Optimizer``, P independent replicas of it.

    The learning rate is the step size. The loss is the potential over the number of data, the mean
    loss with the prior as weight decay, so that learning rates are those of deep learning; at a
    step size h on it plain SGD is ``sgd`` at ``h / N``. It has no temperature: the noise is the
    minibatches' own.

    Source: Mandt, Hoffman and Blei, "Stochastic gradient descent as approximate Bayesian
    inference", 2017.

    Args:
        target: a potential, or a gradient estimator.
        make: ``parameters -> optimiser``, such as ``torch.optim.AdamW``; one group of parameters,
            whose ``step()`` needs no closure.
        loss: ``"mean"``, the potential over the number of data, or ``"total"``, the potential.

    Raises:
        TypeError: ``make`` gives no optimiser.
        ValueError: an optimiser that mixes the rows of a parameter, or of several groups.

    Examples:
        >>> import particlevi as pvi
        >>> normal = pvi.from_log_density(lambda x: -x.square().sum() / 2, 1)
        >>> adamw = optimizer(normal, lambda params: torch.optim.AdamW(params, weight_decay=0.0))
        >>> adamw.name
        'optimizer'
    """
    check_choice("loss", loss, ("mean", "total"))
    check_function("make", make, "a list of parameters that gives a torch optimizer")
    potential = as_estimator(target).potential
    like = torch.zeros(1, potential.num_params, dtype=potential.dtype, device=potential.device)
    check_rows(make, like)
    stepper, handle = Stepper(make, like), next(_handles)
    _steppers[handle] = stepper
    scale = 1.0 if loss == "total" else 1.0 / (potential.num_data or 1)

    def memory(position: Tensor, streams: Streams) -> Memory:
        return Memory(stepper.empty(position), torch.zeros((), dtype=torch.bool))

    def transition(
        position: Tensor, memory: Memory, gradient_at: GradientAt, noise: Any, controls: Controls
    ) -> tuple[Tensor, Memory, Info]:
        g, energy = gradient_at(position)
        moved, *tensors = torch.ops.particlevi.optimizer_step(
            position, g * scale, controls["step_size"], memory.begun, list(memory.tensors), handle
        )
        info = Info(energy, configurational_temperature(position, g))
        return moved, Memory(stepper.names(*tensors), torch.ones_like(memory.begun)), info

    def step_rule(around: Landscape) -> tuple[float, str]:
        raise ValueError(
            f"What {type(stepper.optimizer).__name__} makes of a step size is its own: of one "
            "torch optimiser it multiplies gradients, of another it bounds steps, and the law of "
            "the iterates is known of few. So no rule can be right for all: give step_size, its "
            "learning rate."
        )

    return assemble(
        "optimizer",
        target,
        transition,
        settings={"optimizer": type(stepper.optimizer).__name__, "loss": loss},
        memory=memory,
        step_rule=step_rule,
        shown=SHOWN,
    )
