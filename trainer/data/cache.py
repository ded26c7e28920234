"""Latents and conditions of a dataset, computed once and kept in a store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig
from ..errors import shortened
from ..events import Emit, Notice, Phase
from ..ports import Conditioning, Controls, LatentEncoder, TextEncoder, Traces
from .batches import CachedSample, Sample
from .picture_cache import FORMAT, Picture, PictureCache
from .records import Dataset, ImageRecord
from .store import Entry, Store, key_of, size_of
from .stored import SampleLost, StoredSample
from .variation import Captions, Variation
from .views import views

_POSSIBLE_TRACES: tuple[Traces, ...] = tuple(
    frozenset(traces) for traces in ((), ("network",), ("latent",), ("latent", "network"))
)


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a run trains on. Class samples are there when the objective keeps the class by pictures."""

    samples: Sequence[Sample]
    class_samples: Sequence[Sample] = ()
    validation_samples: Sequence[Sample] = ()
    """Held out: never trained on."""
    restore: Callable[[], object] | None = None
    """Encodes again what was lost; no model must be on loan."""


def cut_to_fit(
    dataset: Dataset, config: TrainConfig, texts: TextEncoder, emit: Emit
) -> tuple[Dataset, TrainConfig]:
    """Captions and class prompt as far as they can be encoded. Says which are cut."""
    prompt = config.prior.class_prompt
    named = [("class_prompt", prompt), *((r.name, text) for r in dataset.records for text in r.texts)]
    fitted = {text: texts.fitted(text) for text in {text for _, text in named}}
    cut = [(name, text) for name, text in named if text != fitted[text]]
    if not cut:
        return dataset, config
    told = shortened(f"{name} ({len(text)} characters to {len(fitted[text])})" for name, text in cut)
    emit(Notice(message=f"captions longer than can be encoded are cut: {told}"))
    return (
        dataset.with_records(r.with_caption(*(fitted[text] for text in r.texts)) for r in dataset.records),
        replace(config, prior=replace(config.prior, class_prompt=fitted[prompt])),
    )


def kept_bytes(
    dataset: Dataset, config: TrainConfig, step: int, *, latent: Tensor, pixels: int, condition: int
) -> int:
    """Of all files that a run's latents and conditions take in a store, about; control pictures not counted.

    step: what sides in pixels are multiples of. latent: one of a view with so many pixels in all its frames.
    condition: bytes of the longest text's file. A text is kept once for each size.
    """
    header = size_of(Entry({"latent": latent})) - latent.nbytes
    masked = 1 + 1 / latent.shape[0]
    latents: dict[Any, float] = {}
    texts: set[Any] = set()
    for record in dataset.records:
        if record.role == "class" and not config.prior.uses_pictures:
            continue
        own = _texts(record, config, live=config.encodes_each_step)
        for view in views(record, resolution=dataset.resolution, step=step):
            share = view.size[0] * view.size[1] * view.frames / pixels
            size = latent.nbytes * share * (masked if record.mask is not None else 1)
            latents[record.digest, record.mask_digest, view] = header + size
            texts |= {(text, view.size, view.frames) for text in own.all}
    tried_out = bool(texts)  # the plan's own text
    return int(sum(latents.values())) + condition * (len(texts) + tried_out)


