"""What pictures are held against: references, training pictures, and the prompts as a judge reads them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from PIL import Image
from torch import Tensor

from ..data.images import WHITE, on_colour
from ..data.pixels import opened
from ..data.records import Dataset, ImageRecord
from ..errors import DatasetError
from .shots import Shot
from .sight import Judge, Sight, checked, look, pixel_distance

SAME = 0.004
"""Distance in pixels (0 to 1) below which a reference is a training picture that was saved again."""
TRAINED_ON = (
    "the references are training pictures: a LoRA that learned them by heart looks best; hold pictures out or"
    " connect others"
)
FEW = 5
"""References below which they show the subject from few sides."""
_SHAPES_ALIKE = 1.25


@dataclass(frozen=True, kw_only=True)
class Known:
    references: Sight | None = None
    """Of the subject."""
    unseen: bool = True
    """Whether the references were not trained on."""
    trained: Sight | None = None
    trained_names: Sequence[str] = ()
    texts: Tensor | None = None
    """[shots, D] of length 1: the prompts as the judge reads them."""


def gather(
    judge: Judge | None,
    shots: Sequence[Shot],
    dataset: Dataset | None,
    references: Sequence[Image.Image],
    size: tuple[int, int],
    trigger: str = "",
    check_interrupt: Callable[[], None] = lambda: None,
) -> tuple[Known, list[str]]:
    """What there is, and in words what cannot be measured for want of it.

    shots: whose prompts the judge reads; with none of them no text is compared. references: of the subject;
    the dataset's held-out pictures where there are none. size: of the samples, (width, height) in pixels.
    trigger: left out of what the judge reads, as DreamBooth does.
    """
    records = dataset.records if dataset is not None else ()
    trained = [r for r in records if r.role == "instance"]
    held_out = [r for r in records if r.role == "validation"]

    def of(records: Sequence[ImageRecord], what: str) -> Sight | None:
        pictures = [partial(_picture, r) for r in records]
        return look(judge, pictures, what, lambda done, of: check_interrupt()) if pictures else None

    trained_sight = of(trained, "the training pictures")
    if references:
        found = look(judge, [partial(Image.Image.copy, p) for p in references], "the references")
    else:
        found = of(held_out, "the held-out pictures")
    found, unseen, notes = _unseen(found, trained_sight)
    notes += _missing(found, trained, unseen)
    notes += _shapes([p.size for p in references] or [r.size for r in held_out or trained], size)
    texts = None
    if judge is None:
        notes.append("there is no judge: only pixels are compared; connect clip_vision or name judge_folder")
    elif judge.reads and shots:
        texts = checked(judge, judge.read([_without(trigger, shot.prompt) for shot in shots]), "the prompts")
    elif shots:
        notes.append(
            "prompt fidelity is not measured: this judge does not read; name a folder of CLIP or SigLIP"
        )
    return Known(
        references=found,
        unseen=unseen,
        trained=trained_sight,
        trained_names=[r.name for r in trained],
        texts=texts,
    ), notes


def _unseen(references: Sight | None, trained: Sight | None) -> tuple[Sight | None, bool, list[str]]:
    """(references that were not trained on, or what there is; whether they were not; what was left out)"""
    if references is None:
        return trained, trained is None, []
    if trained is None:
        return references, True, []
    fresh = (pixel_distance(references, trained).amin(1) > SAME).nonzero().flatten().tolist()
    if not fresh:
        return references, False, []
    known = len(references) - len(fresh)
    if not known:
        return references, True, []
    note = f"{known} of {len(references)} references are training pictures and were left out"
    return references.rows(fresh), True, [note]


def _missing(references: Sight | None, trained: Sequence[ImageRecord], unseen: bool) -> list[str]:
    notes = []
    if references is None:
        notes.append(
            "subject fidelity and leak are not measured: there are no references; connect pictures of the"
            " subject that were not trained on, or the dataset"
        )
    elif len(references) < FEW:
        notes.append(
            f"there {'is' if len(references) == 1 else 'are'} {len(references)}"
            f" reference{'' if len(references) == 1 else 's'} only: they show the subject from few sides;"
            f" use {FEW} or more"
        )
    if not trained:
        notes.append("near copies are not looked for: connect the dataset that was trained on")
    elif len(trained) < 3 and (not unseen or references is None or len(references) < 3):
        notes.append(
            f"near copies are not looked for: {len(trained)} training pictures are too few to compare with"
        )
    return notes


def _shapes(sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> list[str]:
    own = size[0] / size[1]
    odd = [(w, h) for w, h in sizes if not 1 / _SHAPES_ALIKE < w / h / own < _SHAPES_ALIKE]
    if not odd:
        return []
    return [
        f"references have another shape ({odd[0][0]}×{odd[0][1]}) than the samples ({size[0]}×{size[1]}): of"
        " each the centre square is compared"
    ]


def _without(trigger: str, prompt: str) -> str:
    words = prompt.split()
    return " ".join(word for word in words if word.strip(",.") != trigger) if trigger else prompt


def trained_picture(dataset: Dataset | None, name: str) -> Image.Image | None:
    """The training picture of this name; None where it cannot be read any more."""
    records = dataset.records if dataset is not None else ()
    for record in records:
        if record.name == name and record.role == "instance":
            with suppress(OSError, DatasetError):
                return _picture(record)
    return None


def _picture(record: ImageRecord) -> Image.Image:
    """Of a clip the first frame."""
    return on_colour(opened(record)[0], WHITE)
