"""Less memory for more time: gradient checkpointing, block by block.

A checkpointed block keeps its inputs only and runs again in the backward pass (Chen et al. 2016).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ModelError
from .blocks import replaced_forward


@contextmanager
def checkpointed(
    blocks: Sequence[nn.Module], every: int, always: Collection[nn.Module] = ()
) -> Iterator[None]:
    """Each `every`-th block is checkpointed: 0 none, 1 all, 2 every other, beginning with the first.

    always: blocks that are checkpointed whatever their number.

    Raises ModelError in the first forward pass when a block overwrites values that autograd needs: its
    recomputation would give wrong gradients, and in silence.
    """
    with ExitStack() as stack:
        for i, block in enumerate(blocks):
            if (every and i % every == 0) or block in always:
                stack.enter_context(replaced_forward(block, _checkpoint(block)))
        yield


def _checkpoint(block: nn.Module) -> Callable[..., Any]:
    forward = block.forward
    checked = False

    def checkpointed_forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        dropout = _has_dropout(block)
        if not checked:
            with torch.random.fork_rng(enabled=dropout):
                _refuse_overwriting(block, forward, *_fresh(args, kwargs))
            checked = True
        # A block may write into the dicts that it is given, and the network writes into them between blocks:
        # the recomputation gets them as they are now.
        as_now = _fresh(args, kwargs)
        first = True

        def run(*tensors: Any, **options: Any) -> Any:
            nonlocal first
            if first:
                first = False
                return forward(*tensors, **options)
            again_args, again_kwargs = _fresh(*as_now)
            merged = [a if isinstance(a, dict) else t for t, a in zip(tensors, again_args, strict=True)]
            return forward(*merged, **again_kwargs)

        try:
            return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=dropout, **kwargs)
        except BaseException as error:
            # Hooks that torch leaves on, and the tensors of the pass, would live as long as the traceback.
            traceback.clear_frames(error.__traceback__)
            raise

    checkpointed_forward.__wrapped__ = forward  # type: ignore[attr-defined]
    return checkpointed_forward


def _fresh(args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The same arguments, dicts among them copied."""

    def copy(value: Any) -> Any:
        return dict(value) if isinstance(value, dict) else value

    return [copy(a) for a in args], {k: copy(v) for k, v in kwargs.items()}


def _has_dropout(block: nn.Module) -> bool:
    kind = nn.modules.dropout._DropoutNd
    return any(isinstance(m, kind) and m.training and m.p > 0 for m in block.modules())


def _refuse_overwriting(
    block: nn.Module, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Run the block once and compare the versions of what it was given and of what autograd has saved."""
    needed = [(t, t._version) for t in _tensors([*args, *kwargs.values()])]

    def pack(t: Tensor) -> Tensor:
        t = t.detach()  # with its place in the graph it would hold itself, and stay for ever
        needed.append((t, t._version))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward(*args, **kwargs)
    if any(t._version != version for t, version in needed):
        raise ModelError(
            f"{type(block).__name__} overwrites values in place that its gradients need, so it cannot be"
            " recomputed; set gradient checkpointing and streamed to 0 (off)"
        )


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for v in values:
        if isinstance(v, Tensor):
            yield v
        elif isinstance(v, (list, tuple)):
            yield from _tensors(v)
