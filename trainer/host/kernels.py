"""Operations with a backward pass in place of ComfyUI's kernels that have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from comfy.ldm.modules.attention import attention_pytorch


def attention(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """For `transformer_options["optimized_attention_override"]`: always PyTorch's own attention.

    The host's may have no backward pass (SageAttention), or may cut the work into pieces by the memory that
    is free, which differs between the forward pass and its recomputation.
    """
    return attention_pytorch(*args, **kwargs)


@contextmanager
def differentiable_kernels() -> Iterator[None]:
    """Rotary embeddings, with or without the normalisation fused in, as plain tensor operations.

    Some networks call the fused kernels in training too (Cosmos-Predict2, Anima).
    """
    try:
        import comfy_kitchen
        from comfy_kitchen.backends.eager import rope
    except ImportError:  # an older ComfyUI, which has no such kernels
        yield
        return
    plain = {
        name: f
        for name, f in vars(rope).items()
        if callable(f) and "rope" in name and not name.startswith("_") and not name.endswith("_")
    }
    fused = {name: getattr(comfy_kitchen, name) for name in plain if hasattr(comfy_kitchen, name)}
    try:
        for name in fused:
            setattr(comfy_kitchen, name, plain[name])
        yield
    finally:
        for name, f in fused.items():
            setattr(comfy_kitchen, name, f)
