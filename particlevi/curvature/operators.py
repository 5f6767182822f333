"""Hessian, Gauss-Newton matrix and empirical Fisher of a module's mean loss as operators.

With outputs ``o_k(theta)`` and losses ``l_k``, ``f = (1/N) sum_k l_k + w |theta|^2 / 2``:

====================== ============================================== ======================
kind                   matrix                                         products by
====================== ============================================== ======================
``"hessian"``          ``f''``                                        one more backward pass
``"gauss_newton"``     ``(1/N) sum_k J_k' (d^2 l_k / d o_k^2) J_k``   two
``"empirical_fisher"`` ``(1/N) sum_k g_k g_k'``                       two
====================== ============================================== ======================

(plus ``w I`` for the first two). The Gauss-Newton matrix is the Fisher matrix where ``l`` is minus
the log density of an exponential family in its natural parameters, as cross entropy and a square
loss are. ``J v`` comes from the graph of ``J' u``, so that no forward mode is needed. The graph of
data that fit in one chunk is built once and kept: a product is then backward passes alone.

Reference: Pearlmutter, "Fast exact multiplication by the Hessian", 1994; Schraudolph, "Fast
curvature matrix-vector products for second-order gradient descent", 2002.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from particlevi._checks import (
    check_choice,
    check_finite,
    check_function,
    check_nonnegative,
    check_positive_int,
)
from particlevi.curvature.density import SpectralDensity, spectral_density
from particlevi.curvature.lanczos import Eigenpairs, top_eigenpairs
from particlevi.curvature.reductions import check_losses, losses_of
from particlevi.curvature.second_order import second_order
from particlevi.curvature.traces import TraceEstimate, TraceMethod, estimate_trace
from particlevi.data import DataLike, Place, as_pairs, place
from particlevi.potentials.layout import Layout

__all__ = ["CurvatureOperator", "Kind", "curvature_operator"]

Kind = Literal["hessian", "gauss_newton", "empirical_fisher"]
"""The matrices."""

Product = Callable[[Tensor, bool], Tensor]
# With more parameters, columns at once take longer than one by one.
_BATCHED = 2048


class CurvatureOperator:
    """A symmetric matrix ``[D, D]`` known by its products; see ``curvature_operator``.

    Attributes:
        kind: which matrix.
        layout: names and shapes of its D parameters.
        num_data: N.
    """

    def __init__(
        self,
        kind: Kind,
        module: nn.Module,
        data: tuple[Tensor, ...],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        weight_decay: float,
        chunk_size: int,
        names: tuple[str, ...],
    ) -> None:
        self.kind = kind
        self._module, self._data, self._loss_fn = module, data, loss_fn
        self._decay, self._chunk_size = weight_decay, chunk_size
        own = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        self._fixed = {name: p for name, p in own.items() if name not in names}
        self.layout: Layout = Layout({name: tuple(own[name].shape) for name in names})
        self._theta = self.layout.ravel({name: own[name] for name in names})
        self.num_data: int = len(data[0])
        self._kept: Product | None = None

    @property
    def num_params(self) -> int:
        """D."""
        return self.layout.num_params

    @property
    def position(self) -> Tensor:
        """``theta [D]``."""
        return self._theta

    def at(self, position: Tensor) -> CurvatureOperator:
        """The matrix at another point ``[D]``."""
        if not isinstance(position, Tensor) or position.shape != self._theta.shape:
            got = list(position.shape) if isinstance(position, Tensor) else type(position).__name__
            raise ValueError(f"position must be a tensor [{self.num_params}], got {got}.")
        check_finite("position", position, "Take a point that has not diverged.")
        moved = copy.copy(self)
        moved._theta, moved._kept = position.detach().to(self._theta), None
        return moved

    def restrict(self, names: str) -> CurvatureOperator:
        """The diagonal block of the parameters whose names match a shell pattern, ``"0.*"``."""
        chosen = tuple(name for name in self.layout.shapes if fnmatchcase(name, names))
        if not chosen:
            raise ValueError(f"{names!r} matches none of {list(self.layout.shapes)}.")
        parts = self.layout.unravel(self._theta)
        block = copy.copy(self)
        block._fixed = self._fixed | {n: p for n, p in parts.items() if n not in chosen}
        block.layout = Layout({name: self.layout.shapes[name] for name in chosen})
        block._theta = block.layout.ravel({name: parts[name] for name in chosen})
        block._kept = None
        return block

    def by_tensor(self) -> dict[str, CurvatureOperator]:
        """The diagonal block of every tensor, by name."""
        return {name: self.restrict(_escaped(name)) for name in self.layout.shapes}

    def _outputs(self, theta: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
        values = self._fixed | dict(self.layout.unravel(theta))
        found: Tensor = torch.func.functional_call(self._module, values, inputs)
        return found

    def _chunks(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for start in range(0, self.num_data, self._chunk_size):
            piece = [leaf[start : start + self._chunk_size] for leaf in self._data]
            yield tuple(piece[:-1]), piece[-1]

    def _graph(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Product:
        """Products with the part of a chunk, ``(v, batched) -> A v``, from a graph that is kept."""
        leaf = self._theta.detach().requires_grad_()
        with torch.enable_grad():
            outputs = self._outputs(leaf, inputs)
            if self.kind == "hessian":
                total = losses_of(self._loss_fn, outputs, targets).sum() / self.num_data
                (slope,) = torch.autograd.grad(total, leaf, create_graph=True)
                return lambda v, many: _pulled(slope, leaf, v, many)
            if self.kind == "empirical_fisher":
                outputs = losses_of(self._loss_fn, outputs, targets)
                inner: Tensor | None = None
            else:
                held = outputs.detach().requires_grad_()
                total = losses_of(self._loss_fn, held, targets).sum()
                (inner,) = torch.autograd.grad(total, held, create_graph=True)
            dummy = torch.zeros_like(outputs, requires_grad=True)
            (back,) = torch.autograd.grad(outputs, leaf, dummy, create_graph=True)

        def product(v: Tensor, many: bool) -> Tensor:
            pushed = _pulled(back, dummy, v, many)
            if inner is not None:
                pushed = _pulled(inner, held, pushed, many)
            return _pulled(outputs, leaf, pushed, many) / self.num_data

        return product

    def _apply(self, rows: Tensor) -> Tensor:
        """``A v`` for rows ``v [K, D]``; of the data of a chunk the graph is built once for all."""
        together = len(rows) > 1 and self.num_params <= _BATCHED
        total = torch.zeros_like(rows)
        with second_order():
            for product in self._products():
                if together:
                    try:
                        total += product(rows, True)
                        continue
                    except RuntimeError:
                        together = False
                for k, row in enumerate(rows):
                    total[k] += product(row, False)
        if self.kind != "empirical_fisher" and self._decay:
            total += self._decay * rows
        return total

    def _products(self) -> Iterator[Product]:
        """The products of each chunk; of data in one chunk the same every time."""
        if self._chunk_size < self.num_data:
            yield from (self._graph(*chunk) for chunk in self._chunks())
            return
        if self._kept is None:
            self._kept = self._graph(*next(self._chunks()))
        yield self._kept

    def matvec(self, vector: Tensor) -> Tensor:
        """``A v [D]`` in the dtype of the parameters."""
        if not isinstance(vector, Tensor) or vector.shape != self._theta.shape:
            got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise ValueError(f"A vector has shape [{self.num_params}], got {got}.")
        return self._apply(vector.to(self._theta)[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """``A V [D, K]`` for columns ``V [D, K]``."""
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != self.num_params:
            got = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(f"vectors must be columns [{self.num_params}, K], got {got}.")
        rows = vectors.to(self._theta).T
        return self._apply(rows.contiguous()).T

    def dense(self) -> Tensor:
        """The matrix ``[D, D]`` in float64, for small D."""
        found = self.matmat(torch.eye(self.num_params, dtype=self._theta.dtype)).double()
        return (found + found.T) / 2

    def top_eigenpairs(self, num: int, *, tolerance: float = 0.0, seed: int = 0) -> Eigenpairs:
        """The ``num`` largest eigenvalues and their vectors; see ``top_eigenpairs``."""
        if not tolerance and self._theta.dtype != torch.float64:
            tolerance = 1e-6
        return top_eigenpairs(self.matvec, self.num_params, num, tolerance=tolerance, seed=seed)

    def trace(
        self, num_products: int = 60, method: TraceMethod = "hutch++", seed: int = 0
    ) -> TraceEstimate:
        """The trace with its error; see ``estimate_trace``."""
        return estimate_trace(self.matmat, self.num_params, num_products, method, seed=seed)

    def density(self, num_steps: int = 60, num_probes: int = 8, seed: int = 0) -> SpectralDensity:
        """The spectral density by Lanczos quadrature; see ``spectral_density``."""
        return spectral_density(self.matvec, self.num_params, num_steps, num_probes, seed=seed)


def curvature_operator(
    module: nn.Module,
    data: DataLike,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    *,
    kind: Kind = "hessian",
    weight_decay: float = 0.0,
    position: Tensor | None = None,
    chunk_size: int = 4096,
) -> CurvatureOperator:
    """A curvature matrix of a module's mean loss on all the data, in evaluation mode.

    The graph is kept where all data fit into one chunk, else built anew for every product: memory
    is that of one chunk. Attention and recurrent layers take plain operations in place of fused
    ones. Batch normalisation uses its running statistics.

    Args:
        module: its parameters with ``requires_grad`` are the D coordinates; it is copied.
        data: ``(inputs, ..., targets)`` in any form that ``sample`` takes, a loader included.
        loss_fn: outputs ``[n, ...]`` and targets to a loss: one value per datum, or their mean or
            sum; ``f`` is the mean in any case. The loss of a batch must be made of those of its
            data, which is checked in one pass: weights and ignored targets take
            ``reduction="none"`` or ``"sum"``.
        kind: see the table above.
        weight_decay: ``w``.
        position: ``theta [D]``; the module's parameters if absent.
        chunk_size: data evaluated at once.

    Raises:
        ValueError: data that do not fit, a module without trainable parameters, an operation
            without second derivatives, or a loss that is not made of its data's.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> square = lambda o, y: 0.5 * (o - y).square().sum()
        >>> operator = curvature_operator(net, (x, torch.zeros(2, 1)), square)
        >>> operator.matvec(torch.tensor([1.0, 1.0]))
        tensor([0.5000, 2.0000])
        >>> operator.top_eigenpairs(1).values
        tensor([2.], dtype=torch.float64)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"curvature_operator takes a module, got {type(module).__name__}.")
    check_function("loss_fn", loss_fn, "outputs and targets", takes=2)
    check_choice("kind", kind, ["hessian", "gauss_newton", "empirical_fisher"])
    check_nonnegative("weight_decay", weight_decay)
    check_positive_int("chunk_size", chunk_size)
    module = copy.deepcopy(module).eval()
    names = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    if not names:
        raise ValueError(f"{type(module).__name__} has no parameters with requires_grad=True.")
    first = next(module.parameters())
    where = Place(first.device, first.dtype)
    leaves = place(as_pairs(data, where), where)
    check_losses(
        module, loss_fn, zip(*(leaf.split(int(chunk_size)) for leaf in leaves), strict=True)
    )
    made = CurvatureOperator(
        kind, module, leaves, loss_fn, float(weight_decay), int(chunk_size), names
    )
    return made if position is None else made.at(position)


def _pulled(values: Tensor, leaf: Tensor, weights: Tensor, many: bool) -> Tensor:
    """``(d values / d leaf)' w``, zero where there is no dependence; the graph is kept."""
    if not values.requires_grad:
        return weights.new_zeros((*weights.shape[:1], *leaf.shape) if many else leaf.shape)
    (found,) = torch.autograd.grad(
        values,
        leaf,
        grad_outputs=weights,
        retain_graph=True,
        is_grads_batched=many,
        materialize_grads=True,
    )
    return found.detach()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
