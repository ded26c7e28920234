"""Latents and control pictures of a dataset's pictures, encoded once and kept in a store."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import DatasetError
from ..ports import ControlPictures, Controls, LatentEncoder
from .drawn_masks import drawn_mask
from .images import open_image
from .pixels import pixels
from .records import ImageRecord
from .store import Entry, Store, key_of
from .stored import SampleLost
from .views import View

FORMAT = 1
"""Of the entries; counts up when the same keys would name something else."""

_DECODERS = min(4, os.cpu_count() or 1)
_AHEAD = 2 * _DECODERS
"""Pictures that are decoded while the VAE is busy."""

Pixels = tuple[Tensor, Tensor | None]
"""What `pixels.pixels` gives: what is trained, and its mask."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One view of a record, with the names of its latent and of its encoded control pictures."""

    record: ImageRecord
    view: View
    key: str
    controls: str
    """"" where the model is given none."""

    @property
    def name(self) -> str:
        """Of all that its conditions depend on beside the caption."""
        return self.key + self.controls


@dataclass(frozen=True)
class PictureCache:
    """Encodes pictures by the host's VAE: what the store does not hold yet."""

    latents: LatentEncoder
    store: Store
    progress: Callable[[str, int, int], None]
    """(what is done, how much of it, of how much)"""

    def picture(self, record: ImageRecord, view: View) -> Picture:
        key = key_of(FORMAT, self.latents.identity, record.digest, record.mask_digest, view)
        controlled = record.controls or record.first_frame
        if not self.latents.takes_masks and not (self.latents.takes_controls and controlled):
            return Picture(record, view, key, "")
        shown = [control.digest for control in record.controls], record.drawn_mask
        return Picture(record, view, key, key_of(FORMAT, self.latents.control_kind, key, *shown))

    def encode(self, pictures: Sequence[Picture]) -> dict[str, tuple[int, ...]]:
        """Shapes of the latents by key."""
        own = {picture.key: picture for picture in pictures}
        found = {key: self.store.shape(key, "latent") for key in own}
        shapes = {key: shape for key, shape in found.items() if shape is not None}
        missing = _by_size(picture for key, picture in own.items() if key not in shapes)
        decoded = _decoded(missing)
        done = 0
        try:
            while done < len(missing):
                self.progress("encoding pictures", done, len(missing))
                read = [next(decoded)]
                size = _size(missing[done])
                for after in missing[done + 1 : done + self.latents.at_once(read[0][0])]:
                    if _size(after) != size:
                        break
                    read.append(next(decoded))
                batch = missing[done : done + len(read)]
                for picture, entry in zip(batch, self._entries(batch, read), strict=True):
                    self.store.put(picture.key, entry)
                    shapes[picture.key] = tuple(entry.tensors["latent"].shape)
                done += len(read)
        finally:
            decoded.close()
        return shapes

    def encode_controls(self, pictures: Sequence[Picture]) -> None:
        own = {p.controls: p for p in pictures if p.controls and p.controls not in self.store}
        for i, picture in enumerate(own.values()):
            self.progress("encoding control pictures", i, len(own))
            self._encode_control(picture)

    def latent(self, picture: Picture) -> Tensor:
        """From the store, or encoded anew if it went in the meantime."""
        # Not kept in memory: thousands of small tensors between the large ones that come and go would leave
        # holes that nothing fits into.
        entry = self.store.get(picture.key, keep=False)
        if entry is None:
            entry = self._entries([picture], [pixels(picture.record, picture.view)])[0]
            self.store.put(picture.key, entry)
        return entry.tensors["latent"]

    def references(self, picture: Picture) -> Controls:
        """As `latent`."""
        entry = self.store.get(picture.controls, keep=False)
        return self._unpacked(picture, self._encode_control(picture) if entry is None else entry)

    def kept_references(self, picture: Picture) -> Controls:
        """From the store; raises SampleLost."""
        if not picture.controls:
            return None
        entry = self.store.get(picture.controls)
        if entry is None:
            raise SampleLost
        return self._unpacked(picture, entry)

    def _unpacked(self, picture: Picture, entry: Entry) -> Controls:
        given = _control_pictures(picture.record, picture.view, torch.empty(0), None)
        return self.latents.unpack_controls(entry, given)

    def _entries(self, pictures: Sequence[Picture], read: Sequence[Pixels]) -> list[Entry]:
        latents = self.latents.encode([shown for shown, _ in read])
        return [
            _entry(picture.record, latent, mask)
            for picture, latent, (_, mask) in zip(pictures, latents, read, strict=True)
        ]

    def _encode_control(self, picture: Picture) -> Entry:
        shown, mask = pixels(picture.record, _first(picture.view))
        shown = shown if shown.ndim == 3 else shown[0]
        controls = self.latents.controls(_control_pictures(picture.record, picture.view, shown, mask))
        entry = self.latents.pack_controls(controls)
        self.store.put(picture.controls, entry)
        return entry


def _size(picture: Picture) -> tuple[int, ...]:
    span = picture.view.span
    return (*picture.view.size, span.frames if span else 0)


def _by_size(pictures: Iterable[Picture]) -> list[Picture]:
    """Those of one size together, in the order in which the sizes come."""
    sizes: dict[tuple[int, ...], list[Picture]] = {}
    for picture in pictures:
        sizes.setdefault(_size(picture), []).append(picture)
    return [picture for same in sizes.values() for picture in same]


def _decoded(pictures: Sequence[Picture]) -> Generator[Pixels]:
    """In order, by threads that are a little ahead."""
    waiting, coming = iter(pictures), deque[Future[Pixels]]()
    with ThreadPoolExecutor(_DECODERS, "in-graph-lora decoder") as pool:
        try:
            for _ in pictures:
                for after in itertools.islice(waiting, _AHEAD - len(coming)):
                    coming.append(pool.submit(pixels, after.record, after.view))
                yield coming.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _entry(record: ImageRecord, latent: Tensor, mask: Tensor | None) -> Entry:
    """mask: [H, W]."""
    if not latent.isfinite().all():
        raise DatasetError(
            f"{record.name}: the VAE gives NaN or infinite latents; run the VAE in fp32"
            " (start ComfyUI with --fp32-vae) or use a VAE that is safe in fp16"
        )
    if mask is None:
        return Entry({"latent": latent})
    mask = adaptive_avg_pool2d(mask[None], (latent.shape[-2], latent.shape[-1]))  # [1, h, w]
    return Entry({"latent": latent, "mask": mask.reshape(1, *[1] * (latent.ndim - 3), *mask.shape[-2:])})


def _first(view: View) -> View:
    """Of a clip the first frame."""
    return replace(view, span=replace(view.span, frames=1)) if view.span else view


def _beside(path: Path, view: View) -> Image.Image:
    """A control picture, mirrored and coloured as the picture that is trained on: they are a pair."""
    return view.whole(open_image(path))


def _control_pictures(
    record: ImageRecord, view: View, target: Tensor, mask: Tensor | None
) -> ControlPictures:
    """mask: the record's own, as the target was cut; without one, that which is drawn for it."""
    if mask is None and record.drawn_mask is not None:
        mask = drawn_mask(record.digest, record.drawn_mask, view.size)
    return ControlPictures(
        images=[partial(_beside, control.path, view) for control in record.controls],
        target=target,
        target_size=view.size,
        size=record.size,
        cut=view.of_whole.cut,
        mask=mask,
        frames=view.frames,
        first_frame=record.first_frame,
    )
