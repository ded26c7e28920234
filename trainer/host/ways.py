"""How a network is given pictures beside the noise: one row a way.

The rows name ComfyUI's own nodes, which are run: `references` does it for a whole sample.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..data.buckets import bucket_size
from ..data.images import fit
from ..errors import ModelError
from ..ports import ControlPictures

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import VAE

_STEP = 64
"""What the sides of a reference are multiples of: enough for every VAE and patch."""

GIVEN = "given_latent"
"""Among a way's values: the latent that sampling starts from, where a part of it is given and not drawn."""


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
    start: bool = False
    """Whether the picture is the first frame of what is drawn; it is given of clips only."""
    features: Callable[[BaseModel], bool] = lambda model: False
    """Whether the network takes what a CLIP vision model sees in the picture, too."""
    text_node: str = ""
    """`module:Class` of the node by which the text encoder takes that; "" is CLIPTextEncode, without it."""


def node_class(module: str, name: str) -> Any:
    """A node class of ComfyUI's own. Raises ModelError if this version has none of the name."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ModelError(
            f"this ComfyUI has no node {name}, by which the model is given control pictures; update ComfyUI"
        ) from e


def named_node(path: str) -> Any:
    """`module:Class`, as `node_class`."""
    return node_class(*path.split(":"))


def blank() -> list[Any]:
    return [[None, {}]]


def source(pictures: ControlPictures) -> Tensor:
    """[1, H, W, 3]: the first control picture as the target was cut; without one, the target."""
    if not pictures.images:
        return pictures.target[None]
    image = pictures.images[0]()
    if other_shape(image.size, pictures.size):
        return fit(image, pictures.target_size)[None]
    if image.size != pictures.size:
        image = image.resize(pictures.size, Image.Resampling.LANCZOS)
    return pictures.cut(image)[None]


def _inpainted(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    shown = source(pictures)
    mask = torch.ones(shown.shape[:3]) if pictures.mask is None else pictures.mask[None]
    node = node_class("nodes", "InpaintModelConditioning")()
    return node.encode(blank(), blank(), shown, vae, mask)[0][0][1]


def _beside_the_noise(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    node = node_class("comfy_extras.nodes_ip2p", "InstructPixToPixConditioning")
    return node.execute(blank(), blank(), source(pictures), vae)[0][0][1]


def reference_latents(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    node = node_class("comfy_extras.nodes_edit_model", "ReferenceLatent")
    width, height = pictures.target_size
    conditioning = blank()
    for image in (read() for read in pictures.images):
        size = bucket_size(*image.size, resolution=round((width * height) ** 0.5), step=_STEP)
        latent = vae.encode(fit(image, size)[None])
        conditioning = node.execute(conditioning, {"samples": latent})[0]
    return conditioning[0][1]


def _start_picture(node: str, **settings: Any) -> Callable[[VAE, ControlPictures], dict[str, Any]]:
    """What a node of image to video makes of the first frame. Its latent counts where it says which part of
    it is given."""

    def values(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
        shown = source(pictures)
        given = {
            "positive": blank(), "negative": blank(), "vae": vae, "start_image": shown, "image": shown,
            "width": pictures.target_size[0], "height": pictures.target_size[1], "length": pictures.frames,
            "batch_size": 1, "strength": 1.0, **settings,
        }  # fmt: skip
        execute = named_node(node).execute
        names = inspect.signature(execute).parameters
        out = execute(**{name: value for name, value in given.items() if name in names}).args
        written = dict(out[0][0][1]) if "positive" in names else {}
        return {**written, GIVEN: out[-1]} if "noise_mask" in out[-1] else written

    return values


def _nothing(vae: VAE, pictures: ControlPictures) -> dict[str, Any]:
    return {}


def _concatenated(model: BaseModel) -> int:
    """Channels that the network takes besides the latent's; 0 for video, where they are for first frames."""
    return _beside(model) if model.latent_format.latent_dimensions == 2 else 0


def _beside(model: BaseModel) -> int:
    """Channels that the network takes besides the latent's."""
    latent_format = model.latent_format
    with torch.no_grad():
        noise = torch.zeros(1, latent_format.latent_channels, *[8] * latent_format.latent_dimensions)
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


def _is(*classes: str) -> Callable[[BaseModel], bool]:
    """Of these classes themselves: what is derived from one is given something else."""
    return lambda model: type(model).__name__ in classes


