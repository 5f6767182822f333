"""Gradients of a module's potential from what one backward pass leaves in its layers.

The loss of a datum is ``f_k = -log p(y_k | x_k, theta) - log p(theta) / N``. The gradient of its
first term has the factors of ``particlevi.curvature.factors``; that of the second is the same for
all data, a shift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from particlevi.curvature.factors import Factors, gradient_factors
from particlevi.curvature.squares import GradientSquares, gradient_squares
from particlevi.potentials.arithmetic import pinned
from particlevi.potentials.layout import Layout
from particlevi.potentials.likelihoods import Likelihood, log_prob
from particlevi.potentials.potential import ModelPotential

__all__ = ["Layered", "layered"]


class _Surprise(nn.Module):
    """``-log p(y_k | x_k, theta)`` of data ``(x, ..., y)``, ``[n]``.

    Its parameters are the net's, and those of the likelihood in a list.
    """

    def __init__(self, net: nn.Module, likelihood: Likelihood):
        super().__init__()
        self.net, self.likelihood = net, likelihood
        own = likelihood.parameters()
        self.names = list(own)
        self.own = nn.ParameterList([torch.zeros(each.shape) for each in own.values()])

    def forward(self, *data: Tensor) -> Tensor:
        *inputs, targets = data
        own = {name: value[None] for name, value in zip(self.names, self.own, strict=True)}
        outputs = self.net(*inputs)
        return -log_prob(self.likelihood, outputs[None], targets, own, False)[0]


def _itself(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.sum()


@dataclass(frozen=True, eq=False)
class Layered:
    """Squares and factors of the gradients of a potential; see ``PerSample``.

    Attributes:
        potential: of a module.
        module: minus its log-likelihood, one value per datum.
        names: of the module's parameters, by those of the potential. These come first in
            ``theta``; what a prior adds comes after them.
    """

    potential: ModelPotential
    module: nn.Module
    names: Mapping[str, str]

    @property
    def _layout(self) -> Layout:
        shapes = self.potential.layout.shapes
        return Layout({own: shapes[name] for name, own in self.names.items()})

    def shift(self, theta: Tensor) -> Tensor:
        """``-grad log p(theta) / N [D]``."""
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            prior = self.potential.log_prior(leaf[None])[0]
            (slope,) = torch.autograd.grad(prior, leaf, materialize_grads=True)
        assert self.potential.num_data is not None
        return -slope / self.potential.num_data

    def squares(self, theta: Tensor, data: Any) -> GradientSquares:
        """Sums over data, prior included."""
        layout, both = self._layout, (*data, data[-1])
        with pinned(self.potential.device):
            found = gradient_squares(self.module, layout, _itself, theta[: layout.num_params], both)
        more = len(theta) - layout.num_params
        first, second = (nn.functional.pad(each, (0, more)) for each in found)
        shift, count = self.shift(theta).double(), len(data[-1])
        return GradientSquares(
            first + count * shift, second + 2 * shift * first + count * shift.square()
        )

    def factors(self, theta: Tensor, data: Any, names: tuple[str, ...]) -> list[Factors]:
        """Of the gradients without the shift."""
        layout, both = self._layout, (*data, data[-1])
        wanted = [self.names[name] for name in names if name in self.names]
        with pinned(self.potential.device):
            found = gradient_factors(
                self.module, layout, _itself, theta[: layout.num_params], both, wanted
            )
        theirs = {own: name for name, own in self.names.items()}
        named = [each._replace(names=tuple(theirs[n] for n in each.names)) for each in found]
        return named or [Factors(None, theta.new_zeros(len(data[-1]), 0))]


def layered(potential: ModelPotential, data: Any) -> Layered | None:
    """None for a potential without a module, or where the module does not run as it is.

    Args:
        potential: evaluated at least once.
        data: all of them.
    """
    model = potential.model
    plain = None if model is None else getattr(model.function, "plain", None)
    found = None if plain is None else plain()
    tensors = isinstance(data, tuple) and all(isinstance(leaf, Tensor) for leaf in data)
    if model is None or found is None or not tensors:
        return None
    net, layout = found
    names = {name: f"net.{name}" for name in layout.shapes}
    module = _Surprise(net, model.likelihood)
    names |= {f"likelihood.{name}": f"own.{k}" for k, name in enumerate(module.names)}
    return Layered(potential, module, names)
