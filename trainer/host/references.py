"""Control pictures as ComfyUI's own nodes give them to a network.

Which nodes that are is read from the network (`ways.WAYS`) and from the text encoder's tokenizer
(`SEEN_BY`). The nodes themselves are run, so a condition in training is the one that a graph of stock nodes
builds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy.clip_vision import Output
from PIL import Image
from torch import Tensor

from ..data.images import fit, open_image
from ..data.records import Dataset, ImageRecord
from ..errors import DatasetError, shortened
from ..events import Emit, Notice
from ..pictures.drawing import to_tensor
from ..ports import ControlPictures
from .conditioning import own
from .ways import (
    GIVEN,
    NO_WAY,
    Way,
    blank,
    named_node,
    node_class,
    other_shape,
    reference_latents,
    source,
    way_of,
)

if TYPE_CHECKING:
    from comfy.clip_vision import ClipVisionModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE


@dataclass(frozen=True, kw_only=True)
class SeenBy:
    """A text encoder that sees the pictures: the stock node for it."""

    tokenizer: str
    """Class name; "" is any that takes pictures."""
    node: str
    arguments: Callable[[Sequence[Tensor], ControlPictures], dict[str, Any]]
    most: int
    negative: bool = False
    """Whether the node has a second output, for what is not wanted."""


# --- the text encoder ------------------------------------------------------------------------------------


def _numbered(first: int, text: str, images: Sequence[Tensor]) -> dict[str, Tensor]:
    return {text.format(i): image for i, image in enumerate(images, first)}


SEEN_BY = (
    SeenBy(
        tokenizer="QwenImageTokenizer",
        node="comfy_extras.nodes_qwen:TextEncodeQwenImageEditPlus",
        arguments=lambda images, _: _numbered(1, "image{}", images),
        most=3,
    ),
    SeenBy(
        tokenizer="BooguTokenizer",
        node="comfy_extras.nodes_boogu:TextEncodeBooguEdit",
        arguments=lambda images, _: {"images": _numbered(1, "image_{}", images)},
        most=16,
        negative=True,
    ),
    SeenBy(
        tokenizer="MageFlowTokenizer",
        node="comfy_extras.nodes_mage:TextEncodeMageFlowEdit",
        arguments=lambda images, pictures: {
            "images": _numbered(1, "image_{}", images),
            "width": pictures.target_size[0],
            "height": pictures.target_size[1],
        },
        most=16,
        negative=True,
    ),
    SeenBy(
        tokenizer="JoyImageTokenizer",
        node="comfy_extras.nodes_joyimage:TextEncodeJoyImageEdit",
        arguments=lambda images, _: {"images": _numbered(0, "image{}", images)},
        most=6,
    ),
    SeenBy(
        tokenizer="",
        node="comfy_extras.nodes_qwen:TextEncodeQwenImageEdit",
        arguments=lambda images, _: {"image": images[0]},
        most=1,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user says of how pictures are shown, where the models do not tell."""

    edit_node: str = "auto"
    """Class name of a node of `SEEN_BY`; "auto" is that of the text encoder's row."""
    vision: ClipVisionModel | None = field(default=None, repr=False)
    """For networks that take what it sees in a start picture."""
    vision_identity: str = ""


UNCHOSEN = Choices()


def seen_by(clip: CLIP | None, choices: Choices = UNCHOSEN) -> SeenBy | None:
    """The row for the text encoder, if it takes pictures."""
    tokenizer = getattr(clip, "tokenizer", None)
    tokenize = getattr(tokenizer, "tokenize_with_weights", None)
    if tokenize is None or "images" not in inspect.signature(tokenize).parameters:
        return None
    names = {c.__name__ for c in type(tokenizer).__mro__}
    if choices.edit_node != "auto":
        return next(row for row in SEEN_BY if row.node.endswith(f":{choices.edit_node}"))
    return next(row for row in SEEN_BY if row.tokenizer in names or not row.tokenizer)


CLIP_VISION = "clip_vision_output"
"""Among the values: what a CLIP vision model sees in the start picture, tensors by name."""

_INTERLEAVE = 2
"""The default of TextEncodeHunyuanVideo_ImageToVideo: how much the text counts beside the picture."""


class _NoText:
    """A CLIP for a node of which only the part of the VAE is wanted."""

    def tokenize(self, text: str, **options: Any) -> None:
        pass

    def encode_from_tokens_scheduled(self, tokens: None, **options: Any) -> list[Any]:
        return blank()