@dataclass(frozen=True, kw_only=True)
class SampleCache:
    """Encodes records by the host's VAE and text encoder: what the store does not hold yet.

    What a key must say is in `PictureCache.picture`, `_text_inputs` and `_condition_keys`.
    """

    latents: LatentEncoder
    texts: TextEncoder
    step: int
    """What the sides in pixels are multiples of."""
    emit: Emit
    check_interrupt: Callable[[], None]
    store: Store = field(default_factory=lambda: Store(None, emit=lambda event: None))
    _unpackable: dict[str, Conditioning] = field(default_factory=dict)
    """Conditions of a kind that cannot be written."""

    def build(self, dataset: Dataset, config: TrainConfig, *, train_text: bool = False) -> TrainingData:
        """The pictures first and the captions then, so that VAE and text encoder are not loaded in turns.

        Interrupted, it goes on where it was when it is called again.
        """
        self.check_interrupt()
        prior = config.prior.uses_pictures
        pictures = [
            self._pictures.picture(record, view)
            for record in dataset.records
            if record.role != "class" or prior
            for view in views(record, resolution=dataset.resolution, step=self.step)
        ]
        self.store.hold(key for picture in pictures for key in (picture.key, picture.controls) if key)
        shapes = self._pictures.encode(pictures)
        self._pictures.encode_controls(pictures)
        texts = [_texts(picture.record, config, live=train_text) for picture in pictures]
        keys = self._encode_captions(pictures, texts, shapes)
        self.store.hold(keys.values())
        samples: dict[str, list[StoredSample]] = {"instance": [], "class": [], "validation": []}
        for picture, own in zip(pictures, texts, strict=True):
            record = picture.record
            sample = StoredSample(
                key=record.digest,
                bucket=shapes[picture.key],
                captions=own.captions,
                repeats=record.repeats,
                weight=record.weight,
                view=picture.view,
                latent=picture.key,
                conditions=tuple(keys[picture.name, text] for text in own.encoded),
                empty=keys[picture.name, ""] if own.empty else "",
                class_condition=keys[picture.name, own.class_prompt] if own.class_prompt else "",
                references=partial(self._pictures.kept_references, picture) if train_text else None,
                read=self._read,
            )
            samples[record.role].append(sample)
        return TrainingData(
            samples=samples["instance"],
            class_samples=samples["class"],
            validation_samples=samples["validation"],
            restore=lambda: self._restore(dataset, config, train_text),
        )

    def _restore(self, dataset: Dataset, config: TrainConfig, train_text: bool) -> None:
        """Where one entry was lost or altered, others may be."""
        for key in self.store.held:
            self.check_interrupt()
            self.store.check(key)
        self.build(dataset, config, train_text=train_text)

    @torch.no_grad()
    def condition(self, caption: str, latent: Tensor, references: Controls = None) -> Conditioning:
        """Of a caption for a latent of this shape, from the store if it is there."""
        if references is not None:
            return self.texts.encode(caption, latent, references)
        keys = self._condition_keys(caption, tuple(latent.shape), (), latent_key="")
        for key in keys:
            with suppress(SampleLost):
                return self._condition(key)
        return self._condition(self._encode_text(caption, latent, {}, (), latent_key=""))

    @cached_property
    def _pictures(self) -> PictureCache:
        return PictureCache(self.latents, self.store, self._progress)

    # What an entry depends on.

    def _text_inputs(self, picture: Picture) -> Mapping[str, Any]:
        """What `TextEncoder.encode` is given beside caption and latent."""
        told = {"view": picture.view} if self.texts.told_crops else {}
        return {**told, "references": self._pictures.references(picture)} if picture.controls else told

    def _text_key(self, picture: Picture) -> tuple[Any, ...]:
        """Of `_text_inputs`: its `repr` says all of it."""
        return (picture.view if self.texts.told_crops else None, picture.controls)

    def _condition_keys(
        self, caption: str, shape: tuple[int, ...], inputs: tuple[Any, ...], latent_key: str
    ) -> Mapping[str, Traces]:
        """Names that the entry may have, by what its making turned out to depend on."""
        own = (FORMAT, self.texts.identity, caption, shape, inputs)
        parts = {"network": self.texts.network_identity, "latent": latent_key}
        return {
            key_of(*own, *(parts[name] for name in sorted(traces))): traces for traces in _POSSIBLE_TRACES
        }

    # Encoding what is missing.

    @torch.no_grad()
    def _encode_captions(
        self, pictures: Sequence[Picture], texts: Sequence[_Texts], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[tuple[str, str], str]:
        """Keys of the conditions by (name of the picture, text). Each text is encoded for all its pictures in
        one go, so that the encoder need not remember it for longer."""
        by_text: defaultdict[str, dict[str, Picture]] = defaultdict(dict)
        for picture, own in zip(pictures, texts, strict=True):
            for text in own.all:
                by_text[text][picture.name] = picture
        keys, missing = {}, []

        def find(text: str, picture: Picture) -> str | None:
            own = self._text_key(picture)
            possible = self._condition_keys(text, shapes[picture.key], own, picture.key)
            return next((key for key in possible if self._has(key)), None)

        for text, group in by_text.items():
            for picture in group.values():
                if (found := find(text, picture)) is not None:
                    keys[picture.name, text] = found
                else:
                    missing.append((text, picture))
        self.store.hold(keys.values())
        for i, (text, picture) in enumerate(missing):
            self._progress("encoding captions", i, len(missing))
            key = find(text, picture)  # another picture may have had the same
            if key is None:
                latent = self._pictures.latent(picture)
                inputs = self._text_inputs(picture), self._text_key(picture)
                key = self._encode_text(text, latent, *inputs, picture.key)
            keys[picture.name, text] = key
        return keys

    def _encode_text(
        self,
        text: str,
        latent: Tensor,
        inputs: Mapping[str, Any],
        input_key: tuple[Any, ...],
        latent_key: str,
    ) -> str:
        condition, traces = self.texts.traced(text, latent, **inputs)
        keys = self._condition_keys(text, tuple(latent.shape), input_key, latent_key)
        key = next(key for key, own in keys.items() if own == traces)
        entry = self.texts.pack(condition)
        if entry is not None:
            self.store.put(key, entry)
        else:
            if not self._unpackable:
                message = (
                    "this model's conditions are of a kind that is not kept on disk; they stay in memory"
                )
                self.emit(Notice(message=message))
            self._unpackable[key] = condition
        return key

    def _progress(self, name: str, done: int, total: int) -> None:
        self.check_interrupt()
        self.emit(Phase(name=name, done=done, total=total))

    # Reading what is there.

    def _has(self, key: str) -> bool:
        return key in self._unpackable or key in self.store

    def _entry(self, key: str) -> Entry:
        entry = self.store.get(key)
        if entry is None:
            raise SampleLost
        return entry

    def _condition(self, key: str) -> Conditioning:
        if not key:
            return None
        return self._unpackable[key] if key in self._unpackable else self.texts.unpack(self._entry(key))

    def _read(self, sample: StoredSample, which: int, caption: str) -> CachedSample:
        entry = self._entry(sample.latent)
        return CachedSample(
            latent=entry.tensors["latent"],
            conditioning=self._condition(sample.conditions[which] if sample.conditions else ""),
            key=sample.key,
            caption=caption,
            repeats=sample.repeats,
            weight=sample.weight,
            mask=entry.tensors.get("mask"),
            view=sample.view,
            empty=self._condition(sample.empty),
            class_conditioning=self._condition(sample.class_condition),
            references=sample.references() if sample.references else None,
        )


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is encoded for one picture."""

    captions: Captions
    encoded: tuple[str, ...]
    empty: bool
    class_prompt: str

    @property
    def all(self) -> Iterable[str]:
        yield from self.encoded
        yield from [""] * self.empty
        yield from [self.class_prompt] * bool(self.class_prompt)


def _texts(record: ImageRecord, config: TrainConfig, *, live: bool) -> _Texts:
    objective, prior = config.objective, config.prior
    if record.role == "validation":
        captions = Captions.fixed(record.caption)
    else:
        captions = Captions.of(
            record.texts,
            record.digest,
            Variation.of(objective),
            count=objective.caption_variants,
            seed=config.seed,
            live=live,
        )
    return _Texts(
        captions,
        encoded=() if live else captions.encoded,
        empty=objective.caption_dropout > 0 and not live,
        class_prompt=prior.class_prompt if prior.preserves_output else "",
    )
