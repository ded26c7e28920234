"""The held-out loss of LoRAs that are already trained, measured as in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import ObjectiveConfig, TrainConfig
from ..data.batches import CachedSample
from ..data.cache import SampleCache
from ..data.clip_spans import frame_rate
from ..data.records import Dataset
from ..embedding import changes_text
from ..runs.validation import level_losses
from .as_trained import computing_in
from .conditioning import HostTextEncoder
from .encode import HostLatentEncoder, pixel_step
from .identity import clip_fingerprint, identities, model_fingerprint, vae_fingerprint
from .kept_samples import kept
from .lora import apply_lora
from .model import borrowed
from .progress import check_interrupt
from .references import UNCHOSEN, Choices

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


class HeldOut:
    """Held-out pictures and clips, encoded once and kept in the store of the trainings."""

    def __init__(
        self,
        model: ModelPatcher,
        clip: CLIP,
        vae: VAE,
        dataset: Dataset,
        trained: TrainConfig | None = None,
        choices: Choices = UNCHOSEN,
    ) -> None:
        """dataset: what `as_trained` gives; its records of the role "validation" count. trained: settings of
        the training, of which those count that decide what a held-out picture becomes, and the seed."""
        trained = trained or TrainConfig()
        self._config = TrainConfig(
            seed=trained.seed,
            objective=ObjectiveConfig(guidance=trained.objective.guidance),
            data=trained.data,
            memory=replace(TrainConfig().memory, precision=trained.memory.precision),
        )
        self._model, self._clip, self._vae, self._choices = model, clip, vae, choices
        self._rate = frame_rate(dataset)
        # As training names them, so that what it has encoded is found.
        prints = model_fingerprint(model), clip_fingerprint(clip), vae_fingerprint(vae)
        self._names = identities(model, *prints, self._config, self._rate)
        self._texts = self._text_encoder(clip, model, self._names.conditions, self._names.network)
        own = (r for r in dataset.records if r.role == "validation")
        self._dataset = dataset.with_records(r.with_caption(self._texts.fitted(r.caption)) for r in own)
        self._samples = self._encoded(text_later=False)

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
                    texts = self._text_encoder(patched, model)
                    samples = [_read_by(texts, sample) for sample in self._without_text]
            with borrowed(computing_in(model, self._config.memory.precision)) as denoiser:
                return level_losses(denoiser, samples, seed=self._config.seed, batch_size=1)

    def _text_encoder(
        self, clip: CLIP, model: ModelPatcher, identity: str = "", network_identity: str = ""
    ) -> HostTextEncoder:
        return HostTextEncoder(
            clip,
            model,
            self._config.objective.guidance,
            self._config.data.caption_syntax,
            self._rate,
            identity=identity,
            network_identity=network_identity,
        )

    @cached_property
    def _without_text(self) -> Sequence[CachedSample]:
        """With what the text encoder is shown beside the caption."""
        return self._encoded(text_later=True)

    def _encoded(self, *, text_later: bool) -> Sequence[CachedSample]:
        if not self._dataset.records:
            return []
        model, vae = self._model, self._vae
        with torch.inference_mode(False), kept(lambda event: None) as store:
            cache = SampleCache(
                latents=HostLatentEncoder(
                    vae, model, self._clip, self._choices, identity=self._names.latents
                ),
                texts=self._texts,
                step=pixel_step(vae, model),
                emit=lambda event: None,
                check_interrupt=check_interrupt,
                store=store,
            )
            data = cache.build(self._dataset, self._config, train_text=text_later)
            return [sample.load() for sample in data.validation_samples]


def _read_by(texts: HostTextEncoder, sample: CachedSample) -> CachedSample:
    condition = texts.encode(sample.caption, sample.latent, sample.references, view=sample.view)
    return replace(sample, conditioning=condition)
