"""Which model this is, by its content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

_SAMPLES = 64


def fingerprint(patcher: ModelPatcher) -> str:
    """sha256, hex: names, shapes, dtypes and 64 evenly spaced values of each weight, and the patches on it.

    Reading a whole checkpoint would take as long as loading it; two checkpoints of one family differ in
    almost every value.
    """
    h = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted(patcher.model.state_dict().items()):
            # A clone with a LoRA that was sampled with leaves its patched weights in the shared model.
            tensor = patcher.backup[name].weight if name in patcher.backup else tensor
            h.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            flat = tensor.reshape(-1)
            if flat.numel():
                step = max(1, flat.numel() // _SAMPLES)
                h.update(flat[::step][:_SAMPLES].double().cpu().numpy().tobytes())
        for key in sorted(patcher.patches):
            h.update(key.encode())
            for strength, patch, *_ in patcher.patches[key]:
                h.update(str(strength).encode())
                for weight in getattr(patch, "weights", patch if isinstance(patch, tuple) else ()) or ():
                    if isinstance(weight, torch.Tensor):
                        h.update(weight.reshape(-1)[:_SAMPLES].double().cpu().numpy().tobytes())
    return h.hexdigest()
