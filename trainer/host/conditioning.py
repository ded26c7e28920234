"""Captions to conditions, by the text encoder of the graph and the model's own `extra_conds`."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from comfy.conds import CONDRegular
from comfy.sampler_helpers import prepare_mask
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_map_only

from ..data.store import Entry
from ..data.views import View
from ..errors import ModelError
from ..ports import Traces
from . import kept_conditions
from .caption_tokens import CaptionTokenizer
from .model import START, Condition, model_family

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

    from .references import HostControls

_CONTEXT_WIDTH_KEYS = ("context_dim", "context_in_dim", "cap_feat_dim", "joint_attention_dim", "text_dim")
"""Names under which ComfyUI's network configs keep the width of the text embedding."""

_REMEMBERED = 4
"""Captions whose encoding is remembered: all pictures of one come one after the other."""


def own(value: Any) -> Any:
    """Tensors, also within lists and dicts, on the CPU, where they take no device memory, and no inference
    tensors. What is that already is shared: of a caption's many uses one copy is kept."""

    def plain(t: Tensor) -> Tensor:
        return t.detach().to("cpu", copy=t.is_inference() or t.requires_grad)

    return tree_map_only(Tensor, plain, value)


@contextmanager
def _weights_used(model: nn.Module) -> Iterator[set[str]]:
    """Fills the set with the classes of those modules with weights that run in the block."""
    own = {id(m) for m in model.modules() if any(True for _ in (*m.parameters(False), *m.buffers(False)))}
    used: set[str] = set()

    def look(module: nn.Module, args: Any) -> None:
        if id(module) in own:
            used.add(type(module).__name__)

    hook = register_module_forward_pre_hook(look)
    try:
        yield used
    finally:
        hook.remove()


def crop_conditions(view: View) -> dict[str, int]:
    """What CLIPTextEncodeSDXL puts into a conditioning: the size before scaling, where the crop begins in the
    scaled picture, and the size that is trained."""
    (width, height), (crop_w, crop_h) = view.original, view.top_left
    return {
        "width": width,
        "height": height,
        "crop_w": crop_w,
        "crop_h": crop_h,
        "target_width": view.size[0],
        "target_height": view.size[1],
    }


def text_of(clip: Any, caption: str, references: HostControls | None) -> list[Any]:
    """The caption as the stock node for it encodes it; the empty one is what is not wanted."""
    if references is None:
        return clip.encode_from_tokens_scheduled(clip.tokenize(caption))
    return references.encode_text(clip, caption, negative=not caption)


