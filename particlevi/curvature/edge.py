"""How far descent is from the edge of stability.

Descent with momentum m on a quadratic is stable along a direction of curvature ``l`` while
``eta l < 2 (1 + m)``. Full-batch training pushes the largest curvature, the sharpness, up to that
edge and then stays there. With a preconditioner the curvature that counts is that of
``H^(1/2) F H^(1/2)``.

Reference: Cohen, Kaur, Li, Kolter and Talwalkar, "Gradient descent on neural networks typically
occurs at the edge of stability", 2021; Cohen et al., "Adaptive gradient methods at the edge of
stability", 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from particlevi._checks import check_fraction, check_particles, check_positive
from particlevi.curvature.lanczos import top_eigenpairs
from particlevi.curvature.operators import CurvatureOperator

__all__ = ["Edge", "edge_of_stability"]


class Edge(NamedTuple):
    """Where training stands relative to its edge, ``[T]`` each.

    Attributes:
        sharpness: the largest curvature, of ``H^(1/2) F H^(1/2)`` with a preconditioner.
        limit: ``2 (1 + m) / eta``.
        ratio: ``sharpness / limit``; at the edge it is about 1.
    """

    sharpness: Tensor
    limit: float
    ratio: Tensor


def edge_of_stability(
    operator: CurvatureOperator,
    learning_rate: float,
    *,
    momentum: float = 0.0,
    preconditioner: Tensor | None = None,
    positions: Tensor | None = None,
    tolerance: float = 1e-3,
) -> Edge:
    """The sharpness over the largest curvature that descent can bear.

    Args:
        operator: of the Hessian.
        learning_rate: ``eta`` on the mean loss.
        momentum: m in [0, 1).
        preconditioner: the diagonal ``[D]`` of ``H``, positive.
        positions: points of a trajectory ``[T, D]``; the operator's own if absent.
        tolerance: relative error of the sharpness.

    Raises:
        ValueError: arguments that do not fit.

    Examples:
        >>> from particlevi.curvature import curvature_operator
        >>> net, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
        >>> square = lambda o, y: 0.5 * (o - y).square().sum()
        >>> operator = curvature_operator(net, (x, x), square)
        >>> edge_of_stability(operator, 0.4).ratio
        tensor([0.5000], dtype=torch.float64)
    """
    if not isinstance(operator, CurvatureOperator):
        raise TypeError(f"operator must come from curvature_operator, got {type(operator)}.")
    check_positive("learning_rate", learning_rate)
    check_fraction("momentum", momentum)
    check_positive("tolerance", tolerance)
    size = operator.num_params
    root = torch.ones(size, dtype=torch.float64)
    if preconditioner is not None:
        right = isinstance(preconditioner, Tensor) and preconditioner.shape == (size,)
        if not right or not bool((preconditioner > 0).all()):
            raise ValueError(f"preconditioner must be a positive tensor [{size}].")
        root = preconditioner.detach().double().cpu().sqrt()
    points = operator.position[None] if positions is None else positions
    check_particles(points, size, "positions")
    found = []
    for point in points:
        here = operator.at(point)

        def product(v: Tensor, here: CurvatureOperator = here) -> Tensor:
            return root * here.matvec(root * v).double().cpu()

        found.append(float(top_eigenpairs(product, size, 1, tolerance=tolerance).values[0]))
    sharpness = torch.tensor(found, dtype=torch.float64)
    limit = 2 * (1 + momentum) / learning_rate
    return Edge(sharpness, limit, sharpness / limit)
