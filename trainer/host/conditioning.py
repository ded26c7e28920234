"""Captions to conditions, by the text encoder of the graph and the model's own `extra_conds`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..errors import ModelError
from .caption_tokens import CaptionTokenizer
from .model import Condition

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

_CONTEXT_WIDTH_KEYS = ("context_dim", "context_in_dim", "cap_feat_dim", "joint_attention_dim", "text_dim")
"""Names under which ComfyUI's network configs keep the width of the text embedding."""


def _own(value: Any) -> Any:
    """Tensors, also within lists and dicts, on the CPU, where they take no device memory, and no inference
    tensors. What is that already is shared: of a caption's many uses one copy is kept."""

    def own(t: Tensor) -> Tensor:
        return t.detach().to("cpu", copy=t.is_inference() or t.requires_grad)

    return tree_map_only(Tensor, own, value)


class HostTextEncoder:
    """The engine's `TextEncoder`: one caption for one latent, each caption encoded once."""

    def __init__(
        self,
        clip: CLIP,
        patcher: ModelPatcher,
        guidance: float = 1.0,
        caption_syntax: str = "text",
        frame_rate: float | None = None,
    ) -> None:
        """frame_rate: what a video model that asks for it is told (LTX-Video); None is its own default."""
        self.clip = clip
        self.tokenize = CaptionTokenizer(clip, caption_syntax)
        self.patcher = patcher
        self.guidance = guidance
        self.frame_rate = frame_rate
        self._encoded: dict[str, dict[str, Any]] = {}

    def fitted(self, caption: str) -> str:
        return self.tokenize.fitted(caption)

    @torch.no_grad()
    def encode(self, caption: str, latent: Tensor) -> Condition:
        """The arguments that ComfyUI's sampler would give the network for this caption and this size."""
        if caption not in self._encoded:
            self._encoded[caption] = self._encode_text(caption)
        conds = self.conditions(self._encoded[caption], latent)
        for cond in conds.values():
            cond.cond = _own(cond.cond)
        return conds

    def conditions(self, text: Mapping[str, Any], latent: Tensor) -> Condition:
        """`text`: cross_attn, pooled_output and what else the text encoder gives."""
        noise = latent.unsqueeze(0)
        params = dict(
            text,
            device=mm.intermediate_device(),
            noise=noise,
            width=noise.shape[-1] * 8,  # as in comfy.samplers.encode_model_conds
            height=noise.shape[-2] * 8,
            prompt_type="positive",
            latent_image=noise,
            denoise_mask=None,
            seed=None,
            latent_shapes=None,
        )
        if self.patcher.model.model_config.unet_config.get("guidance_embed"):
            params["guidance"] = self.guidance
        if self.frame_rate:
            params["frame_rate"] = self.frame_rate
        conds = self.patcher.model.extra_conds(**params)
        return {name: cond.process_cond(batch_size=1, area=None) for name, cond in conds.items()}

    def _encode_text(self, caption: str) -> dict[str, Any]:
        cond, extra = self.clip.encode_from_tokens_scheduled(self.tokenize(caption), show_pbar=False)[0]
        self._check_width(cond)
        return {"cross_attn": _own(cond), **_own(extra)}

    def _check_width(self, cond: Tensor) -> None:
        unet_config = self.patcher.model.model_config.unet_config
        want = next((w for k in _CONTEXT_WIDTH_KEYS if isinstance(w := unet_config.get(k), int)), None)
        if want is not None and cond.shape[-1] != want:
            raise ModelError(
                f"the CLIP makes embeddings of width {cond.shape[-1]} and the model needs {want};"
                " connect the CLIP that belongs to this model"
            )
