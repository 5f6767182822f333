"""What inductor is told to do better in the graphs of steps."""

from __future__ import annotations

from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

__all__ = ["TransposedProducts"]

_PRODUCTS: dict[Any, list[int]] = {
    torch.ops.aten.mm.default: [1, 0],
    torch.ops.aten.bmm.default: [0, 2, 1],
}
_permute = torch.ops.aten.permute.default


class TransposedProducts(CustomGraphPass):
    """``(A B)^T`` as ``B^T A^T``.

    The gradient of a layer's weights comes as the transpose of a product, and copying it into the
    place of the gradient costs more than the product itself where nets are small.
    """

    def __call__(self, graph: Graph) -> None:
        """Rewrite in place."""
        for node in list(graph.nodes):
            product = node.args[0] if node.target is _permute else None
            if not (isinstance(product, Node) and len(product.users) == 1):
                continue
            if _PRODUCTS.get(product.target) != node.args[1]:
                continue
            with graph.inserting_before(node):
                a, b = (_call(graph, _permute, each, node.args[1]) for each in product.args)
                better = _call(graph, product.target, b, a)
            node.replace_all_uses_with(better)
            graph.erase_node(node)
            graph.erase_node(product)

    def uuid(self) -> bytes:
        """Of what it does, for torch's cache of graphs."""
        return get_hash_for_files((__file__,))


def _call(graph: Graph, target: Any, *arguments: Any) -> Node:
    """A new node, with the fake tensor that inductor takes its shape from."""
    node = graph.call_function(target, arguments)
    fakes = [each.meta["val"] if isinstance(each, Node) else each for each in arguments]
    node.meta["val"] = target(*fakes)
    return node