@dataclass(frozen=True, kw_only=True, eq=False)
class HostControls:
    """The engine's `Controls`."""

    values: Mapping[str, Any]
    """For the model's `extra_conds`: reference_latents, concat_latent_image, concat_mask; and `ways.GIVEN`,
    `CLIP_VISION`."""
    text_node: str = ""
    """`Way.text_node`, where the text encoder takes what `CLIP_VISION` is among the values."""
    seen: SeenBy | None = None
    pictures: ControlPictures | None = field(default=None, repr=False)

    @property
    def given(self) -> Mapping[str, Tensor] | None:
        """What sampling starts from, {"samples", "noise_mask"}, where a part of it is given and not drawn."""
        return self.values.get(GIVEN)

    @property
    def written(self) -> dict[str, Any]:
        """What the stock nodes write into a conditioning."""
        values = {name: value for name, value in self.values.items() if name not in (GIVEN, CLIP_VISION)}
        if CLIP_VISION in self.values and not self.text_node:
            values[CLIP_VISION] = self._vision
        return values

    @property
    def _vision(self) -> Output:
        output = Output()
        for name, tensor in self.values[CLIP_VISION].items():
            output[name] = tensor
        return output

    @property
    def in_text(self) -> bool:
        """Whether the text encoder is shown the pictures, so that no other sample has the encoded text."""
        return self.seen is not None or bool(self.text_node)

    def encode_text(self, clip: Any, text: str, *, negative: bool = False) -> list[Any]:
        """As the stock node does for this text and what its encoder sees.

        clip: has `tokenize` and `encode_from_tokens_scheduled`. negative: the text says what is not wanted.
        """
        if self.text_node:
            node = named_node(self.text_node)
            return node.execute(clip, self._vision, text, _INTERLEAVE)[0]
        if self.seen is None or self.pictures is None:
            return clip.encode_from_tokens_scheduled(clip.tokenize(text))
        return _run(self.seen, clip, text, None, self.pictures, negative)


def _run(
    seen: SeenBy, clip: Any, text: str, vae: VAE | None, pictures: ControlPictures, negative: bool
) -> list[Any]:
    images = [to_tensor(read()) for read in pictures.images[: seen.most]]
    arguments = seen.arguments(images, pictures)
    if seen.negative:
        arguments |= {"negative_prompt": text}
    module, name = seen.node.split(":")
    out = node_class(module, name).execute(clip=clip, prompt=text, vae=vae, **arguments)
    return out[1 if negative and seen.negative else 0]


class ControlEncoder:
    """Makes `HostControls` for one model, by the VAE of the graph."""

    def __init__(
        self, model: ModelPatcher, vae: VAE, clip: CLIP | None = None, choices: Choices = UNCHOSEN
    ) -> None:
        self.vae, self.way, self.choices = vae, way_of(model), choices
        self.vision = choices.vision if self.way.features(model.model) else None
        self.seen = seen_by(clip, choices) if self.way.values is reference_latents else None

    @property
    def draws_with_pictures(self) -> bool:
        """Whether control pictures change what the sampler draws: an inpaint model paints all of it anew."""
        return self.way is not NO_WAY and not self.way.masks

    @property
    def kind(self) -> str:
        told = f" {self.choices.vision_identity}" if self.vision else ""
        return f"{self.way.name} {self.seen.node if self.seen else ''}{told}"

    @property
    def takes_pictures(self) -> bool:
        return self.way is not NO_WAY

    @torch.no_grad()
    def __call__(self, pictures: ControlPictures) -> HostControls | None:
        """None where there is nothing to give."""
        shown = self.way.masks or pictures.images or pictures.first_frame
        if self.way is NO_WAY or not shown or (self.way.start and pictures.frames == 1):
            return None
        if self.seen is None:
            values = self.way.values(self.vae, pictures)
            if self.vision is not None:
                values |= {CLIP_VISION: _seen_in(self.vision, source(pictures))}
        else:
            values = _run(self.seen, _NoText(), "", self.vae, pictures, False)[0][1]
        return self.with_values(own(values), pictures)

    def with_values(self, values: Mapping[str, Any], pictures: ControlPictures) -> HostControls:
        """As encoded before."""
        if self.seen is None:
            text_node = self.way.text_node if CLIP_VISION in values else ""
            return HostControls(values=values, text_node=text_node)
        lean = replace(pictures, target=torch.empty(0), mask=None)  # many are kept at once
        return HostControls(values=values, seen=self.seen, pictures=lean)


def _seen_in(vision: ClipVisionModel, image: Tensor) -> dict[str, Tensor]:
    """What CLIPVisionEncode gives of a picture, whole: scaled to a square, with no crop."""
    (output,) = node_class("nodes", "CLIPVisionEncode")().encode(vision, image, "none")
    return {name: value for name, value in vars(output).items() if isinstance(value, Tensor)}


