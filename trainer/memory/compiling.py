"""Less time: torch.compile, block by block.

The compiler functionalises a graph only after autograd has traced it, and autograd refuses to trace a write
over a value that it needs: so writes in place are taken out of the traced graph before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from .blocks import replaced_forward
from .in_place import TWINS

_SHAPES = 64
"""For how many shapes a function is compiled; the compiler leaves the rest of them as they are. What follows
a quantised layer is a function of its own, and a block has more layers than torch's default of 8."""


@contextmanager
def compiled(blocks: Sequence[nn.Module], backend: str = "inductor") -> Iterator[None]:
    """Each block's own forward pass under `torch.compile`. To be entered before `checkpointed`.

    Writes into the block's inputs go to copies of them.
    """
    rewriting = out_of_place_backend(backend)
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(cache_size_limit=_SHAPES))
        for block in blocks:
            stack.enter_context(replaced_forward(block, torch.compile(_on_copies(block), backend=rewriting)))
        yield


def _on_copies(block: nn.Module) -> Callable[..., Any]:
    forward = type(block).forward

    def forward_on_copies(*args: Any, **kwargs: Any) -> Any:
        args = tuple([a.clone() if isinstance(a, Tensor) else a for a in args])
        kwargs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in kwargs.items()}
        return forward(block, *args, **kwargs)

    return forward_on_copies


def out_of_place_graph(graph_module: GraphModule) -> GraphModule:
    """The same graph without writes into tensors that are no views; writes into views stay."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        twin = _twin(node)
        if twin is None:
            continue
        x: Any = node.args[0]
        with graph.inserting_before(node):
            value = graph.call_function(twin, node.args, node.kwargs)
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


def _twin(node: Node) -> Callable[..., Any] | None:
    """What computes the value that an in-place node writes; None for all other nodes."""
    x: Any = node.args[0] if node.args else None
    example: Any = x.meta.get("example_value") if isinstance(x, Node) else None
    if not isinstance(example, Tensor) or example._is_view():
        return None
    if node.op == "call_function":
        return TWINS.get(node.target)  # type: ignore[arg-type]
    return TWINS.get(getattr(Tensor, str(node.target), None)) if node.op == "call_method" else None  # type: ignore[arg-type]


def out_of_place_backend(backend: str) -> Callable[..., Any]:
    """The compiler's back end of this name, behind `out_of_place_graph`."""

    def compile_graph(graph_module: GraphModule, examples: Any, **kwargs: Any) -> Any:
        return torch._dynamo.lookup_backend(backend)(out_of_place_graph(graph_module), examples, **kwargs)

    return compile_graph
