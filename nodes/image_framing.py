"""ImageFraming: what of each picture is trained, and at which sizes."""

from __future__ import annotations

import re

from comfy_api.latest import io
from PIL import ImageColor

from ..trainer.data.framing import CROPS, MAX_CROPS, MAX_JITTERS, STEPS, UPSCALING, Framing
from ..trainer.errors import ConfigError
from .sockets import CATEGORY
from .sockets import Framing as FramingSocket

_D = Framing()


class ImageFraming(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageFraming",
            display_name="Image Framing",
            category=CATEGORY,
            description="How pictures are cropped, mirrored and sized for training.",
            search_aliases=["crop", "flip", "augmentation", "bucket", "multi resolution", "裁剪", "resize"],
            inputs=[
                io.String.Input(
                    "resolutions",
                    default="",
                    tooltip="Train each picture at several resolutions, for example 512, 768, 1024. Empty: at"
                    " that of Load Dataset.",
                ),
                io.Combo.Input(
                    "crop",
                    options=list(CROPS),
                    default=_D.crop,
                    tooltip="focus: around the box that the metadata names, without one the centre. random:"
                    " places drawn from the seed. none: the whole picture, in the shape nearest to its own.",
                ),
                io.Int.Input(
                    "crops", default=_D.crops, min=1, max=MAX_CROPS, tooltip="Random crops of each picture."
                ),
                io.Boolean.Input(
                    "flip",
                    default=_D.flip,
                    tooltip="Train each picture mirrored, too. Not for faces, text, or what has a left and a"
                    " right.",
                ),
                io.Combo.Input(
                    "upscaling",
                    options=list(UPSCALING),
                    default=_D.upscaling,
                    tooltip="Pictures with fewer pixels than the resolution. allow: enlarged, and named."
                    " own_size: trained at their own size. refuse: left out, and named.",
                ),
                io.Combo.Input(
                    "step",
                    options=[str(s) for s in STEPS],
                    default=str(_D.step),
                    advanced=True,
                    tooltip="What sides are multiples of. 64 suits every model; with 32 or 16, which DiT"
                    " models take, less is cropped. What the model needs is kept in any case.",
                ),
                io.Float.Input(
                    "color_jitter",
                    default=_D.jitter,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    advanced=True,
                    tooltip="Largest change of brightness, contrast and saturation. 0 is off.",
                ),
                io.Int.Input(
                    "color_variants",
                    default=_D.jitters,
                    min=1,
                    max=MAX_JITTERS,
                    advanced=True,
                    tooltip="With color_jitter: versions with changed colours beside each picture.",
                ),
                io.String.Input(
                    "background",
                    default="#ffffff",
                    advanced=True,
                    tooltip="Colour under transparent parts: #rrggbb, or a name such as gray.",
                ),
                io.Boolean.Input(
                    "alpha_mask",
                    default=_D.alpha_mask,
                    advanced=True,
                    tooltip="Transparent parts count as masked out, where a picture has no mask of its own.",
                ),
                io.Int.Input(
                    "framing_seed",
                    default=_D.seed,
                    min=0,
                    max=2**63 - 1,
                    advanced=True,
                    tooltip="Of random crops and colours.",
                ),
            ],
            outputs=[FramingSocket.Output(display_name="framing", tooltip="For Load Dataset.")],
        )

    @classmethod
    def execute(
        cls,
        resolutions: str,
        crop: str,
        crops: int,
        flip: bool,
        upscaling: str,
        step: str,
        color_jitter: float,
        color_variants: int,
        background: str,
        alpha_mask: bool,
        framing_seed: int,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            Framing(
                resolutions=numbers(resolutions),
                crop=crop,
                crops=crops,
                flip=flip,
                jitter=color_jitter,
                jitters=color_variants,
                upscaling=upscaling,
                step=int(step),
                background=colour(background),
                alpha_mask=alpha_mask,
                seed=framing_seed,
            )
        )


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas or spaces between them. Raises ConfigError."""
    parts = [p for p in re.split(r"[\s,，;]+", text) if p]
    if odd := [p for p in parts if not re.fullmatch(r"[0-9]{1,6}", p)]:
        raise ConfigError(f"resolutions: {odd[0]!r} is no whole number; write for example 512, 768, 1024")
    return tuple(int(p) for p in parts)


def colour(text: str) -> tuple[int, int, int]:
    """Raises ConfigError for what Pillow knows as no colour."""
    try:
        red, green, blue, *_ = ImageColor.getrgb(text.strip())
    except ValueError as e:
        raise ConfigError(f"background: {text!r} is no colour; write #rrggbb or a name such as gray") from e
    return red, green, blue
