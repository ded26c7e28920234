"""Tiny networks that take control pictures, a VAE and a CLIP without weights, and a dataset with controls."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.sampler_helpers
import comfy.samplers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_flatten

from in_graph_lora.trainer.config import TrainConfig
from in_graph_lora.trainer.data.batches import CachedSample
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder
from in_graph_lora.trainer.host.model import Condition
from in_graph_lora.trainer.host.references import UNCHOSEN, Choices

from ..tiny_models import CPU, TINY, build
from ..tiny_rows import Tiny
from .family_case import Case

SIZE = 128
"""Pixels of a side of what is trained."""
PROMPT = "make it blue"


def _wider(row: str, channels: int, **changes: Any) -> Tiny:
    """With so many channels going in."""
    return replace(TINY[row], unet={**TINY[row].unet, "in_channels": channels}, from_file=False, **changes)


_OMNIGEN = {
    "hidden_size": 64, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": (8, 12, 12),
}  # fmt: skip

_MASKED_TEXT = {"cross_attn": (7, 24), "attention_mask": torch.ones(1, 7, dtype=torch.long)}

_ROWS = (
    _wider("sd15", 9, name="sd15 inpaint"),
    _wider("sd15", 8, name="sd15 pix2pix", config="SD15_instructpix2pix"),
    _wider("sdxl", 8, name="sdxl pix2pix", config="SDXL_instructpix2pix"),
    replace(TINY["flux1"], name="flux kontext"),
    _wider("flux1", 96, name="flux fill", config="FluxInpaint"),
    _wider("flux1", 32, name="flux depth"),
    replace(TINY["flux2"], name="flux2"),
    replace(TINY["hidream"], name="hidream e1"),
    replace(TINY["qwen_image"], name="qwen edit plus"),
    Tiny(
        name="longcat edit", config="LongCatImage", latent=(16, 8, 8), text={"cross_attn": (7, 24)},
        unet={**TINY["flux1"].unet, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
    ),
    Tiny(
        name="omnigen2", config="Omnigen2", latent=(16, 8, 8), text=_MASKED_TEXT,
        unet={"image_model": "omnigen2", **_OMNIGEN, "text_feat_dim": 24},
    ),
    Tiny(
        name="boogu", config="Boogu", latent=(16, 8, 8), text=_MASKED_TEXT,
        unet={"image_model": "boogu", **_OMNIGEN, "num_double_stream_layers": 1, "instruction_feat_dim": 24},
    ),
    Tiny(
        name="mage", config="MageFlow", latent=(128, 4, 4), text={"cross_attn": (7, 24)},
        unet={
            "image_model": "mage_flow", "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
            "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12),
        },
    ),
    Tiny(
        name="joyimage", config="JoyImage", latent=(16, 1, 8, 8), text={"cross_attn": (7, 24)},
        unet={
            "image_model": "joyimage", "hidden_size": 128, "num_attention_heads": 1, "text_dim": 24,
            "num_layers": 2,
        },
    ),
)  # fmt: skip

EDITS = {row.name: row for row in _ROWS}

_TOKENIZERS = {
    "qwen edit plus": "qwen_image:QwenImageTokenizer",
    "longcat edit": "longcat_image:LongCatImageTokenizer",
    "boogu": "boogu:BooguTokenizer",
    "mage": "mage_flow:MageFlowTokenizer",
    "joyimage": "joyimage:JoyImageTokenizer",
}
"""Of `comfy.text_encoders`."""


def of_comfyui(package: str, name: str) -> Any:
    """`module:Class`; an older ComfyUI than the pinned one may lack it, and the test is skipped."""
    module, kind = name.split(":")
    return getattr(pytest.importorskip(f"{package}.{module}"), kind)


class PatchVae:
    """A latent of `channels` from each patch of pixels, by fixed random numbers."""

    def __init__(self, tiny: Tiny) -> None:
        self.latent_channels = tiny.latent[0]
        self.patch = SIZE // tiny.latent[-1] if tiny.latent[0] == 128 else 8
        self.video = len(tiny.latent) == 4
        self.device, self.latent_dim = torch.device("cpu"), len(tiny.latent) - 1
        g = torch.Generator().manual_seed(0)
        self.weight = torch.randn(self.latent_channels, 3, self.patch, self.patch, generator=g) / self.patch
        self.encoded = 0

    def spacial_compression_encode(self) -> int:
        return self.patch

    def encode(self, pixels: Tensor) -> Tensor:
        """[1, H, W, 3] to [1, C, (1,) h, w]; what is left over is cut evenly, as ComfyUI does."""
        self.encoded += 1
        h, w = (s // self.patch * self.patch for s in pixels.shape[1:3])
        top, left = (pixels.shape[1] - h) // 2, (pixels.shape[2] - w) // 2
        cut = pixels[:, top : top + h, left : left + w, :3].movedim(-1, 1)
        latent = torch.nn.functional.conv2d(cut * 2 - 1, self.weight, stride=self.patch)
        return latent.unsqueeze(2) if self.video else latent


class TokenClip:
    """The family's own tokenizer where it sees pictures, and embeddings that are drawn from its tokens."""

    def __init__(self, tiny: Tiny) -> None:
        self.tiny = tiny
        self.tokenizer = SimpleNamespace(tokenize_with_weights=lambda text: text)
        if name := _TOKENIZERS.get(tiny.name):
            self.tokenizer = of_comfyui("comfy.text_encoders", name)()
        self.shown: list[list[tuple[int, ...]]] = []
        """Shapes of the pictures of each encoding."""

    def tokenize(self, text: str, **options: Any) -> Any:
        return self.tokenizer.tokenize_with_weights(text, **options)

    def encode_from_tokens_scheduled(self, tokens: Any, show_pbar: bool = True) -> list[Any]:
        leaves, _ = tree_flatten(tokens)
        h = hashlib.sha256()
        for leaf in leaves:
            h.update(leaf.contiguous().numpy().tobytes() if isinstance(leaf, Tensor) else repr(leaf).encode())
        self.shown.append([tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)])
        g = torch.Generator().manual_seed(int.from_bytes(h.digest()[:7]))
        made = {
            name: what if isinstance(what, Tensor) else torch.randn(1, *what, generator=g)
            for name, what in self.tiny.text.items()
        }
        return [[made.pop("cross_attn"), made]]


