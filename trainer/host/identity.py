"""Which model, text encoder and VAE these are: by all that decides what they compute."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig
from .digest import digest
from .paths import comfyui_version

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP, VAE

_SAMPLING_ONLY = (
    "sampler_cfg_function",
    "sampler_pre_cfg_function",
    "sampler_post_cfg_function",
    "sampler_calc_cond_batch_function",
    "disable_cfg1_optimization",
    "denoise_mask_function",
)
"""Of `model_options`: what is done with the network's output when a picture is sampled."""

_NETWORK_WRAPPERS = ("apply_model", "diffusion_model")
"""Of all places where a wrapper can sit: those around the network; the others are around the sampler."""

_OFTEN_MISSING = ("text_projection.weight",)
"""ComfyUI leaves what a file lacks as it finds the memory; files of SD 1.5 have no projection, nor use it."""

Fingerprint = tuple[str, list[str]]
"""(sha256 in hex, what could not be digested: with anything in there, no two are known to be the same)"""


def model_fingerprint(patcher: ModelPatcher) -> Fingerprint:
    """Weights, and the patches, objects, wrappers and hooks that nodes have put on them.

    Not the objects themselves: the same file loaded again, or the same node run again, gives the same.
    """
    options = {k: v for k, v in patcher.model_options.items() if k not in _SAMPLING_ONLY}
    transformer = dict(options.pop("transformer_options", {}))
    wrappers = [_around_network(w) for w in (patcher.wrappers, transformer.pop("wrappers", {}))]
    return digest(
        type(patcher.model),
        _weights(patcher),
        patcher.patches,
        patcher.object_patches,
        patcher.weight_wrapper_patches,
        options,
        transformer,
        wrappers,
        patcher.injections,
        patcher.hook_patches,
        patcher.forced_hooks,
        patcher.attachments,
        {name: [model_fingerprint(p) for p in more] for name, more in patcher.additional_models.items()},
    )


def clip_fingerprint(clip: CLIP) -> Fingerprint:
    own, unknown = model_fingerprint(clip.patcher)
    more, unknown_too = digest(
        own, type(clip.tokenizer), clip.layer_idx, clip.tokenizer_options, clip.use_clip_schedule
    )
    return more, unknown + unknown_too


def vae_fingerprint(vae: VAE) -> Fingerprint:
    own, unknown = model_fingerprint(vae.patcher)
    more, unknown_too = digest(own, vae.vae_dtype, vae.latent_channels)
    return more, unknown + unknown_too


@dataclass(frozen=True)
class Identities:
    """By which what was encoded is found again; of their own where something is not known."""

    latents: str
    conditions: str
    network: str


def identities(
    patcher: ModelPatcher,
    model: Fingerprint,
    clip: Fingerprint,
    vae: Fingerprint,
    config: TrainConfig,
    rate: float | None = None,
) -> Identities:
    """Of what is encoded for this model. rate: of the frames of clips."""
    settings = (config.objective.guidance, config.data.caption_syntax, config.memory.precision, rate)
    return Identities(
        latents=known(latents_identity(vae, patcher)),
        conditions=known(conditions_identity(clip, patcher, *settings)),
        network=known(model),
    )


def latents_identity(vae: Fingerprint, patcher: ModelPatcher) -> Fingerprint:
    """Of all that decides a latent beside the pixels. vae: its fingerprint."""
    own, unknown = vae
    more, unknown_too = digest(own, comfyui_version(), type(patcher.model), patcher.model.latent_format)
    return more, unknown + unknown_too


def conditions_identity(clip: Fingerprint, patcher: ModelPatcher, *settings: Any) -> Fingerprint:
    """Of all that decides a condition beside caption, shape of the latent, and the network's weights.

    clip: its fingerprint. settings: of how captions are read, and of the network.
    """
    own, unknown = clip
    config = patcher.model.model_config
    more, unknown_too = digest(
        own, comfyui_version(), type(patcher.model), type(config), config.unet_config, settings
    )
    return more, unknown + unknown_too


def known(fingerprint: Fingerprint) -> str:
    """The identity itself, or one that nothing has where something could not be digested."""
    own, unknown = fingerprint
    return f"{own} {uuid.uuid4().hex}" if unknown else own


def _around_network(wrappers: Mapping[str, Any]) -> dict[str, Any]:
    return {place: wrappers[place] for place in _NETWORK_WRAPPERS if wrappers.get(place)}


def _weights(patcher: ModelPatcher) -> Mapping[str, Any]:
    """The model's own: a clone with a LoRA leaves its patched ones in the shared model after sampling.

    The GGUF pack writes only shapes into a state dict; the parameters have the values.
    """
    weights = patcher.model.state_dict()
    own = dict(patcher.model.named_parameters())
    weights |= {name: own[name] for name, weight in weights.items() if weight.is_meta and name in own}
    weights |= {name: kept.weight for name, kept in patcher.backup.items() if name in weights}
    return {name: weight for name, weight in weights.items() if not name.endswith(_OFTEN_MISSING)}
