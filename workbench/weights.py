"""Writes a checkpoint in the SD1.5 format with generated weights.

It is a real file of a real format, that ComfyUI's CheckpointLoaderSimple reads, so that demo, tests and
benchmarks need no download. It knows no pictures: the UNet and the text encoder are random. Only the
autoencoder does its work, because latents that resemble the picture make a better test than noise.

    python -m workbench.weights OUT.safetensors --comfyui FOLDER [--seed N] [--full]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dev.host import import_comfyui

if TYPE_CHECKING:
    import numpy as np
    import torch

    Weights = dict[str, np.ndarray]

FULL_UNET: dict[str, Any] = {
    "channel_mult": [1, 2, 4, 4],
    "num_res_blocks": [2, 2, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
TINY_UNET: dict[str, Any] = {
    "channel_mult": [1, 1],
    "num_res_blocks": [1, 1],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
}
"""44 million parameters instead of 860. ComfyUI reads depth and width from the file, and knows SD1.5 by its
320 channels, its context of 768 and its convolutional proj_in, which both have."""

LATENT_SCALE = 0.18215


def write_sd15_checkpoint(path: Path, seed: int = 0, tiny: bool = True) -> Path:
    """One seed gives one file on any machine."""
    import numpy as np

    random = np.random.RandomState(seed)  # its stream is frozen, that of numpy's newer generators is not
    weights: Weights = {}
    for name, shape in _unet_shapes(TINY_UNET if tiny else FULL_UNET).items():
        weights[f"model.diffusion_model.{name}"] = _unet_weight(name, shape, random)
    for name, weight in clip_l(random).items():
        weights[f"cond_stage_model.transformer.{name}"] = weight
    for name, tensor in autoencoder().items():
        weights[f"first_stage_model.{name}"] = tensor
    return save_half(weights, path)


def save_half(weights: Weights, path: Path) -> Path:
    """Writes a safetensors file in half precision, whole or not at all."""
    import numpy as np
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: np.ascontiguousarray(w, dtype=np.float16) for name, w in weights.items()}, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


# Names and shapes, from ComfyUI's own classes. On the meta device they cost neither memory nor time.


def _unet_shapes(size: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    import comfy.ops
    import torch
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(
        **size, image_size=32, in_channels=4, out_channels=4, model_channels=320, num_heads=8,
        transformer_depth_middle=1, use_spatial_transformer=True, context_dim=768, legacy=False,
        use_linear_in_transformer=False, dtype=torch.float32, device="meta",
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return _shapes(unet)


def _clip_shapes() -> dict[str, tuple[int, ...]]:
    import comfy
    import comfy.ops
    import torch
    from comfy.clip_model import CLIPTextModel

    config = Path(comfy.ops.__file__).with_name("sd1_clip_config.json")
    sizes = json.loads(config.read_text(encoding="utf-8"))
    clip = CLIPTextModel(sizes, torch.float32, "meta", comfy.ops.disable_weight_init)
    # An SD1.5 file has no text projection: ComfyUI supplies the identity.
    return {name: shape for name, shape in _shapes(clip).items() if name.startswith("text_model.")}


def _shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


# Values.


def _unet_weight(name: str, shape: tuple[int, ...], random: np.random.RandomState) -> np.ndarray:
    """N(0, 1/fan_in), so that activations keep their size from layer to layer; norms are the identity."""
    if len(shape) == 1:
        return _norm_or_bias(name, shape)
    fan_in = 1
    for n in shape[1:]:
        fan_in *= n
    return random.standard_normal(shape) / fan_in**0.5


def clip_l(random: np.random.RandomState) -> Weights:
    """A text encoder with weights from N(0, 0.02²), as CLIP was initialised: words stay apart."""
    return {
        name: _norm_or_bias(name, shape) if len(shape) == 1 else random.standard_normal(shape) * 0.02
        for name, shape in _clip_shapes().items()
    }


def _norm_or_bias(name: str, shape: tuple[int, ...]) -> np.ndarray:
    import numpy as np

    return np.ones(shape) if name.endswith("weight") else np.zeros(shape)


def autoencoder() -> Weights:
    """An autoencoder in the layout of TAESD that shrinks by averaging and grows by repeating.

    latent = 4 (rgb - ½), eight times smaller, and mean brightness as the fourth channel; all blocks pass
    their input on: block(x) = relu(conv(x) + x) with conv = 0 and x ≥ 0.
    """
    import numpy as np

    rgb, features, channels = np.arange(3), 64, 4
    weights: Weights = {"vae_scale": np.array(LATENT_SCALE), "vae_shift": np.array(0.0)}

    def conv(name: str, n_in: int, n_out: int, bias: bool = True) -> np.ndarray:
        weights[f"{name}.weight"] = np.zeros((n_out, n_in, 3, 3))
        if bias:
            weights[f"{name}.bias"] = np.zeros(n_out)
        return weights[f"{name}.weight"]

    def block(name: str) -> None:
        for i in (0, 2, 4):
            conv(f"{name}.conv.{i}", features, features)

    encoder, decoder = "taesd_encoder", "taesd_decoder"
    conv(f"{encoder}.0", 3, features)[rgb, rgb, 1, 1] = 1
    for i in (2, 6, 10):
        # Stride 2 with a padding of 1: the taps 1 and 2 are the pixels 2i and 2i + 1.
        conv(f"{encoder}.{i}", features, features, bias=False)[rgb, rgb, 1:, 1:] = 0.25
    out = conv(f"{encoder}.14", features, channels)
    out[rgb, rgb, 1, 1] = 4
    out[3, rgb, 1, 1] = 4 / 3
    weights[f"{encoder}.14.bias"][:] = -2

    conv(f"{decoder}.1", channels, features)[rgb, rgb, 1, 1] = 0.25
    weights[f"{decoder}.1.bias"][rgb] = 0.5
    for i in (7, 12, 17):
        conv(f"{decoder}.{i}", features, features, bias=False)[rgb, rgb, 1, 1] = 1
    conv(f"{decoder}.19", features, 3)[rgb, rgb, 1, 1] = 1

    for i in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        block(f"{encoder}.{i}")
    for i in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        block(f"{decoder}.{i}")
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an SD1.5-format checkpoint with generated weights.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="860 M parameters instead of 44 M")
    args = parser.parse_args()
    import_comfyui(args.comfyui.resolve())
    write_sd15_checkpoint(args.out, args.seed, tiny=not args.full)


if __name__ == "__main__":
    main()
