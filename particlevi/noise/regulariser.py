"""What shuffling without replacement adds to the loss that SGD descends.

An epoch goes through m batches, each once, in random order. With ``C_j`` the loss of batch j, ``C``
their mean, ``g_j`` and ``g`` the gradients and ``eta`` the rate, the mean iterate after an epoch is
that of gradient flow for time ``m eta``, up to ``(m eta)^3``, on::

    C + (eta/4) (1/m) sum_j |g_j|^2

Over random partitions into batches of B of the N data the second term has the mean
``(eta/4) |g|^2 + (eta/4) ((N - B)/(N - 1)) tr C_samples / B``.

Reference: Smith, Dherin, Barrett and De, "On the origin of implicit regularization in stochastic
gradient descent", 2021; Beneventano, "On the trajectories of SGD without replacement", 2023. The
form for a finite ``eta`` times curvature is derived here to leading order in the spread of batches.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_choice, check_positive, check_positive_int
from particlevi.curvature.second_order import second_order
from particlevi.noise.covariance import GradientNoise, check_noise

__all__ = [
    "FiniteRate",
    "Regulariser",
    "effective_loss",
    "epoch_drift",
    "finite_rate_regulariser",
    "shuffling_regulariser",
    "spectral_weight",
]

_MOST_BATCHES = 1_000_000
_MOST_PARAMS = 2000


class Regulariser(NamedTuple):
    """A term beside the loss, and its gradient.

    Attributes:
        value: in units of the mean loss.
        gradient: ``[D]``.
    """

    value: float
    gradient: Tensor


class FiniteRate(NamedTuple):
    """What shuffling regularises, and along which directions.

    Attributes:
        value: in units of the mean loss over the learning rate; ``parts.sum() + rest``.
        curvature: the Hessian's eigenvalues of largest absolute value, ``[top]``.
        parts: ``omega(l) q' Cov q`` of their eigenvectors, ``[top]``.
        rest: of all other directions, as if they were flat.
    """

    value: float
    curvature: Tensor
    parts: Tensor
    rest: float


class _Batches(NamedTuple):
    """Losses of m batches of one size, as a function of theta."""

    noise: GradientNoise
    size: int

    @property
    def total(self) -> int:
        """M."""
        return self.noise.num_data // self.size

    def loss(self, theta: Tensor, j: int) -> Tensor:
        """``C_j``."""
        start = j * self.size
        losses: Tensor = self.noise.samples.losses(theta, start, start + self.size)
        return losses.mean()


def _batches(noise: GradientNoise, batch_size: int | None) -> _Batches:
    check_noise(noise)
    size = noise.batch_size if batch_size is None else batch_size
    if size is None:
        raise ValueError("Batches of which size? Give batch_size, here or to pvi.noise.measure.")
    check_positive_int("batch_size", size)
    if noise.num_data % size:
        raise ValueError(
            f"N={noise.num_data} data do not split into batches of batch_size={size}: take a "
            "divisor, since a smaller last batch would weigh its data more."
        )
    return _Batches(noise, int(size))


def shuffling_regulariser(
    noise: GradientNoise,
    learning_rate: float,
    batch_size: int | None = None,
    *,
    partitions: Literal["fixed", "random"] = "fixed",
) -> Regulariser:
    """Smith's regulariser ``(eta/4) (1/m) sum_j |g_j|^2`` and its gradient.

    Args:
        noise: from ``measure``, at the point in question.
        learning_rate: ``eta`` on the mean loss, small against ``1 / (m curvature)``.
        batch_size: B, a divisor of N; that given to ``measure`` if absent.
        partitions: ``"fixed"``, batches of neighbouring data in the order given, shuffled as
            wholes: two gradients of every batch. ``"random"``: the mean over all partitions, by
            per-sample gradients twice.

    Raises:
        ValueError: batches that do not divide the data, an unknown partition, or a loss without
            second derivatives.

    Examples:
        >>> import particlevi as pvi
        >>> _ = torch.manual_seed(0)
        >>> net, x = torch.nn.Linear(2, 1), torch.randn(20, 2)
        >>> noise = pvi.noise.measure(net, (x, x[:, :1]), torch.nn.functional.mse_loss)
        >>> found = shuffling_regulariser(noise, learning_rate=0.1, batch_size=5)
        >>> found.value > 0, list(found.gradient.shape)
        (True, [3])
    """
    check_positive("learning_rate", learning_rate)
    check_choice("partitions", partitions, ["fixed", "random"])
    batches = _batches(noise, batch_size)
    if partitions == "random":
        return _over_partitions(noise, learning_rate, batches.size)
    value, gradient = 0.0, torch.zeros_like(noise.position)
    for j in range(batches.total):
        with second_order(), torch.enable_grad():
            leaf = noise.position.detach().requires_grad_()
            (slope,) = torch.autograd.grad(batches.loss(leaf, j), leaf, create_graph=True)
            square = slope.square().sum() * (learning_rate / 4 / batches.total)
            (found,) = torch.autograd.grad(square, leaf)
        value += float(square.detach())
        gradient += found
    return Regulariser(value, gradient)


def _over_partitions(noise: GradientNoise, rate: float, size: int) -> Regulariser:
    """``(eta/4) [(1 - k)|g|^2 + k (1/N) sum_k |g_k|^2]``, ``k = ((N - B)/(N - 1)) / B``."""
    n, mean = noise.num_data, noise.gradient
    share = 0.0 if n == 1 else (n - size) / (n - 1) / size

    def square(theta: Tensor, datum: object) -> Tensor:
        slope: Tensor = torch.func.grad(noise.samples.one)(theta, datum)
        return slope.square().sum()

    total, curved, squares = torch.zeros_like(mean), torch.zeros_like(mean), 0.0
    step = noise._rows_size
    for start in range(0, n, step):
        stop = min(start + step, n)
        piece = noise.samples.piece(start, stop)
        with second_order():
            each = torch.func.vmap(torch.func.grad_and_value(square), in_dims=(None, 0))
            slopes, values = each(noise.position, piece)

            def losses(theta: Tensor, a: int = start, b: int = stop) -> Tensor:
                return noise.samples.losses(theta, a, b).sum()

            product = torch.func.jvp(torch.func.grad(losses), (noise.position,), (mean,))[1]
        total += slopes.detach().sum(0)
        squares += float(values.detach().sum())
        curved += product.detach()
    value = rate / 4 * ((1 - share) * float(mean.square().sum()) + share * squares / n)
    gradient = rate / 4 * ((1 - share) * 2 * curved / n + share * total / n)
    return Regulariser(value, gradient)


def effective_loss(
    noise: GradientNoise, learning_rate: float, batch_size: int | None = None
) -> Regulariser:
    """The loss whose gradient flow the mean iterate of shuffled SGD follows, and its gradient.

    ``C + (eta/4) (1/m) sum_j |g_j|^2``; a flow for time ``m eta`` is an epoch, up to ``(m eta)^3``.

    Args:
        noise: from ``measure``; ``noise.at(theta)`` moves it along the flow.
        learning_rate: ``eta`` on the mean loss.
        batch_size: B, a divisor of N; that given to ``measure`` if absent.

    Raises:
        ValueError: as ``shuffling_regulariser``.
    """
    added = shuffling_regulariser(noise, learning_rate, batch_size)
    with torch.no_grad():
        total = 0.0
        for start in range(0, noise.num_data, noise._pass_size):
            stop = min(start + noise._pass_size, noise.num_data)
            total += float(noise.samples.losses(noise.position, start, stop).double().sum())
    return Regulariser(total / noise.num_data + added.value, noise.gradient + added.gradient)


def spectral_weight(curvature: Tensor, learning_rate: float, num_batches: int) -> Tensor:
    """How much shuffling regularises the noise along a Hessian eigenvector.

    ``omega(l) = (1/(m - 1)) sum_{i<m} [1 - (1 - eta l)^i] / (eta l)``: ``m/2`` where l is 0, about
    ``1/(eta l)`` where it is stiff, growing exponentially where it is negative.

    Args:
        curvature: eigenvalues of the Hessian of the mean loss, any shape.
        learning_rate: ``eta``.
        num_batches: m, per epoch.

    Examples:
        >>> spectral_weight(torch.tensor([0.0, 10.0]), learning_rate=0.1, num_batches=8)
        tensor([4.0000, 1.0000])
    """
    check_positive("learning_rate", learning_rate)
    check_positive_int("num_batches", num_batches, minimum=2)
    if num_batches > _MOST_BATCHES:
        raise ValueError(f"num_batches must be at most {_MOST_BATCHES}, got {num_batches}.")
    if not isinstance(curvature, Tensor) or not curvature.is_floating_point():
        raise TypeError("curvature must be a floating-point tensor of eigenvalues.")
    keep = 1 - learning_rate * curvature
    power, inner, total = torch.ones_like(keep), torch.zeros_like(keep), torch.zeros_like(keep)
    for _ in range(num_batches - 1):
        inner, power = inner + power, power * keep
        total = total + inner
    return total / (num_batches - 1)


def finite_rate_regulariser(
    noise: GradientNoise, learning_rate: float, batch_size: int | None = None, *, top: int
) -> FiniteRate:
    """``R = sum_l omega(l) q_l' Cov q_l``, the noise that shuffling regularises, by curvature.

    ``Cov = (1/m) sum_j (g_j - g)(g_j - g)'`` over the batches of neighbouring data, and ``omega``
    is ``spectral_weight``. The Hessian's eigenvectors ``q_l`` of largest absolute eigenvalue are
    taken one by one; the rest of the trace gets the weight ``m/2`` of a flat direction. An epoch
    moves the mean iterate by about ``-(eta^2/2) grad R`` from where SGD with replacement would
    take it.

    Args:
        noise: from ``measure``.
        learning_rate: ``eta``; its product with the curvature need not be small.
        batch_size: B, a divisor of N.
        top: eigenvectors of the Hessian, formed as a matrix ``[D, D]``.

    Raises:
        ValueError: as ``shuffling_regulariser``; more than 2000 parameters.
    """
    check_positive("learning_rate", learning_rate)
    batches = _batches(noise, batch_size)
    check_positive_int("top", top)
    _check_dense(noise)
    hessians, slopes = _derivatives(batches)
    values, vectors = torch.linalg.eigh(hessians.mean(0))
    chosen = values.abs().argsort(descending=True)[:top]
    shifted = slopes - slopes.mean(0)
    along = (shifted @ vectors[:, chosen]).square().mean(0)
    weights = spectral_weight(values[chosen], learning_rate, batches.total)
    rest = shifted.square().sum(1).mean() - along.sum()
    parts, flat = weights * along, float(batches.total / 2 * rest)
    return FiniteRate(float(parts.sum()) + flat, values[chosen], parts, flat)


def epoch_drift(
    noise: GradientNoise, learning_rate: float, batch_size: int | None = None
) -> Tensor:
    """How far shuffling moves the mean iterate in an epoch from SGD with replacement, ``[D]``.

    With ``G = I - eta H`` and the spread ``x_js = g_j - g`` of batch j at the point that the mean
    path has reached after s steps, on the quadratic expansion of every batch::

        -(eta^2/(m-1)) sum_{0<k<m} G^(m-1-k) (1/m) sum_j (H_j - H) sum_{s<k} G^(k-1-s) x_js

    This is to leading order in the spread of the batches; ``eta H m`` need not be small. For a
    small one it is ``-(eta^2 m/4) grad tr Cov``.

    Args:
        noise: from ``measure``.
        learning_rate: ``eta``.
        batch_size: B, a divisor of N.

    Raises:
        ValueError: as ``finite_rate_regulariser``.
    """
    check_positive("learning_rate", learning_rate)
    batches = _batches(noise, batch_size)
    _check_dense(noise)
    m = batches.total
    if m < 2:
        raise ValueError("One batch of all the data has no order to shuffle: take a smaller one.")
    hessians, slopes = _derivatives(batches)
    mean = hessians.mean(0)
    keep = torch.eye(len(mean), dtype=mean.dtype, device=mean.device) - learning_rate * mean
    spread, total = slopes - slopes.mean(0), torch.zeros_like(slopes[0])
    inner, moved = torch.zeros_like(spread), torch.zeros_like(total)
    for _ in range(m - 1):
        here = spread + (hessians - mean) @ moved
        inner, moved = inner @ keep.T + here, keep @ moved - learning_rate * slopes.mean(0)
        total = keep @ total + torch.einsum("jab,jb->a", hessians - mean, inner) / m
    found: Tensor = -float(learning_rate) * (learning_rate * total) / (m - 1)
    if not torch.isfinite(found).all():
        raise ValueError(
            f"The mean path is not finite at learning_rate={learning_rate:g}: take a smaller one."
        )
    return found


def _check_dense(noise: GradientNoise) -> None:
    if noise.num_params > _MOST_PARAMS:
        raise ValueError(
            f"This forms Hessians [D, D] of every batch, D={noise.num_params} is more than "
            f"{_MOST_PARAMS}: restrict the noise to some parameters, or use "
            "shuffling_regulariser, which forms none."
        )


def _derivatives(batches: _Batches) -> tuple[Tensor, Tensor]:
    """Hessians ``[m, D, D]`` and gradients ``[m, D]`` of the batches."""
    theta, hessians, slopes = batches.noise.position, [], []
    for j in range(batches.total):

        def loss(point: Tensor, j: int = j) -> Tensor:
            return batches.loss(point, j)

        with second_order():
            hessians.append(torch.func.hessian(loss)(theta).detach())
            slopes.append(torch.func.grad(loss)(theta).detach())
    return torch.stack(hessians), torch.stack(slopes)
