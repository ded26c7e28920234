"""In-place operations of a traced graph, made out-of-place before autograd sees them.

The compiler functionalises a graph only after autograd has traced it, and autograd refuses to trace a write
over a value that it needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def out_of_place_graph(graph_module: GraphModule) -> GraphModule:
    """The same graph without writes into tensors that are no views; writes into views stay."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        plain = _plain(node)
        if plain is None:
            continue
        x: Any = node.args[0]
        with graph.inserting_before(node):
            value = graph.create_node(node.op, plain, node.args, node.kwargs)
            value = graph.call_method("type_as", (value, x))
        value.meta = dict(node.meta)
        node.replace_all_uses_with(value)
        graph.erase_node(node)
        # x is another name for the same tensor, and later uses of it mean the new value.
        later = value.next
        while later.op != "root":
            later.replace_input_with(x, value)
            later = later.next
    graph.lint()
    graph_module.recompile()
    return graph_module


def _plain(node: Node) -> Any:
    """What computes the value that an in-place node writes; None for all other nodes."""
    x: Any = node.args[0] if node.args else None
    example: Any = x.meta.get("example_value") if isinstance(x, Node) else None
    if not isinstance(example, Tensor) or example._is_view():
        return None
    if node.op == "call_function":
        return _OPERATORS.get(node.target)  # type: ignore[arg-type]
    if node.op == "call_method" and isinstance(node.target, str):
        name = node.target.removesuffix("_")
        is_write = name != node.target and not name.endswith("_") and hasattr(torch.Tensor, name)
        return name if is_write and name not in ("requires_grad", "detach", "resize", "copy") else None
    return None


def out_of_place_backend(backend: str) -> Callable[..., Any]:
    """The compiler's back end of this name, behind `out_of_place_graph`."""

    def compile_graph(graph_module: GraphModule, examples: Any, **kwargs: Any) -> Any:
        return torch._dynamo.lookup_backend(backend)(out_of_place_graph(graph_module), examples, **kwargs)

    return compile_graph