def _wan_starts(model: BaseModel) -> bool:
    """Wan 2.1 and 2.2 14B: a mask of four channels and a latent."""
    return _is("WAN21")(model) and _beside(model) == 4 + model.latent_format.latent_channels


def _sees(model: BaseModel) -> bool:
    net = model.diffusion_model
    return any(getattr(net, name, None) is not None for name in ("img_emb", "vision_in"))


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
    Way(name="reference latents", fits=_attends, values=reference_latents, most=16),
    Way(
        name="a start picture beside the noise",
        fits=_wan_starts,
        values=_start_picture("comfy_extras.nodes_wan:WanImageToVideo"),
        needed=True,
        aligned=True,
        start=True,
        features=_sees,
    ),
    Way(
        name="a start picture beside the noise",
        fits=_is("HunyuanVideoI2V", "HunyuanVideoSkyreelsI2V"),
        values=_start_picture("comfy_extras.nodes_hunyuan:HunyuanImageToVideo", guidance_type="v1 (concat)"),
        needed=True,
        aligned=True,
        start=True,
        features=_is("HunyuanVideoI2V"),
        text_node="comfy_extras.nodes_hunyuan:TextEncodeHunyuanVideo_ImageToVideo",
    ),
    Way(
        name="a start picture beside the noise, or none",
        fits=_is("HunyuanVideo15"),
        values=_start_picture("comfy_extras.nodes_hunyuan:HunyuanVideo15ImageToVideo"),
        aligned=True,
        start=True,
        features=_sees,
    ),
    Way(
        name="a start picture as the first frame, or none",
        fits=_is("HunyuanVideo"),
        values=_start_picture("comfy_extras.nodes_hunyuan:HunyuanImageToVideo", guidance_type="v2 (replace)"),
        aligned=True,
        start=True,
    ),
    Way(
        name="a start picture as the first frame, or none",
        fits=_is("WAN22"),
        values=_start_picture("comfy_extras.nodes_wan:Wan22ImageToVideoLatent"),
        aligned=True,
        start=True,
    ),
    Way(
        name="a start picture as the first frame, or none",
        fits=_is("LTXV"),
        values=_start_picture("comfy_extras.nodes_lt:LTXVImgToVideo"),
        aligned=True,
        start=True,
    ),
)
NO_WAY = Way(name="none", fits=lambda model: True, values=_nothing, most=0)


def way_of(model: ModelPatcher) -> Way:
    """How this model is given control pictures."""
    return next(way for way in (*WAYS, NO_WAY) if way.fits(model.model))


_OTHERS_NEED = {
    "WAN21_Camera": "a camera's path",
    "WAN21_HuMo": "sound and a reference picture",
    "WAN21_SCAIL": "a pose video",
    "WAN21_SCAIL2": "a pose video",
    "WAN22_Animate": "a pose video and a face video",
    "WAN22_S2V": "sound",
    "WAN22_WanDancer": "music",
    "HunyuanVideo15_SR_Distilled": "the clip that it makes larger",
    "HunyuanImage21Refiner": "the picture that it refines",
}
"""Class in `comfy.model_base` → what its network is given that no dataset has."""


def check_given(model: ModelPatcher) -> None:
    """Raises ModelError for a network that is drawn with what the pack cannot give it in training."""
    base = model.model
    name = type(base).__name__
    lacks = _OTHERS_NEED.get(name)
    if lacks is None and _beside(base) and way_of(model) is NO_WAY and name in ("WAN21", "CogVideoX"):
        lacks = "a control video" if name == "WAN21" else "a start picture, in a way of its own,"
    if lacks is None and getattr(base, "image_to_video", False) and name.startswith("Cosmos"):
        lacks = "a start picture, in a way of its own,"
    if lacks:
        raise ModelError(
            f"{name} is given {lacks} beside the caption, which this pack cannot do yet; its LoRA would be"
            " trained for something else. Train the text-to-video or image-to-video model of the family"
        )


def check_draws_alone(model: ModelPatcher) -> None:
    """Raises ModelError for a network that draws clips from a start picture only."""
    way = way_of(model)
    if way.start and way.needed:
        raise ModelError(
            f"{type(model.model).__name__} draws from a start picture, which Evaluate LoRA has none of; use"
            " Compare Baseline with a control picture"
        )


def other_shape(size: tuple[int, int], of: tuple[int, int]) -> bool:
    """By more than a pixel."""
    (w, h), (tw, th) = size, of
    return abs(w * th - h * tw) > max(w, h, tw, th)