def to_sample(
    images: Sequence[Path | Image.Image], size: tuple[int, int], frames: int = 1
) -> ControlPictures:
    """Control pictures of a picture or clip of this size (width, height) that is yet to be drawn."""
    return ControlPictures(
        images=[
            partial(open_image, i) if isinstance(i, Path) else partial(Image.Image.copy, i) for i in images
        ],
        target=torch.zeros(size[1], size[0], 3),
        target_size=size,
        size=size,
        cut=lambda image: fit(image, size),
        frames=frames,
    )


# --- the dataset -----------------------------------------------------------------------------------------


def suited(
    dataset: Dataset, model: ModelPatcher, clip: CLIP | None, emit: Emit, choices: Choices = UNCHOSEN
) -> Dataset:
    """The pictures that this model can be trained on, with the control pictures that it takes.

    What is left out is said. Raises DatasetError when the model needs control pictures and there are none.
    """
    way, seen = way_of(model), seen_by(clip, choices)
    name = type(model.model).__name__
    if way.start:
        dataset = _for_starts(dataset, way, name, emit)
    given = [r for r in dataset.records if r.controls]
    if way.needed and not way.start and not any(r.role != "class" for r in given):
        raise DatasetError(
            f"{name} has input channels for a control picture and the dataset has none; put name-control.png"
            " beside each picture, or give a control_folder (Load Dataset)"
        )
    if given and way is NO_WAY:
        message = f"{name} takes no control pictures; those of {len(given)} pictures are not used"
        emit(Notice(message=message))
    most = min(way.most, seen.most) if seen and way.values is reference_latents else way.most
    if more := [r.name for r in given if len(r.controls) > most > 0]:
        message = f"{name} takes {most} control pictures at most; the first are used of {shortened(more)}"
        emit(Notice(message=message))
    if way.aligned and (odd := [r.name for r in given if other_shape(r.controls[0].size, r.size)]):
        emit(
            Notice(
                message=f"control pictures of another shape than their picture are cut at both sides evenly:"
                f" {shortened(odd)}"
            )
        )
    records = [_with_first(r, most) for r in dataset.records]
    if way.start:
        records = [_with_start(r, needed=way.needed) for r in records]
    elif way.needed and (without := [r.name for r in records if not r.controls]):
        message = f"{name} needs a control picture; left out, for they have none: {shortened(without)}"
        emit(Notice(message=message))
        records = [r for r in records if r.controls]
    if choices.edit_node != "auto" and not (seen and way.values is reference_latents):
        emit(
            Notice(
                message=f"edit_node {choices.edit_node} is not used: {name} is no edit model that it is for"
            )
        )
    shown = any(r.first_frame or r.controls for r in records)
    if way.start and shown and way.features(model.model) and choices.vision is None:
        message = (
            f"{name} is made to be told what a CLIP vision model sees in the start picture; it is trained"
            " without, for clip_vision is not connected (Train LoRA)"
        )
        emit(Notice(message=message))
    return dataset.with_records(records)


def _with_first(record: ImageRecord, most: int) -> ImageRecord:
    return record if len(record.controls) <= most else replace(record, controls=record.controls[:most])


def _moves(record: ImageRecord) -> bool:
    return record.clip is not None and any(span.frames > 1 for span in record.clip.spans)


def _for_starts(dataset: Dataset, way: Way, name: str, emit: Emit) -> Dataset:
    """Of a model that is given start pictures: what can have one, or can do without."""
    records = list(dataset.records)
    if way.needed and (
        refused := [r.name for r in records if r.clip and r.clip.options.start_picture == "none"]
    ):
        raise DatasetError(
            f"{name} draws from a start picture and start_picture is none (Video Clips) for"
            f" {shortened(refused)}; choose auto or first frame"
        )
    still = [r for r in records if not _moves(r)]
    if way.needed and still:
        names = shortened(r.name for r in still)
        records = [r for r in records if _moves(r)]
        if not records:
            raise DatasetError(
                f"{name} is given the first frame of what it draws, and the dataset has only still pictures"
                f" ({names}); add clips"
            )
        emit(Notice(message=f"{name} is given the first frame, so still pictures are left out: {names}"))
    elif unused := [r.name for r in still if r.controls]:
        message = f"{name} takes control pictures of clips only; not used of {shortened(unused)}"
        emit(Notice(message=message))
        records = [r if _moves(r) else replace(r, controls=()) for r in records]
    return dataset.with_records(
        replace(r, controls=()) if r.clip and r.clip.options.start_picture == "none" else r for r in records
    )


def _with_start(record: ImageRecord, *, needed: bool) -> ImageRecord:
    asked = needed or (record.clip is not None and record.clip.options.start_picture == "first frame")
    return replace(record, first_frame=asked and _moves(record) and not record.controls)
