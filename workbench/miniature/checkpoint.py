"""Writes the base model as a checkpoint in the SD3 format, which ComfyUI's CheckpointLoaderSimple reads.

The weights of network and autoencoder are stored beside this file; those of CLIP-L come from a seed.

    python -m workbench.miniature.checkpoint OUT.safetensors --comfyui FOLDER
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..dev.host import import_comfyui

if TYPE_CHECKING:
    import numpy as np

WEIGHTS = Path(__file__).parent / "weights"
CONTEXT_WIDTH, POOLED_WIDTH = 4096, 2048


def write_checkpoint(path: Path, weights: Path = WEIGHTS) -> Path:
    """Needs `comfy` to be importable, no server. Same weights, same file."""
    import numpy as np
    from safetensors.numpy import load_file

    from ..weights import clip_l, save_half
    from .text import CLIP_SEED

    tensors: dict[str, np.ndarray] = {}
    for name, weight in load_file(weights / "network.safetensors").items():
        tensors[f"model.diffusion_model.{name}"] = _widened(name, weight)
    for name, weight in load_file(weights / "autoencoder.safetensors").items():
        tensors[f"first_stage_model.{name}"] = weight
    for name, weight in clip_l(np.random.RandomState(CLIP_SEED)).items():
        tensors[f"text_encoders.clip_l.transformer.{name}"] = weight
    return save_half(tensors, path)


def is_current(path: Path) -> bool:
    """Whether the checkpoint is there, and was written after the stored weights."""
    stored = max(weights.stat().st_mtime for weights in WEIGHTS.iterdir())
    return path.exists() and path.stat().st_mtime >= stored


def _widened(name: str, weight: np.ndarray) -> np.ndarray:
    """SD3 leaves room for CLIP-G and T5 beside CLIP-L; what reads that room is zero, and not stored."""
    import numpy as np

    width = {"context_embedder.weight": CONTEXT_WIDTH, "y_embedder.mlp.0.weight": POOLED_WIDTH}.get(name)
    return weight if width is None else np.pad(weight, ((0, 0), (0, width - weight.shape[1])))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the miniature base model.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    args = parser.parse_args()
    import_comfyui(args.comfyui.resolve())
    write_checkpoint(args.out)


if __name__ == "__main__":
    main()