class HostTextEncoder:
    """The engine's `TextEncoder`: one caption for one latent, each caption encoded once."""

    def __init__(
        self,
        clip: CLIP,
        patcher: ModelPatcher,
        guidance: float = 1.0,
        caption_syntax: str = "text",
        frame_rate: float | None = None,
        *,
        identity: str = "",
        network_identity: str = "",
    ) -> None:
        """frame_rate: what a video model that asks for it is told (LTX-Video); None is its own default.
        identity: `identity.conditions_identity`; "" is like no other encoder's."""
        self.identity = identity or uuid.uuid4().hex
        self.network_identity = network_identity or self.identity
        self.clip = clip
        self.tokenize = CaptionTokenizer(clip, caption_syntax)
        self.patcher = patcher
        self.guidance = guidance
        self.frame_rate = frame_rate
        self._encoded: OrderedDict[str, dict[str, Any]] = OrderedDict()

    @property
    def told_crops(self) -> bool:
        return model_family(self.patcher).told_crops

    def fitted(self, caption: str) -> str:
        return self.tokenize.fitted(caption)

    @torch.no_grad()
    def encode(
        self,
        caption: str,
        latent: Tensor,
        references: HostControls | None = None,
        *,
        view: View | None = None,
    ) -> Condition:
        """The arguments that ComfyUI's sampler would give the network for this caption, this size and these
        control pictures.

        view: what of a picture the latent shows, for models that were trained to be told (SDXL).
        """
        return self._encode(self._text(caption, references), latent, references, view)

    @torch.no_grad()
    def traced(
        self,
        caption: str,
        latent: Tensor,
        references: HostControls | None = None,
        *,
        view: View | None = None,
    ) -> tuple[Condition, Traces]:
        """Some models run a part of the network in `extra_conds`, some put the latent into the conditions."""
        text = self._text(caption, references)
        with _weights_used(self.patcher.model) as used:
            condition = self._encode(text, latent, references, view)
        blank = self.conditions(text, torch.zeros_like(latent), references, view=view)
        traces = [*["network"] * bool(used), *["latent"] * (not kept_conditions.same(condition, blank))]
        return condition, frozenset(traces)

    def _encode(
        self, text: Mapping[str, Any], latent: Tensor, references: HostControls | None, view: View | None
    ) -> Condition:
        conds = self.conditions(text, latent, references, view=view)
        for cond in conds.values():
            cond.cond = own(cond.cond)
        return conds

    def _text(self, caption: str, references: HostControls | None) -> dict[str, Any]:
        if references is not None and references.in_text:  # no other picture has this one
            return self._encode_text(caption, references)
        if caption not in self._encoded:
            self._encoded[caption] = self._encode_text(caption, None)
            while len(self._encoded) > _REMEMBERED:
                self._encoded.popitem(last=False)
        return self._encoded[caption]

    def pack(self, condition: Condition) -> Entry | None:
        return kept_conditions.pack(condition)

    def unpack(self, entry: Entry) -> Condition:
        return kept_conditions.unpack(entry)

    def conditions(
        self,
        text: Mapping[str, Any],
        latent: Tensor,
        references: HostControls | None = None,
        *,
        view: View | None = None,
    ) -> Condition:
        """`text`: cross_attn, pooled_output and what else the text encoder gives."""
        noise = latent.unsqueeze(0)
        latent_image, mask, start = noise, None, None
        given = references.given if references else None
        if given is not None:  # as comfy.samplers takes a latent with a noise_mask
            latent_image = self.patcher.model.process_latent_in(given["samples"])
            mask = prepare_mask(given["noise_mask"], noise.shape, noise.device)
            start = latent_image[:, :, mask.amax(dim=(0, 1, 3, 4)) == 0]
        params = dict(
            text,
            device=mm.intermediate_device(),
            noise=noise,
            width=noise.shape[-1] * 8,  # as in comfy.samplers.encode_model_conds
            height=noise.shape[-2] * 8,
            prompt_type="positive",
            latent_image=latent_image,
            denoise_mask=mask,
            seed=None,
            latent_shapes=None,
            **(references.written if references else {}),
        )
        if self.patcher.model.model_config.unet_config.get("guidance_embed"):
            params["guidance"] = self.guidance
        if self.frame_rate:
            params["frame_rate"] = self.frame_rate
        if view is not None and self.told_crops:
            params |= crop_conditions(view)
        conds = self.patcher.model.extra_conds(**params)
        if start is not None:
            conds[START] = CONDRegular(start)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}

    def _encode_text(self, caption: str, references: HostControls | None) -> dict[str, Any]:
        cond, extra = text_of(self, caption, references)[0]
        self._check_width(cond)
        return {"cross_attn": own(cond), **own(extra)}

    def encode_from_tokens_scheduled(self, tokens: Any, **_: Any) -> list[Any]:
        """As CLIP's, without a progress bar for each caption."""
        return self.clip.encode_from_tokens_scheduled(tokens, show_pbar=False)

    def _check_width(self, cond: Tensor) -> None:
        unet_config = self.patcher.model.model_config.unet_config
        want = next((w for k in _CONTEXT_WIDTH_KEYS if isinstance(w := unet_config.get(k), int)), None)
        if want is not None and cond.shape[-1] != want:
            raise ModelError(
                f"the CLIP makes embeddings of width {cond.shape[-1]} and the model needs {want};"
                " connect the CLIP that belongs to this model"
            )
