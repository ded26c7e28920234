"""Control pictures as ComfyUI's own nodes give them to a network.

Which nodes that are is read from the network (`WAYS`) and from the text encoder's tokenizer (`SEEN_BY`). The
nodes themselves are run, so a condition in training is the one that a graph of stock nodes builds.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..data.buckets import bucket_size
from ..data.images import fit, open_image
from ..data.records import Dataset, ImageRecord
from ..errors import DatasetError, shortened
from ..events import Emit, Notice
from ..pictures.drawing import to_tensor
from ..ports import ControlPictures
from .conditioning import own

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

_STEP = 64
"""What the sides of a reference are multiples of: enough for every VAE and patch."""


# --- the network -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a network is given control pictures."""

    name: str
    fits: Callable[[BaseModel], bool]
    values: Callable[[VAE, ControlPictures], dict[str, Any]]
    """What a node writes into a conditioning, which the model's `extra_conds` reads."""
    most: int = 1
    """Pictures; of more, the first are taken."""
    needed: bool = False
    """Whether the network has input channels for a picture."""
    aligned: bool = False
    """Whether a control picture is cut as the picture that is trained on."""
    masks: bool = False
    """Whether a mask says what is painted anew."""


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


def _node(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _blank() -> list[Any]:
    return [[None, {}]]


def _source(pictures: ControlPictures) -> Tensor:
    """[1, H, W, 3]: the first control picture as the target was cut; without one, the target."""
    if not pictures.images:
        return pictures.target[None]
    image = pictures.images[0]()
    if _other_shape(image.size, pictures.size):
        return fit(image, pictures.target_size)[None]
    if image.size != pictures.size:
        image = image.resize(pictures.size, Image.Resampling.LANCZOS)
    return pictures.cut(image)[None]


def _inpainted(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    source = _source(pictures)
    mask = torch.ones(source.shape[:3]) if pictures.mask is None else pictures.mask[None]
    node = _node("nodes", "InpaintModelConditioning")()
    return node.encode(_blank(), _blank(), source, vae, mask)[0][0][1]


def _beside_the_noise(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    node = _node("comfy_extras.nodes_ip2p", "InstructPixToPixConditioning")
    return node.execute(_blank(), _blank(), _source(pictures), vae)[0][0][1]


def _reference_latents(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    node = _node("comfy_extras.nodes_edit_model", "ReferenceLatent")
    width, height = pictures.target_size
    conditioning = _blank()
    for image in (read() for read in pictures.images):
        size = bucket_size(*image.size, resolution=round((width * height) ** 0.5), step=_STEP)
        latent = vae.encode(fit(image, size)[None])
        conditioning = node.execute(conditioning, {"samples": latent})[0]
    return conditioning[0][1]


def _nothing(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    return {}


def _concatenated(model: BaseModel) -> int:
    """Channels that the network takes besides the latent's; 0 for video, where they are for first frames."""
    latent_format = model.latent_format
    if latent_format.latent_dimensions != 2:
        return 0
    with torch.no_grad():
        noise = torch.zeros(1, latent_format.latent_channels, 8, 8)
        beside = model.concat_cond(noise=noise, latent_image=noise, device=noise.device)
    return 0 if beside is None else beside.shape[1]


def _takes(model: BaseModel, name: str) -> bool:
    """Whether the network's forward pass has an argument of this name."""
    net = model.diffusion_model
    passes = (f for n in ("forward", "_forward") if (f := getattr(net, n, None)) is not None)
    return any(name in inspect.signature(f).parameters for f in passes)


def _inpaints(model: BaseModel) -> bool:
    return _concatenated(model) > model.latent_format.latent_channels


def _has_channels(model: BaseModel) -> bool:
    return _concatenated(model) == model.latent_format.latent_channels


def _attends(model: BaseModel) -> bool:
    # Krea 2 leaves references out when it is told no way to place them; Z-Image Omni wants a text for each.
    placed = getattr(model.diffusion_model, "default_ref_method", "") is not None
    return _takes(model, "ref_latents") and placed and not _takes(model, "ref_contexts")


WAYS = (
    Way(name="inpainting", fits=_inpaints, values=_inpainted, aligned=True, masks=True),
    Way(
        name="a picture beside the noise",
        fits=_has_channels,
        values=_beside_the_noise,
        needed=True,
        aligned=True,
    ),
    Way(
        name="a picture beside the noise, or none",
        fits=lambda model: _takes(model, "image_cond"),
        values=_beside_the_noise,
        aligned=True,
    ),
    Way(name="reference latents", fits=_attends, values=_reference_latents, most=16),
)
NO_WAY = Way(name="none", fits=lambda model: True, values=_nothing, most=0)


def way_of(model: ModelPatcher) -> Way:
    """How this model is given control pictures."""
    return next(way for way in (*WAYS, NO_WAY) if way.fits(model.model))


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


def seen_by(clip: CLIP | None) -> SeenBy | None:
    """The row for the text encoder, if it takes pictures."""
    tokenizer = getattr(clip, "tokenizer", None)
    tokenize = getattr(tokenizer, "tokenize_with_weights", None)
    if tokenize is None or "images" not in inspect.signature(tokenize).parameters:
        return None
    names = {c.__name__ for c in type(tokenizer).__mro__}
    return next(row for row in SEEN_BY if row.tokenizer in names or not row.tokenizer)


class _NoText:
    """A CLIP for a node of which only the part of the VAE is wanted."""

    def tokenize(self, text: str, **options: Any) -> None:
        pass

    def encode_from_tokens_scheduled(self, tokens: None, **options: Any) -> list[Any]:
        return _blank()


@dataclass(frozen=True, kw_only=True, eq=False)
class HostControls:
    """The engine's `Controls`."""

    values: Mapping[str, Any]
    """For the model's `extra_conds`: reference_latents, concat_latent_image, concat_mask."""
    seen: SeenBy | None = None
    pictures: ControlPictures | None = field(default=None, repr=False)

    def encode_text(self, clip: Any, text: str, *, negative: bool = False) -> list[Any]:
        """As the stock node does for this text and what its encoder sees.

        clip: has `tokenize` and `encode_from_tokens_scheduled`. negative: the text says what is not wanted.
        """
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
    out = _node(module, name).execute(clip=clip, prompt=text, vae=vae, **arguments)
    return out[1 if negative and seen.negative else 0]


class ControlEncoder:
    """Makes `HostControls` for one model, by the VAE of the graph."""

    def __init__(self, model: ModelPatcher, vae: VAE, clip: CLIP | None = None) -> None:
        self.vae, self.way = vae, way_of(model)
        self.seen = seen_by(clip) if self.way.values is _reference_latents else None

    @property
    def draws_with_pictures(self) -> bool:
        """Whether control pictures change what the sampler draws: an inpaint model paints all of it anew."""
        return self.way is not NO_WAY and not self.way.masks

    @property
    def kind(self) -> str:
        return f"{self.way.name} {self.seen.node if self.seen else ''}"

    @property
    def takes_pictures(self) -> bool:
        return self.way is not NO_WAY

    @torch.no_grad()
    def __call__(self, pictures: ControlPictures) -> HostControls | None:
        """None where there is nothing to give."""
        if self.way is NO_WAY or not (self.way.masks or pictures.images):
            return None
        if self.seen is None:
            values = self.way.values(self.vae, pictures)
        else:
            values = _run(self.seen, _NoText(), "", self.vae, pictures, False)[0][1]
        return self.with_values(own(values), pictures)

    def with_values(self, values: Mapping[str, Any], pictures: ControlPictures) -> HostControls:
        """As encoded before."""
        if self.seen is None:
            return HostControls(values=values)
        lean = replace(pictures, target=torch.empty(0), mask=None)  # many are kept at once
        return HostControls(values=values, seen=self.seen, pictures=lean)


def to_sample(images: Sequence[Path | Image.Image], size: tuple[int, int]) -> ControlPictures:
    """Control pictures of a picture of this size (width, height) that is yet to be drawn."""
    return ControlPictures(
        images=[
            partial(open_image, i) if isinstance(i, Path) else partial(Image.Image.copy, i) for i in images
        ],
        target=torch.zeros(size[1], size[0], 3),
        target_size=size,
        size=size,
        cut=lambda image: fit(image, size),
    )


# --- the dataset -----------------------------------------------------------------------------------------


def suited(dataset: Dataset, model: ModelPatcher, clip: CLIP | None, emit: Emit) -> Dataset:
    """The pictures that this model can be trained on, with the control pictures that it takes.

    What is left out is said. Raises DatasetError when the model needs control pictures and there are none.
    """
    way, seen = way_of(model), seen_by(clip)
    name = type(model.model).__name__
    given = [r for r in dataset.records if r.controls]
    if way.needed and not any(r.role != "class" for r in given):
        raise DatasetError(
            f"{name} has input channels for a control picture and the dataset has none; put name-control.png"
            " beside each picture, or give a control_folder (Load Dataset)"
        )
    if given and way is NO_WAY:
        message = f"{name} takes no control pictures; those of {len(given)} pictures are not used"
        emit(Notice(message=message))
    most = min(way.most, seen.most) if seen and way.values is _reference_latents else way.most
    if more := [r.name for r in given if len(r.controls) > most > 0]:
        message = f"{name} takes {most} control pictures at most; the first are used of {shortened(more)}"
        emit(Notice(message=message))
    if way.aligned and (odd := [r.name for r in given if _other_shape(r.controls[0].size, r.size)]):
        emit(
            Notice(
                message=f"control pictures of another shape than their picture are cut at both sides evenly:"
                f" {shortened(odd)}"
            )
        )
    records = [_with_first(r, most) for r in dataset.records]
    if way.needed and (without := [r.name for r in records if not r.controls]):
        message = f"{name} needs a control picture; left out, for they have none: {shortened(without)}"
        emit(Notice(message=message))
        records = [r for r in records if r.controls]
    return dataset.with_records(records)


def _with_first(record: ImageRecord, most: int) -> ImageRecord:
    return record if len(record.controls) <= most else replace(record, controls=record.controls[:most])


def _other_shape(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """By more than a pixel."""
    (w, h), (tw, th) = size, of
    return abs(w * th - h * tw) > max(w, h, tw, th)
