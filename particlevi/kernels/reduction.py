"""The sums over particles that a radial kernel's Stein direction needs.

``sum_j f(u_ij) s_j`` and ``sum_j w_ij (x_i - x_j)``, ``u_ij = |x_i - x_j|^2 / b``,
``w_ij = -2 f'(u_ij) / b``. Up to ``DENSE`` particles the P x P matrix is formed. Beyond, nothing
of that size is: the RBF kernel, whose sums are attention without its normalisation, goes through
the fused attention of torch; other kernels, and many dimensions, go tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

__all__ = [
    "DENSE",
    "PROFILES",
    "Profile",
    "dense_sums",
    "radial_sums",
    "row_blocks",
    "squared_distances",
]

DENSE = 1024
_BLOCK = 2**21
_TILE = 512
_WIDE = 256
_ATTENTION_DIM = 512


class Profile(NamedTuple):
    """``f`` as a function of ``u = |x - y|^2 / b``; ``-f'`` and ``f''`` as functions of ``f``."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    curvature: Callable[[Tensor], Tensor]


PROFILES = {
    "rbf": Profile(lambda u: (-u).exp_(), lambda k: k, lambda k: k),
    "imq": Profile(
        lambda u: (1 + u).rsqrt_(),
        lambda k: k.pow(3).mul_(0.5),
        lambda k: k.pow(5).mul_(0.75),
    ),
}


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """``|x_i - y_j|^2`` of ``x [P, D]`` and ``y [Q, D]`` as ``[P, Q]``, from the Gram matrix.

    Never negative, and with the derivatives of the square also where it is zero.
    """
    center = x.mean(0)
    found = _gram_squares(x - center, y - center)
    return found - found.detach().clamp(max=0)


def _gram_squares(x: Tensor, y: Tensor) -> Tensor:
    squares = x.square().sum(-1).unsqueeze(1) + y.square().sum(-1)
    return squares.addmm(x, y.T, alpha=-2)


def _centred_squares(x: Tensor, y: Tensor) -> Tensor:
    return _gram_squares(x, y).clamp_(min=0)


def row_blocks(num: int) -> list[slice]:
    """Rows of a ``num x num`` matrix in blocks of about 2^21 numbers."""
    return _slices(num, max(1, _BLOCK // num))


def _tiles(num: int, device: torch.device) -> list[slice]:
    """Sides of square tiles: one fits in a core's cache; a GPU wants fewer and larger ones."""
    return _slices(num, _TILE if device.type == "cpu" else 8 * _TILE)


def _slices(num: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, num)) for start in range(0, num, size)]


def radial_sums(x: Tensor, scores: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Attraction ``[P, C]`` and repulsion ``[P, D]``, the sums divided by P.

    Args:
        x: centred particles ``[P, D]``.
        scores: ``[P, C]``.
        b: the bandwidth, 0-d.
        kind: a key of ``PROFILES``.
    """
    if len(x) <= DENSE:
        attraction, repulsion = dense_sums(x, scores, _centred_squares(x, x), b, kind)
    elif kind == "rbf" and x.shape[1] <= _ATTENTION_DIM and scores.shape[1] <= _ATTENTION_DIM:
        attraction, repulsion = _by_attention(x, scores, b)
    else:
        attraction, repulsion = _by_tiles(x, scores, b, kind)
    return attraction, repulsion


def dense_sums(
    x: Tensor, scores: Tensor, squares: Tensor, b: Tensor, kind: str
) -> tuple[Tensor, Tensor]:
    """The same from the matrix of ``|x_i - x_j|^2``; ``x`` may be some of the columns."""
    kernel = PROFILES[kind].value(squares / b)
    weights = PROFILES[kind].slope(kernel)
    balance = (torch.diag(weights.sum(1)) - weights) * (2 / (len(x) * b))
    return (kernel / len(x)) @ scores, balance @ x


@contextmanager
def _one_thread(wanted: bool) -> Iterator[None]:
    """A tile is too small to share: on a busy machine threads wait for each other at every one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if wanted else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.library.custom_op("particlevi::radial_sums_by_tiles", mutates_args=())
def _by_tiles(x: Tensor, scores: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """One operation to a compiler, which would unroll the loop.

    The matrix is symmetric: a tile above the diagonal also serves the one below.
    """
    profile, num = PROFILES[kind], len(x)
    query, key = _augmented(x, b)
    places = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    attraction, weighted = torch.zeros_like(scores), torch.zeros_like(places)
    tiles = _tiles(num, x.device)
    with _one_thread(x.shape[1] < _WIDE):
        for number, rows in enumerate(tiles):
            for columns in tiles[number:]:
                kernel = profile.value((query[rows] @ key[columns].T).neg_().clamp_(min=0))
                weights = profile.slope(kernel)
                attraction[rows].addmm_(kernel, scores[columns])
                weighted[rows].addmm_(weights, places[columns])
                if rows != columns:
                    attraction[columns].addmm_(kernel.T, scores[rows])
                    weighted[columns].addmm_(weights.T, places[rows])
    mean, total = weighted.tensor_split([x.shape[1]], dim=1)
    return attraction.div_(num), (x * total).sub_(mean).mul_(2 / (num * b))


@_by_tiles.register_fake
def _(x: Tensor, scores: Tensor, b: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scores), torch.empty_like(x)


def _augmented(x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``q [P, D + 2]`` and ``k`` with ``q_i.k_j = -u_ij``.

    ``q_i = [2 x_i / b, 1, -|x_i|^2 / b]`` and ``k_j = [x_j, -|x_j|^2 / b, 1]``.
    """
    squares = x.square().sum(-1, keepdim=True) / b
    ones = torch.ones_like(squares)
    return torch.cat([2 / b * x, ones, -squares], 1), torch.cat([x, -squares, ones], 1)


def _by_attention(x: Tensor, scores: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The RBF sums from softmax(q k') v.

    Softmax divides by ``Z_i = 1 + sum_j exp(-u_ij)``, the 1 from
    one key more, of logit 0, whose value tells ``1 / Z_i``.
    """
    num, dim = x.shape
    ones = x.new_ones(num, 1)
    width = -(-(dim + scores.shape[1] + 2) // 8) * 8
    query, key = _augmented(x, b)
    value = torch.cat([ones, torch.zeros_like(ones), scores, x], 1)
    query = pad(query, (0, width - query.shape[1]))
    key = pad(key, (0, width - key.shape[1], 0, 1))
    value = pad(value, (0, width - value.shape[1], 0, 1))
    value = value + pad(ones[:1], (1, width - 2, num, 0))
    query, key, value = (part[None, None] for part in (query, key, value))
    sums = scaled_dot_product_attention(query, key, value, scale=1.0)[0, 0]
    sums = sums / (num * sums[:, 1:2])
    total, _, attraction, mean, _ = sums.split(
        [1, 1, scores.shape[1], dim, width - 2 - dim - scores.shape[1]], dim=1
    )
    return attraction, 2 / b * (x * total - mean)
