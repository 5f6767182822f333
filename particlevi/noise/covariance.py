"""The covariance of SGD's gradient noise, as an operator.

With per-sample gradients ``g_k`` of the mean loss ``f = (1/N) sum_k f_k`` and ``g`` their mean::

    C = (1/N) sum_k g_k g_k' - g g'        (centred: the covariance, divisor N)
    F = (1/N) sum_k g_k g_k'               (second moment, the "empirical Fisher")

The mean gradient of a batch of b has covariance ``C/b`` with replacement and
``(C/b)(N - b)/(N - 1)`` without. Neither matrix is formed: ``C v = (1/N) sum_k g_k (a_k - a)`` with
``a_k = g_k . v`` from one forward-mode sweep over the data and the sum from one backward sweep.
Memory is that of ``chunk_size`` data, whatever N is; per-sample gradients are held
for ``chunk_size`` data or 32 million numbers at a time, whichever is less.

Reference: Chaudhari and Soatto, "Stochastic gradient descent performs variational inference,
converges to limit cycles for deep networks", 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from particlevi._checks import (
    check_finite,
    check_flag,
    check_function,
    check_positive_int,
)
from particlevi._shown import Shown
from particlevi.curvature.factors import Factors, squared_norms
from particlevi.curvature.second_order import second_order
from particlevi.data import DataLike
from particlevi.noise.balance import Balance, balance_of
from particlevi.noise.eigenvalues import spectrum_of
from particlevi.noise.gaussianity import Gaussianity
from particlevi.noise.minibatches import gaussianity_of, tail_index_of
from particlevi.noise.persample import PerSample, of_module, of_potential
from particlevi.noise.scalings import FreshBatching, batch_factor
from particlevi.noise.spectrum import Spectrum
from particlevi.noise.tails import TailIndex
from particlevi.potentials.layout import Layout
from particlevi.potentials.potential import ModelPotential
from particlevi.potentials.protocol import as_potential, is_potential
from particlevi.progress import progress_bar

__all__ = ["Estimate", "GradientNoise", "check_noise", "measure"]

_MOST_NUMBERS = 2**25
_MOST_BYTES = 2e9
_FEW, _DEAR = 6, 0.37


class Estimate(NamedTuple):
    """A number and how well it is known.

    Attributes:
        value: the estimate.
        standard_error: of the method; 0 where it is exact.
        sampling_error: of the value as an estimate of the law that the data came from, NaN where
            it is not known.
    """

    value: float
    standard_error: float = 0.0
    sampling_error: float = math.nan


@dataclass(frozen=True, eq=False, repr=False)
class GradientNoise(Shown):
    """The noise of SGD's gradient at one point.

    Attributes:
        samples: the per-sample losses.
        position: ``theta [D]``.
        chunk_size: data evaluated at once.
        progress: show progress bars.
        batch_size: b, of the minibatches that are tested.
    """

    samples: PerSample
    position: Tensor
    chunk_size: int = 1024
    progress: bool = False
    batch_size: int | None = None

    @property
    def num_data(self) -> int:
        """N."""
        return self.samples.num_data

    @property
    def num_params(self) -> int:
        """D."""
        return self.samples.layout.num_params

    def at(self, position: Tensor) -> GradientNoise:
        """The noise at another point ``[D]``."""
        if not isinstance(position, Tensor) or position.is_complex() or position.is_meta:
            got = position.dtype if isinstance(position, Tensor) else type(position).__name__
            raise ValueError(f"position must be a real tensor [{self.num_params}], got {got}.")
        moved = position.detach().to(self.position)
        if moved.shape != (self.num_params,):
            raise ValueError(
                f"position must have shape [{self.num_params}], got {list(moved.shape)}."
            )
        check_finite("position", moved, "Take a draw that has not diverged.")
        return replace(self, position=moved)

    def restrict(self, names: str) -> GradientNoise:
        """The noise in the parameters whose names match a shell pattern, such as ``"0.*"``.

        All methods then speak of that diagonal block of the matrix.
        """
        layout = self.samples.layout
        shapes = {name: s for name, s in layout.shapes.items() if fnmatchcase(name, names)}
        if not shapes:
            raise ValueError(f"{names!r} matches none of the parameters {list(layout.shapes)}.")
        where = layout.slices()
        columns = torch.cat([torch.arange(where[n].start, where[n].stop) for n in shapes])
        columns = columns.to(self.position.device)
        samples = self.samples.restrict(self.position, columns, Layout(shapes))
        return replace(self, samples=samples, position=self.position[columns])

    def batch_factor(self, batch_size: int, batching: FreshBatching = "replacement") -> float:
        """What ``C`` is multiplied with to give the covariance of a batch's mean gradient."""
        return batch_factor(batch_size, self.num_data, batching)

    @property
    def _rows_size(self) -> int:
        return max(1, min(self.chunk_size, _MOST_NUMBERS // self.num_params))

    @cached_property
    def _kept_numbers(self) -> int:
        """Of the gradient of a datum: D, or fewer where it has factors."""
        if self.samples.factors is None:
            return self.num_params
        piece, names = self.samples.piece(0, 1), tuple(self.samples.layout.shapes)
        return sum(found.width for found in self.samples.factors(self.position, piece, names))

    @cached_property
    def _shift(self) -> Tensor:
        """What factors leave out of the gradient of every datum ``[D]``."""
        shift = self.samples.shift
        return torch.zeros_like(self.position) if shift is None else shift(self.position)

    def _factors(self) -> Iterator[list[Factors]]:
        """Of the per-sample gradients in order, some data at a time."""
        names = tuple(self.samples.layout.shapes)
        if self.samples.factors is None:
            for rows in self.per_sample():
                yield [Factors(None, rows, names)]
            return
        size = max(1, min(self.chunk_size, _MOST_NUMBERS // max(1, self._kept_numbers)))
        for start, stop in self._ranges(size, "factors of gradients"):
            yield self.samples.factors(self.position, self.samples.piece(start, stop), names)

    @property
    def _pass_size(self) -> int:
        # Masks are drawn chunk by chunk: the same chunks everywhere give the same masks.
        return self._rows_size if self.samples.random else self.chunk_size

    def _ranges(self, size: int, what: str) -> Iterator[tuple[int, int]]:
        with progress_bar(what, 0, self.num_data, self.progress) as bar:
            for start in range(0, self.num_data, size):
                stop = min(start + size, self.num_data)
                yield start, stop
                bar.update(stop - start)

    def per_sample(self) -> Iterator[Tensor]:
        """The per-sample gradients ``g_k`` in order, ``[n, D]`` at a time."""
        for start, stop in self._ranges(self._rows_size, "per-sample gradients"):
            yield self.samples.gradients(self.position, start, stop)

    @cached_property
    def gradient(self) -> Tensor:
        """The mean gradient ``g [D]``, by one pass over the data."""
        total = torch.zeros_like(self.position, dtype=torch.float64)
        for start, stop in self._ranges(self._pass_size, "gradient"):
            ones = self.position.new_ones(stop - start)
            total += self._backward(start, stop, ones)
        return (total / self.num_data).to(self.position.dtype)

    def _backward(self, start: int, stop: int, weights: Tensor) -> Tensor:
        theta = self.position.detach().requires_grad_()
        with second_order(), torch.enable_grad():
            losses = self.samples.losses(theta, start, stop)
            (found,) = torch.autograd.grad(losses, theta, grad_outputs=weights)
        return found

    def slopes(self, vector: Tensor) -> Tensor:
        """``g_k . v`` for every datum ``[N]``, by one forward-mode pass over the data."""
        if not isinstance(vector, Tensor) or vector.shape != self.position.shape:
            got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
            raise ValueError(
                f"A vector has shape [{self.num_params}], got {got}; matmat takes columns."
            )
        direction = vector.to(self.position)
        parts = []
        for start, stop in self._ranges(self._pass_size, "forward mode"):
            losses = partial(self.samples.losses, start=start, stop=stop)
            with second_order():
                parts.append(torch.func.jvp(losses, (self.position,), (direction,))[1].detach())
        return torch.cat(parts)

    def matvec(self, vector: Tensor, centered: bool = True) -> Tensor:
        """``C v [D]``, or ``F v`` with ``centered=False``; two passes over the data."""
        slopes = self.slopes(vector)
        if centered:
            slopes = slopes - slopes.mean()
        return self._combined(slopes[:, None])[:, 0] / self.num_data

    def _combined(self, weights: Tensor) -> Tensor:
        """``sum_k w_k g_k [D, K]`` for columns ``w [N, K]``, by one pass over the data."""
        total = self.position.new_zeros(weights.shape[1], self.num_params)
        for start, stop in self._ranges(self._pass_size, "backward mode"):
            pull = self.samples.transposed(self.position, start, stop)
            for k, column in enumerate(weights[start:stop].T):
                total[k] += pull(column)
        return total.T

    def matmat(self, vectors: Tensor, centered: bool = True) -> Tensor:
        """``C V [D, K]`` for columns ``V [D, K]``.

        One graph of the losses serves all columns; of many, per-sample gradients are cheaper.

        In the dtype and on the device of the position, whatever those of the columns are.
        """
        if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != self.num_params:
            got = list(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ValueError(
                f"vectors must be columns [{self.num_params}, K], got {got}; matvec takes one."
            )
        vectors = vectors.to(self.position)
        count = vectors.shape[1]
        if 0 < count <= _FEW:
            slopes = torch.stack([self.slopes(column) for column in vectors.T], 1)
            return self._combined(slopes - centered * slopes.mean(0)) / self.num_data
        mean = self.gradient if centered else torch.zeros_like(self.position)
        # Where a pass of per-sample gradients is dearer than the products: measured on wide nets.
        if 0 < count <= self.num_params**_DEAR:
            images = torch.zeros_like(vectors.T)
            for start, stop in self._ranges(self._pass_size, "products"):
                push, pull = self.samples.linearised(self.position, start, stop)
                for k, column in enumerate(vectors.T):
                    images[k] += pull(push(column) - mean @ column)
            return images.T / self.num_data
        total = torch.zeros_like(vectors)
        for rows in self.per_sample():
            shifted = rows - mean
            total += shifted.T @ (shifted @ vectors)
        return total / self.num_data

    def trace(
        self, num_probes: int | None = None, centered: bool = True, seed: int = 0
    ) -> Estimate:
        """The trace, exactly from per-sample squared norms, or by Hutchinson's estimator.

        Of a module the norms take a few gradients, else a pass of per-sample gradients.

        Args:
            num_probes: random sign vectors, one forward-mode pass each; exact if absent.
            centered: of ``C``, else of ``F``.
            seed: of the probes.
        """
        if num_probes is None:
            squared = self._squared_lengths(centered)
            error = float(squared.std()) / math.sqrt(len(squared)) if len(squared) > 1 else math.nan
            return Estimate(float(squared.mean()), 0.0, error)
        check_positive_int("num_probes", num_probes, minimum=2)
        generator = torch.Generator().manual_seed(int(seed))
        found = []
        for _ in range(num_probes):
            signs = torch.randint(2, (self.num_params,), generator=generator) * 2 - 1
            slopes = self.slopes(signs.to(self.position)).double()
            found.append(slopes.var(correction=0) if centered else slopes.square().mean())
        values = torch.stack(found)
        return Estimate(float(values.mean()), float(values.std()) / math.sqrt(num_probes))

    def _squared_lengths(self, centered: bool) -> Tensor:
        """``|g_k - g|^2 [N]``, or ``|g_k|^2``, in float64."""
        if self.samples.factors is None:
            mean = self.gradient if centered else torch.zeros_like(self.position)
            return torch.cat([(rows - mean).double().square().sum(1) for rows in self.per_sample()])
        squared = torch.cat([squared_norms(factors) for factors in self._factors()])
        shift = self._shift
        away = self.gradient - shift if centered else -shift
        along = self.slopes(away).double() - (shift @ away).double()
        return (squared - 2 * along + away.double().square().sum()).clamp(min=0)

    def diagonal(self, centered: bool = True) -> Tensor:
        """The diagonal ``[D]`` of ``C``, or of ``F``; for modules by a few gradients."""
        if self.samples.squares is not None:
            sums = torch.zeros(2, self.num_params, dtype=torch.float64, device=self.position.device)
            for start, stop in self._ranges(self.chunk_size, "squared gradients"):
                piece = self.samples.piece(start, stop)
                sums += torch.stack(self.samples.squares(self.position, piece))
            first, second = sums / self.num_data
            found = second - first.square() if centered else second
            diagonal: Tensor = found.clamp(min=0).to(self.position.dtype)
            return diagonal
        mean = self.gradient if centered else torch.zeros_like(self.position)
        total = torch.zeros_like(self.position, dtype=torch.float64)
        for rows in self.per_sample():
            total += (rows - mean).square().sum(0, dtype=torch.float64)
        return (total / self.num_data).to(self.position.dtype)

    def by_tensor(self, centered: bool = True) -> dict[str, float]:
        """The trace's share of each named tensor."""
        parts = self.samples.layout.unravel(self.diagonal(centered))
        return {name: float(part.double().sum()) for name, part in parts.items()}

    def dense(self, centered: bool = True) -> Tensor:
        """The matrix itself, ``[D, D]`` in float64, for small D."""
        mean = self.gradient if centered else torch.zeros_like(self.position)
        size = self.num_params
        total = torch.zeros(size, size, dtype=torch.float64, device=self.position.device)
        for rows in self.per_sample():
            shifted = (rows - mean).double()
            total.addmm_(shifted.T, shifted)
        return total / self.num_data

    def spectrum(
        self,
        top: int | None = None,
        centered: bool = True,
        seed: int = 0,
        max_bytes: float = _MOST_BYTES,
    ) -> Spectrum:
        """Eigenvalues, largest first.

        All of them come from the inner products of the gradients ``[N, N]`` where ``N < D``, else
        from the matrix ``[D, D]``, in float64. The largest few come from the same where that is
        cheaper, else from a block Krylov space, and carry bounds on their errors and eigenvectors.
        The inner products of a module's gradients are made of the inputs and slopes of its layers,
        so that no gradients ``[N, D]`` are formed.

        Args:
            top: how many; all if absent.
            centered: of ``C``, else of ``F``.
            seed: of the first block.
            max_bytes: of memory beside that of a chunk; 2 GB.

        Raises:
            MemoryError: what was asked for takes more.
        """
        return spectrum_of(self, top, centered, seed, max_bytes)

    def gaussianity(
        self,
        num_batches: int = 500,
        *,
        num_directions: int = 30,
        num_bootstrap: int = 199,
        batching: FreshBatching = "replacement",
        seed: int = 0,
    ) -> Gaussianity:
        """Whether the noise of minibatches is Gaussian; see ``pvi.noise.gaussianity``.

        The eigenvectors are those of ``C``. One pass of per-sample gradients, whatever the number
        of minibatches, beside ``spectrum(top=num_directions)``.

        Args:
            num_batches: independent minibatches, 20 to 5000.
            num_directions: random projections, coordinates and eigenvectors, of each so many.
            num_bootstrap: Gaussian samples behind the p-values.
            batching: how a minibatch is drawn.
            seed: of directions, minibatches and Gaussian samples.

        Raises:
            ValueError: no ``batch_size`` was given to ``measure``, too few or too many minibatches,
                gradients that are not finite, or no noise at all.
        """
        return gaussianity_of(self, num_batches, num_directions, num_bootstrap, batching, seed)

    def tail_index(
        self,
        num_batches: int = 500,
        *,
        num_coordinates: int = 500,
        num_null: int = 99,
        batching: FreshBatching = "replacement",
        seed: int = 0,
    ) -> TailIndex:
        """The tail index of the noise of minibatches; see ``pvi.noise.tail_index``.

        One pass of per-sample gradients, whatever the number of minibatches.

        Args:
            num_batches: independent minibatches, at least 50.
            num_coordinates: chosen at random, and kept in the order of the parameters.
            num_null: samples of the Gaussian noise with the same scales.
            batching: how a minibatch is drawn.
            seed: of coordinates, minibatches and Gaussian samples.

        Raises:
            ValueError: as ``gaussianity``.
        """
        return tail_index_of(self, num_batches, num_coordinates, num_null, batching, seed)

    def balance(self) -> Balance:
        """How far weights that can be rescaled against each other are from noise balance.

        Pairs are found by trying: of a unit's incoming and outgoing weights (ReLU, linear;
        convolutions too), values and outputs, queries and keys. Three passes over the data.

        Raises:
            ValueError: no two weight tensors have that symmetry.
        """
        return balance_of(self)

    def _held(self, centered: bool) -> Tensor:
        rows = self.position.new_empty(self.num_data, self.num_params)
        total, start = rows.new_zeros(self.num_params, dtype=torch.float64), 0
        for part in self.per_sample():
            rows[start : start + len(part)] = part
            start += len(part)
            total += part.sum(0, dtype=torch.float64)
        return rows.sub_((total / start).to(rows.dtype)) if centered else rows


def measure(
    model: ModelPotential | nn.Module,
    data: DataLike,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    position: Tensor | None = None,
    batch_size: int | None = None,
    mode: str = "eval",
    chunk_size: int = 1024,
    progress: bool = False,
) -> GradientNoise:
    """The noise of SGD's gradient on the mean loss.

    Args:
        model: a potential with data, whose mean loss is ``f = U/N``, prior included; or a module,
            whose mean loss is that of ``loss_fn``.
        data: ``(inputs, ..., targets)``, as given to ``sample``.
        position: ``theta [D]``; the module's own parameters if absent.
        loss_fn: of a module, such as ``torch.nn.functional.cross_entropy``. With weights or
            ignored targets take ``reduction="none"`` or ``"sum"``; see ``Raises``.
        batch_size: b, of the minibatches whose noise ``gaussianity`` and ``tail_index`` test.
        mode: of a module, ``"eval"`` or ``"train"``, where every datum has dropout masks that
            stay as they are: the noise is that of the choice of data.
        chunk_size: data evaluated at once.
        progress: show progress bars.

    Raises:
        ValueError: a missing or superfluous argument, data that do not fit, or a loss whose value
            on a batch is neither the mean nor the sum of its data's losses, as that of
            ``CrossEntropyLoss(weight=w)``, where the weight of a single datum cancels.

    >>> _ = torch.manual_seed(0)
    >>> net, x = nn.Linear(2, 1), torch.randn(50, 2)
    >>> noise = measure(net, (x, x[:, :1]), loss_fn=nn.functional.mse_loss)
    >>> v = torch.tensor([1.0, 0.0, 0.0])
    >>> bool(torch.allclose(noise.matvec(v), noise.dense().float()[0], atol=1e-6))
    True
    """
    check_positive_int("chunk_size", chunk_size)
    check_flag("progress", progress)
    if is_potential(model) and not isinstance(model, nn.Module):
        model = as_potential(model)
        if loss_fn is not None or mode != "eval":
            raise ValueError("A potential has its own loss and mode: leave out loss_fn and mode.")
        if position is None:
            raise ValueError("Give the position theta [D], for example draws.particles[0, -1].")
        samples = of_potential(model, data)
        start = torch.zeros(model.num_params, dtype=model.dtype, device=model.device)
    elif isinstance(model, nn.Module):
        if loss_fn is None:
            raise ValueError("A module needs loss_fn, such as torch.nn.functional.cross_entropy.")
        check_function("loss_fn", loss_fn, "outputs and targets", takes=2)
        samples = of_module(model, loss_fn, data, mode)
        own = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        start = samples.layout.ravel(own)
    else:
        raise TypeError(f"measure takes a potential or a module, got {type(model).__name__}.")
    if batch_size is not None:
        check_positive_int("batch_size", batch_size)
        if batch_size > samples.num_data:
            raise ValueError(
                f"batch_size must be at most the {samples.num_data} data, got {batch_size}."
            )
    noise = GradientNoise(samples, start.clone(), chunk_size, progress, batch_size)
    return noise if position is None else noise.at(position)


def check_noise(noise: Any) -> None:
    """``noise`` is what ``measure`` gives."""
    if not isinstance(noise, GradientNoise):
        raise TypeError(f"noise must come from pvi.noise.measure, got {type(noise).__name__}.")