@dataclass
class Edit:
    """A tiny model with what belongs to it."""

    name: str
    device: torch.device = CPU

    def __post_init__(self) -> None:
        self.tiny = EDITS[self.name]
        self.patcher = build(self.tiny, device=self.device)
        self.vae: Any = PatchVae(self.tiny)
        self.clip: Any = TokenClip(self.tiny)
        self.texts = HostTextEncoder(self.clip, self.patcher)

    def samples(
        self, dataset: Dataset, config: TrainConfig | None = None, choices: Choices = UNCHOSEN
    ) -> list[CachedSample]:
        """As a run encodes them."""
        cache = SampleCache(
            latents=HostLatentEncoder(self.vae, self.patcher, self.clip, choices),
            texts=self.texts,
            step=64,
            emit=lambda event: None,
            check_interrupt=lambda: None,
        )
        with torch.inference_mode(False):
            built = cache.build(dataset, config or TrainConfig())
            return [sample.load() for sample in built.samples]

    def sampled(self, positive: list[Any], latent: Tensor) -> Condition:
        """The network's arguments for the conditioning of a graph, by ComfyUI's own sampling code."""
        noise = latent[None]
        conds = comfy.sampler_helpers.convert_cond(positive)
        if self.patcher.model.model_config.unet_config.get("guidance_embed"):
            conds[0]["guidance"] = 1.0  # a FluxGuidance node
        conds = comfy.samplers.encode_model_conds(
            self.patcher.model.extra_conds, conds, noise, noise.device, "positive",
            latent_image=noise, denoise_mask=None, seed=None, latent_shapes=None,
        )  # fmt: skip
        made = conds[0]["model_conds"]
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in made.items()}


def same(a: Condition, b: Condition) -> list[str]:
    """Names of the arguments that differ in a bit, or that one lacks."""
    return sorted(n for n in a.keys() | b.keys() if n not in a or n not in b or not _equal(a[n], b[n]))


def _equal(a: Any, b: Any) -> bool:
    (left, shape), (right, other) = tree_flatten(a.cond), tree_flatten(b.cond)
    return (
        type(a) is type(b)
        and shape == other
        and all(
            torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(left, right, strict=True)
        )
    )


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def loaded(path: Path) -> Tensor:
    """[1, H, W, 3], as LoadImage gives it."""
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")).astype(np.float32) / 255.0)[None]


class EditCase(Case):
    """With the condition of a picture that has a control picture, and one without for comparison."""

    def __init__(self, name: str, folder: Path, device: torch.device = CPU) -> None:
        e = Edit(name, device)
        self.name, self.device, self.patcher = name, device, e.patcher
        self.sampling = e.patcher.model.model_sampling
        [sample] = e.samples(scan_folder(folder, resolution=SIZE))
        with torch.inference_mode(False):
            self.x_0 = torch.stack([sample.latent] * 2)
            for reference in (sample.conditioning[n] for n in {"ref_latents"} & sample.conditioning.keys()):
                reference.cond = [latent[..., :16, :16] for latent in reference.cond]  # for speed
            self.conditioning = [sample.conditioning] * 2
            self.plain = [e.texts.encode("", sample.latent)] * 2


def pair(folder: Path) -> Path:
    """A picture with a control picture, a mask and a caption."""
    for seed, name in enumerate(("a", "a-control", "a-masklabel")):
        picture(folder / f"{name}.png", (SIZE, SIZE), seed)
    (folder / "a.txt").write_text(PROMPT)
    return folder
