"""Judges that are at hand: the CLIP_VISION of the graph, or a transformers folder. Never a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.clip_model
import comfy.model_management as mm
import torch
from PIL import Image
from torch import Tensor

from ..errors import ModelError
from ..pictures.drawing import to_tensor
from .digest import digest

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel


def judge_of(
    clip_vision: ClipVisionModel | None, folder: Path | None
) -> ClipVisionJudge | FolderJudge | None:
    """The folder before the socket, since only it may read; None without both."""
    if folder is not None:
        return FolderJudge(folder)
    return ClipVisionJudge(clip_vision) if clip_vision is not None else None


class ClipVisionJudge:
    """What CLIPVisionLoader loads: CLIP, SigLIP, SigLIP 2, DINOv2, DINOv3.

    Its network is asked, not `encode_image`, which fails for DINOv3: that gives no second output.
    """

    reads = False

    def __init__(self, clip_vision: ClipVisionModel) -> None:
        self.clip_vision = clip_vision
        self.name = clip_vision.model_type
        self.digest = digest(clip_vision.model)[0][:16]

    def leave_device(self) -> None:
        """ComfyUI does that, where there is need."""

    @torch.inference_mode()
    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[N, D] fp32 on the CPU: the projected class token, or the mean token of networks without one."""
        own = self.clip_vision
        mm.load_model_gpu(own.patcher)
        prepared = [self._prepared(picture) for picture in pictures]
        one_size = len({p.shape for p in prepared}) == 1  # SigLIP 2 keeps the aspect
        return torch.cat([self._seen(p) for p in ([torch.cat(prepared)] if one_size else prepared)])

    def _seen(self, pixels: Tensor) -> Tensor:
        pooled = self.clip_vision.model(pixel_values=pixels, intermediate_output=-2)[2].float()
        return (pooled.mean(1) if pooled.ndim == 3 else pooled).cpu()

    def read(self, texts: Sequence[str]) -> Tensor:
        raise ModelError(f"{self.name} has no text encoder; name a folder of CLIP or SigLIP in judge_folder")

    def _prepared(self, picture: Image.Image) -> Tensor:
        own = self.clip_vision
        image, look = to_tensor(picture).to(own.load_device), dict(mean=own.image_mean, std=own.image_std)
        if own.model_type == "siglip2_vision_model":
            patch, patches = own.config.get("patch_size", 16), own.config.get("num_patches", 256)
            return comfy.clip_model.siglip2_preprocess(
                image, size=own.image_size, patch_size=patch, num_patches=patches, crop=True, **look
            ).float()
        return comfy.clip_model.clip_preprocess(image, size=own.image_size, crop=True, **look).float()


class _Folder:
    """A model of transformers in a folder, which ComfyUI does not manage."""

    def __init__(self, folder: Path, kind: str, socket: str) -> None:
        """kind: the Auto class. socket: the input that names the folder. Raises ModelError."""
        import transformers

        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{folder} has no config.json; name a folder of a transformers model in {socket}"
            )
        self.name = folder.name

        def part(kind: str, **more: Any) -> Any:
            made = getattr(transformers, kind).from_pretrained
            return made(folder, local_files_only=True, trust_remote_code=False, **more)

        try:
            self.model: Any = part(kind, use_safetensors=True).eval()
            self.processor: Any = part("AutoImageProcessor")
            self.reads = hasattr(self.model, "get_text_features")
            self.tokenizer: Any = part("AutoTokenizer") if self.reads else None
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(
                f"{folder} cannot be loaded ({error}); choose another folder for {socket}"
            ) from error
        self.digest = digest(self.model)[0][:16]

    def on_device(self) -> Any:
        device = mm.text_encoder_device()
        if self.model.device != device:
            mm.free_memory(sum(p.nbytes for p in self.model.parameters()), device)
            self.model.to(device)
        return self.model

    def leave_device(self) -> None:
        """What ComfyUI does not manage would stay there beside a training."""
        self.model.to("cpu")

    def pixels(self, pictures: Sequence[Image.Image]) -> Any:
        own = self.processor(images=[p.convert("RGB") for p in pictures], return_tensors="pt")
        return own.to(self.model.device)


class FolderClassifier(_Folder):
    """Of which class is a picture? For the inception score."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "AutoModelForImageClassification", "classifier_folder")
        if self.model.config.num_labels < 2:
            raise ModelError(f"{self.name} knows one class only; name another folder in classifier_folder")

    @torch.inference_mode()
    def logits(self, pictures: Sequence[Image.Image]) -> Tensor:
        """[N, classes] fp32 on the CPU."""
        model = self.on_device()
        return model(**self.pixels(pictures)).logits.float().cpu()


class FolderJudge(_Folder):
    """With text where it has get_text_features (CLIP, SigLIP)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "AutoModel", "judge_folder")

    @torch.inference_mode()
    def see(self, pictures: Sequence[Image.Image]) -> Tensor:
        model = self.on_device()
        pixels = self.pixels(pictures)
        found = (
            model.get_image_features(**pixels) if hasattr(model, "get_image_features") else model(**pixels)
        )
        return _pooled(found).float().cpu()

    @torch.inference_mode()
    def read(self, texts: Sequence[str]) -> Tensor:
        if not self.reads:
            raise ModelError(
                f"{self.name} has no text encoder; name a folder of CLIP or SigLIP in judge_folder"
            )
        model = self.on_device()
        length = getattr(model.config.text_config, "max_position_embeddings", 77)
        tokens = self.tokenizer(
            list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        return _pooled(model.get_text_features(**tokens.to(model.device))).float().cpu()


def _pooled(found: Any) -> Tensor:
    """What differs between versions of transformers and kinds of models."""
    if isinstance(found, Tensor):
        return found
    pooled = getattr(found, "pooler_output", None)
    return pooled if pooled is not None else found.last_hidden_state[:, 0]
