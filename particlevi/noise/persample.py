"""Losses one datum at a time, ``f = (1/N) sum_k f_k``, from a potential or from a module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from particlevi._checks import check_choice
from particlevi.curvature.factors import Factors, gradient_factors
from particlevi.curvature.reductions import check_losses, losses_of
from particlevi.curvature.second_order import second_order
from particlevi.curvature.squares import GradientSquares, gradient_squares
from particlevi.data import DataLike, Place, as_pairs
from particlevi.data.tensors import as_tensors
from particlevi.noise.layered import layered
from particlevi.potentials._module_modes import set_plain_paths
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.random import seeded
from particlevi.typing import Batch

__all__ = ["Linearised", "PerSample", "of_module", "of_potential"]

_CHECKED, _COMPARED = 1024, 4

Loss = Callable[[Tensor, Any], Tensor]


class Linearised(NamedTuple):
    """Products with the Jacobian ``[n, D]`` of the losses of n data.

    Attributes:
        push: ``v [D]`` to ``J v [n]``.
        pull: ``w [n]`` to ``J' w [D]``.
    """

    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class PerSample:
    """The per-sample losses of one data set as functions of ``theta [D]``.

    Attributes:
        one: ``theta`` and one datum to its loss, a scalar.
        many: ``theta`` and ``n`` data to ``[n]`` losses.
        data: tensors with first dimension N.
        layout: names and shapes of what ``theta`` holds.
        dtype, device: of ``theta``.
        random: whether a loss draws random numbers (dropout masks); each datum then has masks of
            its own, the same at every evaluation.
        looping: whether gradients are taken one datum at a time, because an operation of the model
            cannot be vectorised over data.
        squares: ``theta`` and some data to the sums of their gradients and of the squares of these,
            at about the cost of one gradient; None where that is not known.
        factors: ``theta``, some data and names of parameters to the factors of their gradients,
            less ``shift``; None where these are not known.
        shift: ``theta`` to what the gradients of all data have in common ``[D]``, that of the
            prior; None for none.
    """

    one: Loss
    many: Loss
    data: Any
    layout: Layout
    dtype: torch.dtype
    device: torch.device
    random: bool = False
    looping: bool = False
    squares: Callable[[Tensor, Any], GradientSquares] | None = None
    factors: Callable[[Tensor, Any, tuple[str, ...]], list[Factors]] | None = None
    shift: Callable[[Tensor], Tensor] | None = None

    @property
    def num_data(self) -> int:
        """N."""
        return len(pytree.tree_leaves(self.data)[0])

    def piece(self, start: int, stop: int) -> Any:
        """Data ``start`` to ``stop``."""
        return pytree.tree_map(lambda leaf: leaf[start:stop].to(self.device), self.data)

    def losses(self, theta: Tensor, start: int, stop: int) -> Tensor:
        """``f_k(theta)`` for data ``start`` to ``stop``, ``[n]``; differentiable."""
        with seeded(start) if self.random else nullcontext():
            return self.many(theta, self.piece(start, stop))

    def gradients(self, theta: Tensor, start: int, stop: int) -> Tensor:
        """``g_k(theta)`` for data ``start`` to ``stop``, ``[n, D]``."""
        slope = torch.func.grad(self.one)
        randomness = "different" if self.random else "error"
        each = torch.func.vmap(slope, in_dims=(None, 0), randomness=randomness)
        piece = self.piece(start, stop)
        with second_order(), seeded(start) if self.random else nullcontext():
            found: Tensor = _stacked(slope, theta, piece) if self.looping else each(theta, piece)
        return found.detach()

    def linearised(self, theta: Tensor, start: int, stop: int) -> Linearised:
        """Products with the Jacobian of ``losses`` and its transpose, from one graph that is kept.

        Forward by differentiating the backward pass, which is linear in its weights.
        """
        leaf = theta.detach().requires_grad_()
        with second_order(), torch.enable_grad():
            losses = self.losses(leaf, start, stop)
            weights = torch.ones_like(losses, requires_grad=True)
            (back,) = torch.autograd.grad(losses, leaf, weights, create_graph=True)
        return Linearised(partial(_pulled, back, weights), partial(_pulled, losses, leaf))

    def transposed(self, theta: Tensor, start: int, stop: int) -> Callable[[Tensor], Tensor]:
        """``pull`` alone, from half the graph."""
        leaf = theta.detach().requires_grad_()
        with second_order(), torch.enable_grad():
            losses = self.losses(leaf, start, stop)
        return partial(_pulled, losses, leaf)

    def restrict(self, theta: Tensor, columns: Tensor, layout: Layout) -> PerSample:
        """The same losses as functions of ``theta[columns]``, the rest held at ``theta``."""

        def whole(part: Tensor) -> Tensor:
            return theta.index_copy(0, columns, part)

        squares, factors, shift = self.squares, self.factors, self.shift

        def some(part: Tensor, data: Any) -> GradientSquares:
            assert squares is not None
            found = squares(whole(part), data)
            return GradientSquares(found.gradient[columns], found.squares[columns])

        return replace(
            self,
            squares=None if squares is None else some,
            factors=None if factors is None else lambda part, *rest: factors(whole(part), *rest),
            shift=None if shift is None else lambda part: shift(whole(part))[columns],
            one=lambda part, datum: self.one(whole(part), datum),
            many=lambda part, data: self.many(whole(part), data),
            layout=layout,
        )


def of_potential(potential: ModelPotential, data: DataLike) -> PerSample:
    """``f_k = -log p(x_k | theta) - log p(theta) / N``, so that ``f = U / N``.

    Args:
        potential: with data.
        data: as given to ``sample``, tensors with first dimension N.

    Raises:
        ValueError: a density without data, or data of another size than the potential's.
    """
    if potential.log_likelihood_fn is None or potential.num_data is None:
        raise ValueError("A density without data has no gradient noise.")
    tensors = as_tensors(data, potential)
    size, total = len(pytree.tree_leaves(tensors)[0]), potential.num_data
    if size != total:
        raise ValueError(f"The potential was made for num_data={total}, got {size} data.")
    random = potential.random

    def many(theta: Tensor, piece: Any) -> Tensor:
        particle = theta.unsqueeze(0)
        prior = potential.log_prior(particle)[0] / total
        return -potential.log_likelihood(particle, Batch(piece))[0] - prior

    def one(theta: Tensor, datum: Any) -> Tensor:
        return many(theta, pytree.tree_map(lambda leaf: leaf.unsqueeze(0), datum))[0]

    found = PerSample(
        one=one,
        many=_lifted(one) if random else many,
        data=tensors,
        layout=potential.layout,
        dtype=potential.dtype,
        device=potential.device,
        random=random,
    )
    start = potential.init(1)[0]
    # Outside of torch.func's transforms, a function that cannot be vectorised finds that out.
    with torch.no_grad(), seeded(0):
        many(start, found.piece(0, 2))
    layers = layered(potential, tensors)
    if layers is not None:
        found = replace(found, squares=layers.squares, factors=layers.factors, shift=layers.shift)
    return found if _vectorises(found, start) else replace(found, looping=True)


def of_module(
    module: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    data: DataLike,
    mode: str = "eval",
) -> PerSample:
    """``f_k = loss_fn(module(x_k), y_k)`` over a module's trainable parameters.

    Args:
        module: it is copied.
        loss_fn: outputs ``[n, ...]`` and targets ``[n, ...]`` to a loss: one value per datum, or
            their mean or sum; ``f`` is the mean in any case. The loss of a batch must be made of
            those of its data, which is checked in one pass: weights and ignored targets take
            ``reduction="none"`` or ``"sum"``.
        data: ``(inputs, ..., targets)`` in any form that ``sample`` takes, a loader included.
        mode: ``"eval"`` or ``"train"``, in which dropout draws a mask per datum. Batch
            normalisation has no per-sample gradients in training mode.

    Raises:
        ValueError: an unknown mode, batch normalisation in training mode, no trainable
            parameters, data of unequal lengths, a loss that is not made of its data's, or outputs
            of a datum that depend on the others in its batch.
    """
    check_choice("mode", mode, ["eval", "train"])
    module = copy.deepcopy(module).train(mode == "train")
    if mode == "eval":
        set_plain_paths(module)
    names = [name for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
    if mode == "train" and names:
        raise ValueError(
            f"Batch normalisation {names} mixes the data of a batch in training mode, so there "
            "are no per-sample gradients: use mode='eval'."
        )
    trainable = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no parameters with requires_grad=True.")
    like = next(iter(trainable.values()))
    layout = Layout({name: tuple(p.shape) for name, p in trainable.items()})
    tensors = as_pairs(data, Place(like.device, like.dtype))

    def many(theta: Tensor, piece: Any) -> Tensor:
        *inputs, targets = piece
        outputs = torch.func.functional_call(module, layout.unravel(theta), tuple(inputs))
        return losses_of(loss_fn, outputs, targets)

    def one(theta: Tensor, datum: Any) -> Tensor:
        inputs = [leaf.unsqueeze(0) for leaf in datum]
        outputs = torch.func.functional_call(module, layout.unravel(theta), tuple(inputs[:-1]))
        return loss_fn(outputs, inputs[-1]).sum()

    found = PerSample(
        one=one,
        many=_lifted(one) if mode == "train" else many,
        data=tensors,
        layout=layout,
        dtype=like.dtype,
        device=like.device,
        random=mode == "train",
        squares=None if mode == "train" else partial(_squares, module, layout, loss_fn),
        factors=None if mode == "train" else partial(gradient_factors, module, layout, loss_fn),
    )
    starts = range(0, len(tensors[0]), _CHECKED)
    with seeded(0):
        check_losses(module, loss_fn, (found.piece(k, k + _CHECKED) for k in starts))
    point = layout.ravel(trainable)
    if mode == "eval":
        _check_unmixed(found, point)
    if _vectorises(found, point):
        return found
    return replace(found, looping=True, many=partial(_stacked, one) if found.random else many)


def _check_unmixed(samples: PerSample, theta: Tensor) -> None:
    """The losses of some data at once are those of each alone."""
    some = samples.piece(0, _COMPARED)
    with torch.no_grad():
        together = samples.many(theta, some)
        alone = _stacked(samples.one, theta, some)
    away = (together - alone).abs().max()
    if away > torch.finfo(alone.dtype).eps ** 0.5 * (1 + alone.abs().max()):
        raise ValueError(
            "The outputs of a datum depend on the others in its batch (losses differ by "
            f"{float(away):.3g}), so there are no per-sample gradients. Normalise by statistics "
            "that are fixed (BatchNorm with running statistics), or datum by datum (LayerNorm)."
        )


def _pulled(values: Tensor, point: Tensor, by: Tensor) -> Tensor:
    """``(d values / d point)' by``, the graph kept."""
    with second_order():
        (found,) = torch.autograd.grad(values, point, by, retain_graph=True, materialize_grads=True)
    return found


def _squares(
    module: nn.Module,
    layout: Layout,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    theta: Tensor,
    data: Any,
) -> GradientSquares:
    return gradient_squares(module, layout, loss_fn, theta, tuple(data))


def _stacked(one: Loss, theta: Tensor, data: Any) -> Tensor:
    """``one`` of each datum in turn, ``[n, ...]``."""
    leaves, structure = pytree.tree_flatten(data)
    rows = zip(*(leaf.unbind() for leaf in leaves), strict=True)
    return torch.stack([one(theta, pytree.tree_unflatten(list(row), structure)) for row in rows])


def _vectorises(samples: PerSample, theta: Tensor) -> bool:
    """Whether gradients can be taken of several data at once; errors of the model pass through."""
    try:
        samples.gradients(theta, 0, 2)
    except (RuntimeError, ValueError):
        replace(samples, looping=True).gradients(theta, 0, 1)
        return False
    return True


def _lifted(one: Loss) -> Loss:
    lifted: Loss = torch.func.vmap(one, in_dims=(None, 0), randomness="different")
    return lifted
