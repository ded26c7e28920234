"""The held-out loss of LoRAs that are already trained, measured as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.batches import CachedSample
from ..data.cache import SampleCache
from ..data.records import Dataset
from ..embedding import changes_text
from ..runs.validation import level_losses
from .conditioning import HostTextEncoder
from .encode import HostLatentEncoder, pixel_step
from .identity import clip_fingerprint, identities, model_fingerprint, vae_fingerprint
from .kept_samples import kept
from .lora import apply_lora
from .model import borrowed
from .progress import check_interrupt

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


class HeldOut:
    """Held-out pictures, encoded once and kept in the store of the trainings."""

    def __init__(self, model: ModelPatcher, clip: CLIP, vae: VAE, dataset: Dataset) -> None:
        """dataset: its pictures of the role "validation" count."""
        self._model, self._clip = model, clip
        config = TrainConfig()
        # As training names them, so that what it has encoded is found.
        prints = model_fingerprint(model), clip_fingerprint(clip), vae_fingerprint(vae)
        names = identities(model, *prints, config)
        texts = HostTextEncoder(
            clip,
            model,
            config.objective.guidance,
            config.data.caption_syntax,
            identity=names.conditions,
            network_identity=names.network,
        )
        latents = HostLatentEncoder(vae, model, clip, identity=names.latents)
        own = [r for r in dataset.records if r.role == "validation"]
        records = [r.with_caption(texts.fitted(r.caption)) for r in own]
        with torch.inference_mode(False), kept(lambda event: None) as store:
            cache = SampleCache(
                latents=latents,
                texts=texts,
                step=pixel_step(vae, model),
                emit=lambda event: None,
                check_interrupt=check_interrupt,
                store=store,
            )
            data = cache.build(dataset.with_records(records), config) if records else None
            self._samples: Sequence[CachedSample] = (
                [sample.load() for sample in data.validation_samples] if data is not None else []
            )

    def __len__(self) -> int:
        return len(self._samples)

    def levels(self, load: Callable[[], Mapping[str, Tensor]] | None, strength: float) -> Tensor:
        """[pictures, levels]: the loss with this LoRA, little noise first; None is without one."""
        model, samples = self._model, self._samples
        with torch.inference_mode(False):
            if load is not None:
                tensors = load()
                model, patched = apply_lora(model, self._clip, tensors, strength, strength)
                if patched is not None and any(changes_text(name) for name in tensors):
                    texts = HostTextEncoder(patched, model)
                    samples = [replace(s, conditioning=texts.encode(s.caption, s.latent)) for s in samples]
            with borrowed(model) as denoiser:
                return level_losses(denoiser, samples, seed=0, batch_size=1)
