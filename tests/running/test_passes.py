"""What the compiler is told to do better: products, and only them, in another order."""

from __future__ import annotations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from particlevi.running.passes import TransposedProducts

ATEN = torch.ops.aten
PRODUCTS = {
    "one": (lambda a, b: (a @ b).T, (3, 4), (4, 5), ATEN.mm.default),
    "many": (lambda a, b: torch.bmm(a, b).transpose(1, 2), (2, 3, 4), (2, 4, 5), ATEN.bmm.default),
}


def rewritten(function, *shapes):
    """The graph of a function with the pass applied, and numbers to run it on."""
    given = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes]
    module = make_fx(function, tracing_mode="fake", decomposition_table=AS_PERMUTED)(*given)
    TransposedProducts()(module.graph)
    module.recompile()
    return module, given


def _permuted(x, *dims):
    order = list(range(x.ndim))
    first, second = dims or (0, 1)
    order[first], order[second] = order[second], order[first]
    return ATEN.permute.default(x, order)


# As inductor hands graphs over.
AS_PERMUTED = {ATEN.t.default: _permuted, ATEN.transpose.int: _permuted}


def last_of(module):
    (output,) = (node for node in module.graph.nodes if node.op == "output")
    return output.args[0]


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_transposed_product_becomes_a_product_of_transposes(name):
    function, left, right, product = PRODUCTS[name]
    module, _ = rewritten(function, left, right)
    assert last_of(module).target == product


@pytest.mark.parametrize("name", PRODUCTS)
def test_its_value_is_the_same(name):
    function, left, right, _ = PRODUCTS[name]
    module, given = rewritten(function, left, right)
    torch.testing.assert_close(module(*given), function(*given))


def test_a_product_that_is_used_elsewhere_is_left_alone():
    def function(a, b):
        product = a @ b
        return product.T + product

    module, _ = rewritten(function, (3, 4), (4, 3))
    assert last_of(module).args[0].target == ATEN.permute.default


def test_another_permutation_is_left_alone():
    module, _ = rewritten(lambda a, b: torch.bmm(a, b).permute(1, 0, 2), (2, 3, 4), (2, 4, 5))
    assert last_of(module).target == ATEN.permute.default
