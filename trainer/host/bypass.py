"""LoRAs that nodes have put around layers instead of into weights (ComfyUI's bypass loaders).

They are injections of the patcher: each replaces the forward pass of its layers while the model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .staging import alias

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher


@contextmanager
def beneath_injections(loan: ExitStack, patcher: ModelPatcher) -> Iterator[None]:
    """Forward passes that are replaced within the block, by contexts of the loan, are what injections call.

    The other way round a layer's gradient would miss what an injection adds to it.
    """
    injected = patcher.is_injected
    loan.enter_context(patcher.use_ejected())
    yield
    if injected:
        patcher.inject_model()
        loan.callback(patcher.eject_model)
        loan.enter_context(_ordinary_weights(patcher.model))


@contextmanager
def _ordinary_weights(model: nn.Module) -> Iterator[None]:
    """Adapters loaded in inference mode hold tensors that autograd refuses to save."""
    before: list[tuple[Any, Any]] = []
    try:
        for module in model.modules():
            owner = getattr(vars(module).get("forward"), "__self__", None)
            adapter = getattr(owner, "adapter", None)
            weights = getattr(adapter, "weights", None)
            if isinstance(weights, (tuple, list)):
                before.append((adapter, weights))
                adapter.weights = type(weights)(_ordinary(w) for w in weights)  # type: ignore[union-attr]
        yield
    finally:
        for adapter, weights in before:
            adapter.weights = weights


def _ordinary(value: Any) -> Any:
    return alias(value) if isinstance(value, Tensor) and torch.is_inference(value) else value
