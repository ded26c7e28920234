"""Latents and conditions of a dataset, computed once before the first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..config import TrainConfig
from ..errors import DatasetError, shortened
from ..events import Emit, Notice, Phase
from ..ports import LatentEncoder, TextEncoder
from .batches import CachedSample
from .images import open_image
from .pixels import pixels
from .records import Dataset, ImageRecord
from .views import View, views


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run trains on. Class samples are there when the objective keeps the class by pictures."""

    samples: Sequence[CachedSample]
    class_samples: Sequence[CachedSample] = ()
    validation_samples: Sequence[CachedSample] = ()
    """Held out: never trained on."""


def cut_to_fit(
    dataset: Dataset, config: TrainConfig, texts: TextEncoder, emit: Emit
) -> tuple[Dataset, TrainConfig]:
    """Captions and class prompt as far as they can be encoded. Says which are cut."""
    prompt = config.prior.class_prompt
    named = [("class_prompt", prompt), *((r.name, r.caption) for r in dataset.records)]
    fitted = {text: texts.fitted(text) for text in {text for _, text in named}}
    cut = [(name, text) for name, text in named if text != fitted[text]]
    if not cut:
        return dataset, config
    told = shortened(f"{name} ({len(text)} characters to {len(fitted[text])})" for name, text in cut)
    emit(Notice(message=f"captions longer than can be encoded are cut: {told}"))
    return (
        dataset.with_records(r.with_caption(fitted[r.caption]) for r in dataset.records),
        replace(config, prior=replace(config.prior, class_prompt=fitted[prompt])),
    )


@dataclass(frozen=True, kw_only=True)
class SampleCache:
    """Encodes records by the host's VAE and text encoder."""

    latents: LatentEncoder
    texts: TextEncoder
    step: int
    """What the sides in pixels are multiples of."""
    emit: Emit
    check_interrupt: Callable[[], None]

    def build(self, dataset: Dataset, config: TrainConfig, *, train_text: bool = False) -> TrainingData:
        """The pictures first and the captions then, so that VAE and text encoder are not loaded in turns."""
        prior = config.prior.uses_pictures
        records = [r for r in dataset.records if r.role != "class" or prior]
        encoded = []
        for i, record in enumerate(records):
            self._progress("encoding pictures", i, len(records))
            encoded += [
                (record, *self._encode_picture(record, view))
                for view in views(record, resolution=dataset.resolution, step=self.step)
            ]
        samples: dict[str, list[CachedSample]] = {"instance": [], "class": [], "validation": []}
        for i, (record, latent, mask) in enumerate(encoded):
            self._progress("encoding captions", i, len(encoded))
            sample = self._with_text(record, latent, mask, config, train_text)
            samples[record.role].append(sample)
        return TrainingData(
            samples=samples["instance"],
            class_samples=samples["class"],
            validation_samples=samples["validation"],
        )

    def _progress(self, name: str, done: int, total: int) -> None:
        self.check_interrupt()
        self.emit(Phase(name=name, done=done, total=total))

    def _encode_picture(self, record: ImageRecord, view: View) -> tuple[Tensor, Tensor | None]:
        latent = self.latents.encode(pixels(record, view))
        if not latent.isfinite().all():
            raise DatasetError(
                f"{record.name}: the VAE gives NaN or infinite latents; run the VAE in fp32"
                " (start ComfyUI with --fp32-vae) or use a VAE that is safe in fp16"
            )
        if record.mask is None:
            return latent, None
        white = view.cut(open_image(record.mask)).mean(-1)
        mask = adaptive_avg_pool2d(white[None], (latent.shape[-2], latent.shape[-1]))  # [1, h, w]
        return latent, mask.reshape(1, *[1] * (latent.ndim - 3), *mask.shape[-2:])

    def _with_text(
        self, record: ImageRecord, latent: Tensor, mask: Tensor | None, config: TrainConfig, live: bool
    ) -> CachedSample:
        objective, prior, encode = config.objective, config.prior, self.texts.encode
        with torch.no_grad():
            return CachedSample(
                latent=latent,
                conditioning=None if live else encode(record.caption, latent),
                key=record.digest,
                caption=record.caption,
                repeats=record.repeats,
                weight=record.weight,
                mask=mask,
                empty=encode("", latent) if objective.caption_dropout and not live else None,
                class_conditioning=(encode(prior.class_prompt, latent) if prior.preserves_output else None),
            )
