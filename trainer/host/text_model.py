"""Borrow the text encoder of the graph for training, and give it back as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ..data.views import View
from ..memory.blocks import blocks, by_class
from ..memory.out_of_place import out_of_place
from .bypass import beneath_injections
from .caption_tokens import CaptionTokenizer
from .conditioning import HostTextEncoder, text_of
from .embedding import initial_vectors
from .kernels import differentiable_kernels
from .model import Condition, in_training, kept_loaded
from .quantised import quantised_layers_differentiable
from .staging import Staging, brought, trainable_view

if TYPE_CHECKING:
    from .references import HostControls

_IN_PLACE = ("CLIPLayer", "T5LayerSelfAttention", "T5LayerFF")
"""Class names of ComfyUI's text modules that write residuals in place."""


class HostTextModel:
    """A borrowed text encoder, through which gradients flow."""

    def __init__(self, texts: HostTextEncoder) -> None:
        self.texts = texts
        self.clip = texts.clip
        self.net: nn.Module = self.clip.cond_stage_model
        dtype = next(self.net.parameters()).dtype
        self.half_precision = dtype if dtype in (torch.bfloat16, torch.float16) else None
        self.blocks: Sequence[nn.Module] = blocks(self.net)
        """What gradient checkpointing takes one by one."""
        self.tokenize: CaptionTokenizer = texts.tokenize

    def embed(self, placeholder: str, initial: str, vectors: int) -> dict[str, nn.Parameter]:
        """Vectors that the word stands for in captions from now on: name of a text encoder → [n, d]."""
        begun = initial_vectors(self.clip, initial, vectors)
        made = {key: nn.Parameter(value) for key, value in begun.items()}
        self.tokenize = self.texts.tokenize.with_vectors(placeholder, made)
        return made

    def encode(self, caption: str, references: HostControls | None = None) -> dict[str, Any]:
        """What CLIPTextEncode puts into a conditioning, under the names that `extra_conds` takes."""
        cond, extra = text_of(self, caption, references)[0]
        return {"cross_attn": cond, **extra}

    def encode_from_tokens_scheduled(self, tokens: Any, **_: Any) -> list[Any]:
        """As CLIP's, with gradients."""
        model, device = self.clip.cond_stage_model, self.clip.patcher.load_device
        model.reset_clip_options()
        if self.clip.layer_idx is not None:
            model.set_clip_options({"layer": self.clip.layer_idx})
        model.set_clip_options({"execution_device": device})
        with mm.cuda_device_context(device):
            cond, pooled, *more = model.encode_token_weights(tokens)
        return [[cond, {"pooled_output": pooled, **(more[0] if more else {})}]]

    def condition(
        self,
        caption: str,
        latent: Tensor,
        references: HostControls | None = None,
        *,
        view: View | None = None,
    ) -> Condition:
        """The network's arguments for this caption, this size, these pictures and this view, with
        gradients."""
        return self.texts.conditions(self.encode(caption, references), latent, references, view=view)


@contextmanager
def borrowed_clip(texts: HostTextEncoder) -> Iterator[HostTextModel]:
    """The loaded text encoder, ready for autograd. Must be entered outside inference mode.

    On every way out modules, parameters and flags are the original objects again.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError("borrowed_clip() needs torch.inference_mode(False) around it")
    patcher, net = texts.clip.patcher, texts.clip.cond_stage_model
    with ExitStack() as loan:
        patch = loan.enter_context(brought(patcher))
        loan.enter_context(in_training())
        loan.enter_context(kept_loaded(patcher))
        loan.enter_context(trainable_view(net, Staging(patcher.load_device, patch=patch).view))
        loan.enter_context(differentiable_kernels())
        with beneath_injections(loan, patcher):
            loan.enter_context(quantised_layers_differentiable(net))
        known = by_class(net, _IN_PLACE)
        loan.enter_context(out_of_place(known, () if known else blocks(net)))
        loan.callback(net.reset_clip_options)
        yield HostTextModel(texts)
