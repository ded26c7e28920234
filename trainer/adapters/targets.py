"""Which layers get an adapter.

The choice is made by the names of the modules, which ComfyUI keeps as the checkpoint has them. Three habits
that all families share are enough: blocks are numbered, attention lives below something called "attn" or
"attention", feed-forward layers below something called "ff", "ffn", "mlp" or "feed_forward".
"""

from __future__ import annotations

import re

from torch import nn

from ..block_names import in_block
from ..errors import ConfigError
from ..rules import REGEX, Expression, check_targets

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_PROJECTION = re.compile(r"(to_)?(q|k|v|qkv|kv)(_proj)?")  # blocks without an attention module (CogVideoX)
_CROSS = re.compile(r"cross_?attn|cross_?attention|audio_to_video|video_to_audio", re.IGNORECASE)
# The second attention of a UNet's or LTX-Video's block looks at the text; SD3.5's, which is fused, does not.
_SECOND_ATTENTION = re.compile(r"(audio_)?attn2\.(?!qkv|proj)|attn2\.(q_proj|kv_proj|out_proj)")
_KEY_VALUE = re.compile(r"(to_|c_|w)?(k|v|kv|key|value)(_proj|_linear|_img)?", re.IGNORECASE)
_FEED_FORWARD = re.compile(r"(.*_)?(ff|ffn|mlp|feed_?forward)(_?[a-z]|\d)?(_.*)?", re.IGNORECASE)
# Fused layers hold q, k, v and the feed-forward part in one matrix (Flux), outside of attention modules.
# They count as both: without them most blocks of Flux would have no attention layer.
_FUSED = re.compile(r"linear[12](_.*)?|to_qkv_mlp_proj")
# Inside an attention module, but no projection of it: norms, modulation, positions.
_NOT_PROJECTION = re.compile(
    r".*(norm|adaln|modulation|gate_logits|pos|embed|router).*|.*_mod|mod", re.IGNORECASE
)


def is_linear(module: nn.Module) -> bool:
    """Also ComfyUI's quantised layers, which have the shape of nn.Linear and not its class."""
    if isinstance(module, nn.Linear):
        return True
    return hasattr(module, "in_features") and hasattr(module, "out_features") and hasattr(module, "weight")


def is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1


def _is_attention(name: str) -> bool:
    *parents, leaf = _without_sequence(name)
    if any(_NOT_PROJECTION.fullmatch(part) or part.startswith("gate") for part in (*parents[-1:], leaf)):
        return False
    if _PROJECTION.fullmatch(leaf) or _FUSED.fullmatch(leaf):
        return True
    return any(_ATTENTION.search(part) for part in (*parents, leaf))


def _is_cross_attention(name: str) -> bool:
    return _is_attention(name) and bool(_CROSS.search(name) or _SECOND_ATTENTION.search(name))


def is_key_or_value(name: str) -> bool:
    return _is_cross_attention(name) and bool(_KEY_VALUE.fullmatch(_without_sequence(name)[-1]))


def _is_feed_forward(name: str) -> bool:
    parts = _without_sequence(name)
    if _NOT_PROJECTION.fullmatch(parts[-1]):
        return False
    return bool(_FUSED.fullmatch(parts[-1])) or any(_FEED_FORWARD.fullmatch(part) for part in parts)


def _without_sequence(name: str) -> list[str]:
    """`attn1.to_out.0` is a Sequential's first layer: its name without the number."""
    parts = name.split(".")
    while len(parts) > 1 and parts[-1].isdigit():
        parts.pop()
    return parts


def target_layers(net: nn.Module, targets: str, *, convolutions: bool = False) -> dict[str, nn.Module]:
    """Name → module of each layer of `net` that `targets` selects, in the network's order.

    targets: one of TARGETS, or `regex:<expression>` searched in the names of linear layers and convolutions.
    convolutions: adds the convolutions of the blocks to whatever is selected (LoCon).
    Raises ConfigError when nothing is selected.
    """
    check_targets(targets)
    linear = {name: m for name, m in net.named_modules() if is_linear(m)}
    conv = {name: m for name, m in net.named_modules() if is_convolution(m)}
    found = _selected(linear, conv, targets)
    if convolutions and not targets.startswith(REGEX):
        found |= {name for name in conv if in_block(name)}
    if not found and targets in ("cross-attention", "kv") and any(map(_is_attention, linear)):
        raise ConfigError(
            f"targets {targets!r} selects nothing in {type(net).__name__}: this model reads text and picture"
            " in one attention and has no cross-attention, which Custom Diffusion needs; set targets to"
            " 'attention', or use a model such as SD 1.5, SDXL or Wan"
        )
    if not found:
        raise ConfigError(
            f"targets {targets!r} selects nothing in {type(net).__name__} ({len(linear)} linear layers,"
            f" {len(conv)} convolutions); choose 'attention' or 'all linear', or a regex that matches a name"
            f" like {_example(linear)}"
        )
    return {name: m for name, m in net.named_modules() if name in found}


def _selected(linear: dict[str, nn.Module], conv: dict[str, nn.Module], targets: str) -> set[str]:
    if targets.startswith(REGEX):
        expression = Expression(targets.removeprefix(REGEX), "targets")
        return {name for name in (*linear, *conv) if expression.found_in(name)}
    blocks = [name for name in linear if in_block(name)]
    if targets == "attention":
        return {name for name in blocks if _is_attention(name)}
    if targets == "cross-attention":
        return {name for name in blocks if _is_cross_attention(name)}
    if targets == "kv":
        return {name for name in blocks if is_key_or_value(name)}
    if targets == "attention+feed-forward":
        return {name for name in blocks if _is_attention(name) or _is_feed_forward(name)}
    convolutions = [name for name in conv if in_block(name)] if targets == "all linear + conv" else []
    return {*blocks, *convolutions}


def _example(linear: dict[str, nn.Module]) -> str:
    return next((name for name in linear if in_block(name)), next(iter(linear), "none"))
