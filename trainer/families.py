"""One row a model family. A family that is not listed trains by the defaults of `UNLISTED`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    name: str
    """`ss_base_model_version` in files."""
    title: str = ""
    config: str = ""
    """Class name of ComfyUI's model config (`comfy.supported_models`); the row is for its subclasses too."""
    file_names: Literal["diffusers", "module", "dotted"] = "dotted"
    """Tensor names of a LoRA: kohya's, from diffusers' module names (SD 1, SD 2) or from the checkpoint's own
    ("module"); or `diffusion_model.<module>`, which ComfyUI and diffusers both read ("dotted")."""
    blocks: tuple[str, ...] = ()
    """Class names of the blocks that are checkpointed and compiled; () means `memory.blocks` finds them."""
    in_place: tuple[str, ...] = ()
    """Class names of the modules that write to their arguments in place, by `+=` only."""
    fps: float | None = None
    """Frames a second of a video model, 0 if it has no rate of its own; None trains still pictures only."""
    in_place_calls: tuple[str, ...] | None = ()
    """Class names of the modules that write in place by calls (`x.add_(y)`); None: any block may."""
    shift_line: tuple[float, float, float, float] | None = None
    """(tokens, μ, tokens, μ) of flux_shift; None is Flux.1's line."""
    told_crops: bool = False
    """Whether the network is told each picture's size before scaling and where it was cropped."""


_UNET = ("ResBlock", "BasicTransformerBlock")
_FLUX = ("DoubleStreamBlock", "SingleStreamBlock")

FAMILIES = (
    Family(name="sd_v1", title="Stable Diffusion 1", config="SD15", file_names="diffusers", blocks=_UNET),
    Family(name="sd_v2", title="Stable Diffusion 2", config="SD20", file_names="diffusers", blocks=_UNET),
    Family(
        name="sdxl_base_v1-0",
        title="SDXL",
        config="SDXL",
        file_names="module",
        blocks=_UNET,
        told_crops=True,
    ),
    Family(name="sd3", title="Stable Diffusion 3", config="SD3", file_names="module"),
    Family(name="flux1", title="Flux.1", config="Flux", file_names="module", in_place=_FLUX),
    Family(name="flux2", title="Flux.2", config="Flux2", file_names="module", in_place=_FLUX),
    Family(name="chroma", title="Chroma", config="Chroma", file_names="module", in_place=_FLUX),
    Family(name="qwen_image", title="Qwen-Image", config="QwenImage"),
    Family(name="z_image", title="Z-Image", config="ZImage"),
    Family(name="lumina2", title="Lumina 2", config="Lumina2"),
    Family(name="wan2.1", title="Wan 2.1 and 2.2", config="WAN21_T2V", fps=16),
    Family(name="wan2.2_5b", title="Wan 2.2 5B", config="WAN22_T2V", fps=24),
    Family(name="hunyuan_video", title="HunyuanVideo", config="HunyuanVideo", in_place=_FLUX, fps=24),
    Family(
        name="ltxv",
        title="LTX-Video",
        config="LTXV",
        fps=25,
        shift_line=(1024, 0.95, 4096, 2.05),  # LTXVScheduler, ModelSamplingLTXV
        in_place_calls=("BasicTransformerBlock", "BasicAVTransformerBlock"),
    ),
    Family(name="auraflow", title="AuraFlow", config="AuraFlow"),
    Family(name="pixart", title="PixArt", config="PixArtAlpha"),
    Family(name="hidream", title="HiDream", config="HiDream"),
    Family(name="anima", title="Anima", config="Anima"),
    Family(name="krea2", title="Krea 2", config="Krea2"),
    Family(name="cosmos_predict2", title="Cosmos-Predict2", config="CosmosT2IPredict2"),
)
UNLISTED = Family(name="unlisted", title="Any other", fps=0, in_place_calls=None)


def family_of(config: type) -> Family:
    """The row for the class of a ComfyUI model config, or for the nearest of its bases that has one."""
    rows = {f.config: f for f in FAMILIES}
    return next((rows[c.__name__] for c in config.__mro__ if c.__name__ in rows), UNLISTED)
