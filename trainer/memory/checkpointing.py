"""Less memory for more time: gradient checkpointing, block by block.

A checkpointed block keeps its inputs only and runs again in the backward pass (Chen et al. 2016).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from ..devices import random_kept
from ..errors import ModelError
from .blocks import replaced_forward
from .offloading import Offload


@contextmanager
def checkpointed(
    blocks: Sequence[nn.Module],
    every: int,
    always: Collection[nn.Module] = (),
    offload: Offload | None = None,
) -> Iterator[None]:
    """Each `every`-th block is checkpointed: 0 none, 1 all, 2 every other, beginning with the first.

    always: blocks that are checkpointed whatever their number. offload: keeps their inputs in host memory.

    Raises ModelError in the first forward pass when a block overwrites values that autograd needs: its
    recomputation would give wrong gradients, and in silence.
    """
    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            if (every and i % every == 0) or block in always:
                stack.enter_context(replaced_forward(block, _checkpoint(block, offload)))
        yield


def _checkpoint(block: nn.Module, offload: Offload | None) -> Callable[..., Any]:
    forward = block.forward
    checked = False

    def checkpointed_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        dropout = _has_dropout(block)
        # A block may write into the dicts that it is given, and the network writes into them between blocks:
        # the recomputation gets them as they are now. Tensors are autograd's to keep, and nobody else's.
        values, structure = tree_flatten((args, kwargs))
        where = [i for i, v in enumerate(values) if isinstance(v, Tensor) and not v.is_inference()]
        tensors = [values[i] for i in where]
        if not checked:
            device = next((t.device for t in tensors), torch.device("cpu"))
            with random_kept(device, enabled=dropout):
                _refuse_overwriting(block, forward, tree_unflatten(values, structure), tensors)
            checked = True
        for i in where:
            values[i] = None
        given = [(args, kwargs)]

        def run(*tensors: Tensor) -> Any:
            if given:
                now_args, now_kwargs = given.pop()
                return forward(*now_args, **now_kwargs)
            again = list(values)
            for i, tensor in zip(where, tensors, strict=True):
                again[i] = tensor
            again_args, again_kwargs = tree_unflatten(again, structure)
            return forward(*again_args, **again_kwargs)

        try:
            with offload.block() if offload else nullcontext():
                return checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=dropout)
        except BaseException as error:
            # Hooks that torch leaves on, and the tensors of the pass, would live as long as the traceback.
            traceback.clear_frames(error.__traceback__)
            raise

    checkpointed_forward.__wrapped__ = forward  # type: ignore[attr-defined]
    return checkpointed_forward


def _has_dropout(block: nn.Module) -> bool:
    kind = nn.modules.dropout._DropoutNd
    return any(isinstance(m, kind) and m.training and m.p > 0 for m in block.modules())


def _refuse_overwriting(
    block: nn.Module, forward: Callable[..., Any], given: Any, tensors: Sequence[Tensor]
) -> None:
    """Run the block once and compare the versions of what it was given and of what autograd has saved.

    given: args and kwargs. tensors: those among them.
    """
    args, kwargs = given
    needed = [(t, t._version) for t in tensors]

    def pack(t: Tensor) -> None:
        needed.append((t, t._version))

    # Nothing is unpacked, for no gradients are asked for. What the hook holds holds the hook: it is let go.
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            forward(*args, **kwargs)
        overwritten = any(t._version != version for t, version in needed)
    finally:
        needed.clear()
    if overwritten:
        raise ModelError(
            f"{type(block).__name__} overwrites values in place that its gradients need, so it cannot be"
            " recomputed; set gradient checkpointing and streamed to 0 (off)"
        )
