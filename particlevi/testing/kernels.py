"""What every kernel must do."""

from __future__ import annotations

import torch
from torch import Tensor

from particlevi._checks import check_flag, check_has
from particlevi.kernels.kernels import Kernel
from particlevi.testing._expect import equal, expect, unchanged

__all__ = ["check_kernel"]

NUM_PARTICLES, NUM_PARAMS = 7, 3


class _Space:
    """Three parameters, each a group of its own."""

    num_params = NUM_PARAMS

    def groups(self, rule: object, seed: int = 0) -> Tensor:
        """Group numbers ``[D]``."""
        return torch.arange(NUM_PARAMS)


def check_kernel(kernel: Kernel, *, differentiable: bool = True) -> None:
    """Run the contract on a kernel: symmetric, positive definite, and the direction its own.

    ``direction(x, scores)`` must be ``sum_j k(x_j, x_i) s_j / P`` and
    ``sum_j grad_{x_j} k(x_j, x_i) / P``, as automatic differentiation finds them from
    ``kernel(x, y)``.

    Args:
        kernel: with fixed scales, since bandwidths are held constant in the direction.
        differentiable: False for a kernel of which each group of parameters has its own, so that
            no single matrix gives the direction: then only the shapes are checked.

    Raises:
        AssertionError: what is broken.

    Examples:
        >>> import particlevi as pvi
        >>> check_kernel(pvi.kernels.rbf(2.0))
    """
    check_has("kernel", kernel, ["bind"], "a kernel")
    check_flag("differentiable", differentiable)
    generator = torch.Generator().manual_seed(0)
    x, y, scores = (
        torch.randn(num, NUM_PARAMS, generator=generator, dtype=torch.float64)
        for num in (NUM_PARTICLES, 4, NUM_PARTICLES)
    )
    bound = kernel.bind(_Space())
    attraction, repulsion = unchanged(
        lambda: bound.direction(x, scores), (x, scores), "the direction"
    )
    for name, value in (("attraction", attraction), ("repulsion", repulsion)):
        expect(value.shape == x.shape, f"the {name} {list(value.shape)} is not [P, D]")
        expect(value.dtype == x.dtype, f"the {name} is {value.dtype}, not {x.dtype}")
    if not differentiable:
        return
    matrix = bound(x, x)
    expect(matrix.shape == (NUM_PARTICLES, NUM_PARTICLES), "the kernel matrix is not [P, P]")
    expect(bound(x, y).shape == (NUM_PARTICLES, 4), "the kernel matrix is not [P, Q]")
    equal(matrix, matrix.T, "the kernel is not symmetric", rtol=1e-10, atol=1e-10)
    smallest = float(torch.linalg.eigvalsh(matrix).min())
    bound_below = -1e-9 * float(matrix.diagonal().max())
    expect(smallest >= bound_below, f"not positive definite: an eigenvalue {smallest:.3g}")
    moved = x.clone().requires_grad_()
    with torch.enable_grad():
        columns = bound(moved, x).sum(0)
        pulls = [
            torch.autograd.grad(column, moved, retain_graph=True)[0].sum(0) for column in columns
        ]
    close = {"rtol": 1e-8, "atol": 1e-10}
    equal(attraction, matrix.T @ scores / NUM_PARTICLES, "the attraction is wrong", **close)
    equal(repulsion, torch.stack(pulls) / NUM_PARTICLES, "the repulsion is wrong", **close)
