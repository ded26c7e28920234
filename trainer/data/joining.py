"""One dataset from a folder, pictures of the graph, and a folder of the class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ..errors import DatasetError
from ..files import clear_unfinished
from .framing import Framing
from .images import examine, save_tensor
from .layouts.archive import is_archive, unpacked
from .records import Dataset, ImageRecord, Problem
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
    control_folders: Sequence[Path] = (),
    framing: Framing | None = None,
    subfolders: bool = False,
    mask_folder: Path | None = None,
    unpack_into: Path | None = None,
) -> Dataset:
    """Pictures of the folder, then connected ones [H, W, C], then those of the class. Raises DatasetError.

    keep_images_in: the folder that connected pictures are written to. unpack_into: that of archives.
    control_folders, mask_folder: of the pictures in `folder`.
    """
    read = partial(
        scan_folder, resolution=resolution, on_file=on_file, framing=framing, subfolders=subfolders
    )
    if captions and not images:
        raise DatasetError(
            "captions: these are for connected images and there are none; clear them or connect images"
        )
    dataset = Dataset(records=(), resolution=resolution)
    if control_folders and folder is None:
        raise DatasetError(
            "control_folder: is for the pictures of the folder and there is none; clear it or give a folder"
        )
    if unpack_into is not None:
        folder, class_folder = (
            unpacked(f, unpack_into) if f and is_archive(f) else f for f in (folder, class_folder)
        )
    if folder is not None:
        found = read(folder, repeats=repeats, mask_folder=mask_folder, control_folders=control_folders)
        dataset = _with(dataset, found)
    if images:
        records = image_records(images, captions, repeats, keep_images_in, framing or Framing())
        dataset = dataset.with_records((*dataset.records, *records))
    if class_folder is not None:
        dataset = _with(dataset, read(class_folder, role="class"))
    return without_refused(dataset)


def without_refused(dataset: Dataset) -> Dataset:
    """The dataset without the pictures that would have to be enlarged and must not be. Raises DatasetError if
    none is left."""
    refused = [r for r in dataset.records if not r.views_at(dataset.resolution)]
    if not refused:
        return dataset
    if len(refused) == len(dataset):
        raise DatasetError(
            f"all {len(refused)} pictures have fewer pixels than the resolution asks for, and Image Framing"
            " refuses to enlarge; lower the resolution, or set upscaling to own_size"
        )
    why = "fewer pixels than the resolution asks for, and Image Framing refuses to enlarge; use a larger one"
    problems = [Problem(path=r.path, reason=f"has {r.size[0]}x{r.size[1]}, {why}") for r in refused]
    kept = [r for r in dataset.records if r.views_at(dataset.resolution)]
    return replace(dataset, records=tuple(kept), problems=(*dataset.problems, *problems))


def join(
    datasets: Sequence[Dataset], *, weights: Sequence[float] = (), repeats: Sequence[int] = ()
) -> Dataset:
    """All records in this order, each trained at the resolution of its own dataset; what models and previews
    ask of a dataset as a whole is that of the first.

    weights, repeats: what those of each dataset's pictures are multiplied by; one for each dataset, or none.
    Raises DatasetError if the numbers do not match.
    """
    for name, given in (("weights", weights), ("repeats", repeats)):
        if len(given) not in (0, len(datasets)):
            raise DatasetError(
                f"{name}: {len(given)} numbers for {len(datasets)} datasets; write one for each, or none"
            )
    first, records = datasets[0], list[ImageRecord]()
    for i, dataset in enumerate(datasets):
        weight, times = weights[i] if weights else 1.0, repeats[i] if repeats else 1
        for r in dataset.records:
            framing = r.framing
            if dataset.resolution != first.resolution and not framing.resolutions:
                framing = replace(framing, resolutions=(dataset.resolution,))
            records.append(replace(r, framing=framing, weight=r.weight * weight, repeats=r.repeats * times))
    triggers = dict.fromkeys(d.trigger for d in datasets if d.trigger)
    return replace(
        first,
        records=tuple(records),
        problems=tuple(p for d in datasets for p in d.problems),
        trigger=", ".join(triggers),
    )


def caption_lines(captions: Sequence[str]) -> list[str]:
    """A list of captions as it is; one text, by lines. Nothing if there is only white space."""
    if len(captions) == 1:
        captions = captions[0].rstrip().splitlines()
    return [c.strip() for c in captions]


def image_records(
    images: Sequence[Tensor], captions: Sequence[str], repeats: int, folder: Path, framing: Framing
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
        found = examine(path)
        records.append(
            ImageRecord(
                path=path,
                caption=text,
                size=found.size,
                digest=found.digest,
                repeats=repeats,
                mask=path if framing.alpha_mask and found.transparent else None,
                mask_digest=found.digest if framing.alpha_mask and found.transparent else "",
                framing=framing,
                traits=found.traits,
            )
        )
    return records


def _with(dataset: Dataset, more: Dataset) -> Dataset:
    return replace(
        dataset, records=(*dataset.records, *more.records), problems=(*dataset.problems, *more.problems)
    )
