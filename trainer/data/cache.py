"""Latents and conditions of a dataset, computed once and kept in a store."""

from __future__ import annotations

import itertools
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..config import TrainConfig
from ..errors import DatasetError, shortened
from ..events import Emit, Notice, Phase
from ..files import sha256
from ..ports import Conditioning, LatentEncoder, TextEncoder, Traces
from .batches import CachedSample, Sample
from .images import open_image
from .records import Dataset, ImageRecord
from .store import Entry, Store, key_of
from .stored import SampleLost, StoredSample
from .variation import Captions, Variation
from .views import View, views

FORMAT = 1
"""Of the entries; counts up when the same keys would name something else."""

_POSSIBLE_TRACES: tuple[Traces, ...] = tuple(
    frozenset(traces) for traces in ((), ("network",), ("latent",), ("latent", "network"))
)
_DECODERS = min(4, os.cpu_count() or 1)
_AHEAD = 2 * _DECODERS
"""Pictures that are decoded while the VAE is busy."""


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


@dataclass(frozen=True, slots=True)
class _Picture:
    """One view of a record, and the name of its latent."""

    record: ImageRecord
    view: View
    key: str


@dataclass(frozen=True, kw_only=True)
class SampleCache:
    """Encodes records by the host's VAE and text encoder: what the store does not hold yet.

    What a key must say is in `_latent_key`, `_text_inputs` and `_condition_keys`.
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
            _Picture(record, view, self._latent_key(record, view))
            for record in dataset.records
            if record.role != "class" or prior
            for view in views(record, resolution=dataset.resolution, step=self.step)
        ]
        self.store.hold(picture.key for picture in pictures)
        shapes = self._encode_pictures(pictures)
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
                latent=picture.key,
                conditions=tuple(keys[picture.key, text] for text in own.encoded),
                empty=keys[picture.key, ""] if own.empty else "",
                class_condition=keys[picture.key, own.class_prompt] if own.class_prompt else "",
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
    def condition(self, caption: str, latent: Tensor) -> Conditioning:
        """Of a caption for a latent of this shape, from the store if it is there."""
        keys = self._condition_keys(caption, tuple(latent.shape), {}, latent_key="")
        key = next((key for key in keys if self._has(key)), None)
        if key is None:
            key = self._encode_text(caption, latent, {}, latent_key="")
        return self._condition(key)

    # What an entry depends on.

    def _latent_key(self, record: ImageRecord, view: View) -> str:
        return key_of(FORMAT, self.latents.identity, record.digest, record.mask_digest, view)

    def _text_inputs(self, picture: _Picture) -> Mapping[str, Any]:
        """What `TextEncoder.encode` is given beside caption and latent; `repr` must say all of it."""
        return {}

    def _condition_keys(
        self, caption: str, shape: tuple[int, ...], inputs: Mapping[str, Any], latent_key: str
    ) -> Mapping[str, Traces]:
        """Names that the entry may have, by what its making turned out to depend on."""
        own = (FORMAT, self.texts.identity, caption, shape, sorted(inputs.items()))
        parts = {"network": self.texts.network_identity, "latent": latent_key}
        return {
            key_of(*own, *(parts[name] for name in sorted(traces))): traces for traces in _POSSIBLE_TRACES
        }

    # Encoding what is missing.

    def _encode_pictures(self, pictures: Sequence[_Picture]) -> dict[str, tuple[int, ...]]:
        """Shapes of the latents by key."""
        own = {picture.key: picture for picture in pictures}
        found = {key: self.store.shape(key, "latent") for key in own}
        shapes = {key: shape for key, shape in found.items() if shape is not None}
        missing = [picture for key, picture in own.items() if key not in shapes]
        waiting, coming = iter(missing), deque[Future[tuple[Tensor, Tensor | None]]]()
        with ThreadPoolExecutor(_DECODERS, "in-graph-lora decoder") as pool:
            try:
                for i, picture in enumerate(missing):
                    self._progress("encoding pictures", i, len(missing))
                    for after in itertools.islice(waiting, _AHEAD - len(coming)):
                        coming.append(pool.submit(_pixels, after.record, after.view))
                    entry = self._encode_picture(picture.record, *coming.popleft().result())
                    self.store.put(picture.key, entry)
                    shapes[picture.key] = tuple(entry.tensors["latent"].shape)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return shapes

    def _latent(self, picture: _Picture) -> Tensor:
        """From the store, or encoded anew if it went in the meantime."""
        entry = self.store.get(picture.key)
        if entry is None:
            entry = self._encode_picture(picture.record, *_pixels(picture.record, picture.view))
            self.store.put(picture.key, entry)
        return entry.tensors["latent"]

    def _encode_picture(self, record: ImageRecord, pixels: Tensor, mask: Tensor | None) -> Entry:
        latent = self.latents.encode(pixels)
        if not latent.isfinite().all():
            raise DatasetError(
                f"{record.name}: the VAE gives NaN or infinite latents; run the VAE in fp32"
                " (start ComfyUI with --fp32-vae) or use a VAE that is safe in fp16"
            )
        if mask is None:
            return Entry({"latent": latent})
        mask = adaptive_avg_pool2d(mask[None], (latent.shape[-2], latent.shape[-1]))  # [1, h, w]
        return Entry({"latent": latent, "mask": mask.reshape(1, *[1] * (latent.ndim - 3), *mask.shape[-2:])})

    @torch.no_grad()
    def _encode_captions(
        self, pictures: Sequence[_Picture], texts: Sequence[_Texts], shapes: Mapping[str, tuple[int, ...]]
    ) -> dict[tuple[str, str], str]:
        """Keys of the conditions by (key of the latent, text). Each text is encoded for all its pictures in
        one go, so that the encoder need not remember it for longer."""
        by_text: defaultdict[str, dict[str, _Picture]] = defaultdict(dict)
        for picture, own in zip(pictures, texts, strict=True):
            for text in own.all:
                by_text[text][picture.key] = picture
        keys, missing = {}, []

        def find(text: str, picture: _Picture) -> str | None:
            inputs = self._text_inputs(picture)
            possible = self._condition_keys(text, shapes[picture.key], inputs, picture.key)
            return next((key for key in possible if self._has(key)), None)

        for text, group in by_text.items():
            for picture in group.values():
                if (found := find(text, picture)) is not None:
                    keys[picture.key, text] = found
                else:
                    missing.append((text, picture))
        self.store.hold(keys.values())
        for i, (text, picture) in enumerate(missing):
            self._progress("encoding captions", i, len(missing))
            key = find(text, picture)  # another picture may have had the same
            if key is None:
                latent = self._latent(picture)
                key = self._encode_text(text, latent, self._text_inputs(picture), picture.key)
            keys[picture.key, text] = key
        return keys

    def _encode_text(self, text: str, latent: Tensor, inputs: Mapping[str, Any], latent_key: str) -> str:
        condition, traces = self.texts.traced(text, latent, **inputs)
        keys = self._condition_keys(text, tuple(latent.shape), inputs, latent_key)
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
            empty=self._condition(sample.empty),
            class_conditioning=self._condition(sample.class_condition),
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


def _pixels(record: ImageRecord, view: View) -> tuple[Tensor, Tensor | None]:
    """The picture as it is trained, and its mask [H, W]."""
    pixels = view.cut(open_image(record.path))
    mask = None if record.mask is None else view.cut(open_image(record.mask)).mean(-1)
    for path, digest in ((record.path, record.digest), (record.mask, record.mask_digest)):
        if path is not None and sha256(path) != digest:
            raise DatasetError(f"{path.name} has changed since the dataset was loaded; run the graph again")
    return pixels, mask
