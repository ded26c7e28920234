"""One dataset from a folder, pictures of the graph, and a folder of the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import DatasetError
from ..files import clear_unfinished
from .images import inspect_image, save_tensor
from .records import CLIPS, ClipOptions, Dataset, ImageRecord
from .scan import scan_folder


def joined(
    *,
    folder: Path | None,
    class_folder: Path | None,
    resolution: int,
    repeats: int,
    images: Sequence[Tensor],
    captions: Sequence[str],
    keep_images_in: Path,
    on_file: Callable[[int, int], None],
    clips: ClipOptions = CLIPS,
) -> Dataset:
    """Pictures of the folder, then connected ones [H, W, C], then those of the class. Raises DatasetError.

    keep_images_in: the folder that connected pictures are written to.
    """
    if captions and not images:
        raise DatasetError(
            "captions: these are for connected images and there are none; clear them or connect images"
        )
    dataset = Dataset(records=(), resolution=resolution)
    if folder is not None:
        found = scan_folder(folder, resolution=resolution, repeats=repeats, clips=clips, on_file=on_file)
        dataset = _with(dataset, found)
    if images:
        records = image_records(images, captions, repeats, keep_images_in)
        dataset = dataset.with_records((*dataset.records, *records))
    if class_folder is not None:
        found = scan_folder(class_folder, resolution=resolution, role="class", clips=clips, on_file=on_file)
        dataset = _with(dataset, found)
    return dataset


def caption_lines(captions: Sequence[str]) -> list[str]:
    """A list of captions as it is; one text, by lines. Nothing if there is only white space."""
    if len(captions) == 1:
        captions = captions[0].rstrip().splitlines()
    return [c.strip() for c in captions]


def image_records(
    images: Sequence[Tensor], captions: Sequence[str], repeats: int, folder: Path
) -> list[ImageRecord]:
    """Connected pictures, written to `folder`. Raises DatasetError."""
    if len(captions) not in (0, 1, len(images)):
        raise DatasetError(
            f"captions: {len(captions)} lines for {len(images)} images; write one for each, or one for all"
        )
    texts = list(captions) if len(captions) == len(images) else [*captions, ""][:1] * len(images)
    clear_unfinished(folder)
    records = []
    for image, text in zip(images, texts, strict=True):
        path = save_tensor(image, folder)
        size, digest = inspect_image(path)
        records.append(ImageRecord(path=path, caption=text, size=size, digest=digest, repeats=repeats))
    return records


def _with(dataset: Dataset, more: Dataset) -> Dataset:
    return replace(
        dataset, records=(*dataset.records, *more.records), problems=(*dataset.problems, *more.problems)
    )
