"""Pictures by ComfyUI's own sampler."""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import node_helpers
import torch
from PIL import Image
from torch import Tensor

from ..config import PreviewConfig
from ..data.clip_spans import frame_rate
from ..data.pixels import first_frame
from ..data.records import Dataset, ImageRecord
from ..errors import ModelError
from ..pictures.drawing import to_pil
from .encode import clip_step
from .references import UNCHOSEN, Choices, ControlEncoder, HostControls, to_sample

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSettings:
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
    frames: int = 1
    """Of a video model; rounded down to what its VAE takes."""


def empty_latent(model: ModelPatcher, vae: VAE, width: int, height: int, frames: int = 1) -> Tensor:
    """[1, C, H, W] or [1, C, T, H, W], zeros: as the stock node of the model's family makes it.

    frames: at least 1. Raises ModelError for more than one where the model has no time.
    """
    latent = torch.zeros([1, 4, height // 8, width // 8])
    latent = comfy.sample.fix_empty_latent_channels(model, latent, 8)
    if frames == 1:
        return latent
    step = clip_step(vae, model)
    if not step:
        name = type(model.model).__name__
        raise ModelError(f"frames is {frames} but {name} with this VAE makes still pictures; set frames to 1")
    return latent.repeat(1, 1, 1 + (frames - 1) // step, 1, 1)


def encode_prompt(
    clip: CLIP,
    text: str,
    references: HostControls | None = None,
    *,
    negative: bool = False,
    frame_rate: float | None = None,
) -> list[Any]:
    """As the stock CLIPTextEncode does, or the stock node for these control pictures; with a frame rate, as
    LTXVConditioning behind it."""
    values: dict[str, Any] = {"frame_rate": frame_rate} if frame_rate else {}
    if references is None:
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    else:
        encoded = references.encode_text(clip, text, negative=negative)
        values |= references.written
    return node_helpers.conditioning_set_values(encoded, values) if values else encoded


def sample_image(
    model: ModelPatcher,
    vae: VAE,
    positive: list[Any],
    negative: list[Any],
    seed: int,
    settings: SampleSettings,
    on_step: Callable[[int, int], None] | None = None,
    references: HostControls | None = None,
) -> Tensor:
    """[1, H, W, 3] in 0..1: the picture that EmptyLatentImage, KSampler and VAEDecode give for this seed.

    Of a clip the first, the middle and the last frame, side by side. references: that the prompts were
    encoded with; some are a part of the latent.
    """
    given = references.given if references else None
    if given is None:
        latent = empty_latent(model, vae, settings.width, settings.height, settings.frames)
    else:
        latent = given["samples"]
    noise = comfy.sample.prepare_noise(latent, seed)

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        if on_step is not None:
            on_step(step + 1, total)

    samples = comfy.sample.sample(
        model,
        noise,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        latent,
        noise_mask=given["noise_mask"] if given else None,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    images = vae.decode(samples)
    images = images.reshape(-1, *images.shape[-3:])
    shown = dict.fromkeys((0, (len(images) - 1) // 2, len(images) - 1) if settings.frames > 1 else (0,))
    return torch.cat([images[i] for i in shown], dim=1)[None].clamp(0, 1)


class PreviewSampler:
    """The engine's `Sampler`: draws as KSampler does, and leaves the model without the LoRA."""

    def __init__(
        self,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        config: PreviewConfig,
        dataset: Dataset,
        choices: Choices = UNCHOSEN,
    ) -> None:
        """dataset: gives the size where the config leaves it open, and the control pictures: each prompt has
        those of one picture, of a held-out one where there are any."""
        self.model, self.clip, self.vae, self.config = model, clip, vae, config
        self._choices = choices
        size = dataset.resolution
        self.prompts: Sequence[str] = config.all_prompts
        self._settings = SampleSettings(
            steps=config.steps,
            cfg=config.cfg,
            sampler_name=config.sampler_name,
            scheduler=config.scheduler,
            width=config.width or size,
            height=config.height or size,
            frames=config.frames,
        )
        self.frame_rate = frame_rate(dataset)
        told = f" {self.frame_rate:g} fps" if self.frame_rate else ""
        self.settings = f"{config.negative!r} seed {config.seed} {self._settings}{told}"
        own = [r for r in dataset.records if r.role != "class"]
        controlled = [r for r in own if r.controls or r.first_frame]
        held_out = [r for r in controlled if r.role == "validation"]
        shown = held_out or controlled
        self._shown = [shown[i % len(shown)] for i in range(len(self.prompts))] if shown else []
        if self._shown:
            self.settings += f" controls {[c.digest for r in self._shown for c in r.controls or (r,)]}"

    def pictures(self, lora: Mapping[str, Tensor] | None) -> Generator[Image.Image]:
        from .lora import apply_lora  # brings peft, and nodes take this module's lists at start-up

        try:
            with torch.inference_mode():
                gc.collect()  # of the training: optimizers and adapters hold themselves in circles
                mm.soft_empty_cache()
                model, clip = self.model, self.clip
                if lora is not None:
                    model, patched = apply_lora(model, clip, lora, 1.0, 1.0)
                    clip = patched or clip
                shown = self._controls()
                unwanted = {
                    c: encode_prompt(clip, self.config.negative, c, negative=True, frame_rate=self.frame_rate)
                    for c in dict.fromkeys(shown)
                }
                encoded = [
                    encode_prompt(clip, p, c, frame_rate=self.frame_rate)
                    for p, c in zip(self.prompts, shown, strict=True)
                ]
            for i, (positive, c) in enumerate(zip(encoded, shown, strict=True)):
                negative, seed = unwanted[c], (self.config.seed + i) % 2**64
                with torch.inference_mode():  # not across a yield: it belongs to the thread
                    image = sample_image(
                        model, self.vae, positive, negative, seed, self._settings, references=c
                    )
                yield to_pil(image)
        finally:
            with torch.inference_mode():
                mm.load_models_gpu([self.model])  # takes the LoRA out of the shared weights

    def _controls(self) -> list[HostControls | None]:
        """For each prompt."""
        if not self._shown:
            return [None] * len(self.prompts)
        encoder = ControlEncoder(self.model, self.vae, self.clip, self._choices)
        size = self._settings.width, self._settings.height
        if not encoder.draws_with_pictures:
            return [None] * len(self.prompts)
        return [encoder(to_sample(_shown(r), size, self._settings.frames)) for r in self._shown]


def _shown(record: ImageRecord) -> Sequence[Path | Image.Image]:
    return [c.path for c in record.controls] or [first_frame(record)]
