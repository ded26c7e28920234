"""LoRA tensors on ComfyUI's models, and the names that layers have in LoRA files."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.lora_convert
import comfy.utils
import torch
from comfy.model_patcher import get_key_weight
from torch import Tensor

from ..adapters.names import KOHYA, FileName, Rows, by_layer, candidates, is_text_encoder, unplaced
from ..adapters.own import weight_shape
from ..adapters.readers import cannot_use, with_alpha
from ..adapters.respell import for_comfyui
from ..adapters.shapes import LayerShape, check_layer
from ..adapters.targets import is_convolution, is_linear
from ..embedding import split
from ..errors import LoraFileError, shortened
from .embedding import clip_with
from .model import model_family
from .quantised import unpacked

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

_NET = "diffusion_model."
_WEIGHT = ".weight"
_ADAPTER_TENSOR = re.compile(r"\.(lora_|hada_|lokr_|oft_blocks)")


def file_names(patcher: ModelPatcher, layers: Iterable[str], style: str = "comfyui") -> dict[str, FileName]:
    """Layer of the network → its name in the file.

    style "comfyui": kohya's names where kohya has names for the family, else `diffusion_model.<module>`, as
    both ComfyUI and diffusers read it. style "diffusers": `unet.<module>` or `transformer.<module>` in
    diffusers' own module names. style "lycoris": kohya's names for every family.
    """
    if style == "diffusers":
        return _diffusers_names(patcher, layers)
    family = model_family(patcher)
    if family.file_names == "dotted" and style != "lycoris":
        split, spelled = _split_rows(patcher, _NET), _shared_names(patcher)
        return {layer: FileName(spelled.get(layer, _NET + layer), split.get(layer, ())) for layer in layers}
    diffusers = _unet_names(patcher) if family.file_names == "diffusers" else {}
    return {layer: FileName("lora_unet_" + diffusers.get(layer, layer).replace(".", "_")) for layer in layers}


def text_file_names(clip: CLIP, layers: Iterable[str]) -> dict[str, FileName]:
    """Layer of `clip.cond_stage_model` → its name in the file: kohya's lora_te_, lora_te1_, …."""
    names: dict[str, list[str]] = {}
    keys = [k for k in clip.cond_stage_model.state_dict() if not _ADAPTER_TENSOR.search(k)]
    own_weights = dict.fromkeys(map(_outside, keys))  # the names without the adapter that may be inside
    outside: Any = SimpleNamespace(state_dict=lambda: own_weights)
    for name, key in comfy.lora.model_lora_keys_clip(outside, {}).items():
        names.setdefault(_layer(key), []).append(name)
    two = any(name.startswith("lora_te2_") for own in names.values() for name in own)
    out = {}
    for layer in layers:
        own = names.get(layer)
        if not own:
            raise LoraFileError(f"text-encoder layer {layer} has no name in LoRA files; choose other targets")
        out[layer] = FileName(min(own, key=lambda name: _text_preference(name, two)))
    return out


def _text_preference(name: str, two: bool) -> int:
    wanted = ("lora_te1_", "lora_te2_", "lora_te3_") if two else ("lora_te_", "lora_te1_", "lora_te2_")
    return next((i for i, start in enumerate(wanted) if name.startswith(start)), len(wanted))


def aliases(patcher: ModelPatcher) -> dict[str, Rows]:
    """Every name that a layer of the network has in LoRA files → the layer, for `readers.read_start`."""
    return {name: _rows(key) for name, key in _all_keys(patcher).items() if _is_weight(key)}


def layer_shapes(patcher: ModelPatcher) -> dict[str, LayerShape]:
    """Shape of each layer that `aliases` names, for `readers.read_start`."""
    own = set(patcher.model.state_dict())
    keys = {_layer(key): key for key in _all_keys(patcher).values() if _is_weight(key)}
    return {layer: _shape(patcher.model, own, _whole(key)) for layer, key in keys.items()}


def apply_lora(
    model: ModelPatcher,
    clip: CLIP | None,
    lora: Mapping[str, Tensor],
    strength_model: float,
    strength_clip: float,
    *,
    file_alpha: float = 0.0,
    notify: Callable[[str], None] = logging.warning,
) -> tuple[ModelPatcher, CLIP | None]:
    """Clones of model and CLIP with the LoRA on them; the ones given stay untouched.

    Reads what the stock loader reads, and diffusers' files for UNets, PEFT's and DiffSynth's.
    file_alpha: α of a file that carries none; 0 means equal to the rank.
    Raises LoraFileError when tensors fit nowhere or are not what their layer needs; `notify` hears of
    text-encoder tensors and embeddings without a CLIP. An embedding that comes with the LoRA is read in the
    place of its word by the CLIP, unless its strength is 0.
    """
    lora, embeddings = split(lora)
    if embeddings and clip is None:
        notify(
            f"the embedding of {shortened(embeddings)} was left out; connect clip to use it, or write"
            " embedding: and its file's name in the prompt"
        )
    if embeddings and clip is not None and strength_clip:
        clip = clip_with(clip, embeddings)
    if not lora and embeddings:
        return model.clone(), clip.clone() if clip is not None else None
    tensors = _converted(lora)
    if file_alpha:
        tensors = with_alpha(tensors, file_alpha)
    layers = by_layer(tensors)
    keys = _all_keys(patcher=model)
    clip_keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}) if clip is not None else {}
    keys |= dict(_wrapped(layers, keys)) | clip_keys
    unused = unplaced(tensors, lambda name: name in keys)
    _check_unused(unused, len(tensors), clip is not None, notify)
    layers = {name: roles for name, roles in layers.items() if name in keys}
    on_model = {name: roles for name, roles in layers.items() if name not in clip_keys}
    patches = _patches(model, on_model, keys)
    if clip is not None:
        patches |= _patches(clip.patcher, {n: roles for n, roles in layers.items() if n in clip_keys}, keys)
    patched = model.clone()
    used = set(patched.add_patches(patches, strength_model))
    patched_clip: Any = clip.clone() if clip is not None else None
    if patched_clip is not None:
        used |= set(patched_clip.add_patches(patches, strength_clip))
    if not used:
        raise LoraFileError(
            f"none of the LoRA's {len(lora)} tensors fits this model's layers; choose another file"
        )
    return patched, patched_clip


def _converted(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As the stock loader spells the files of some families."""
    try:
        return comfy.lora_convert.convert_lora(dict(lora))
    except (LookupError, AttributeError) as error:  # it takes tensors for given that are not there
        raise LoraFileError(
            f"the LoRA file has the names of one that ComfyUI converts and lacks tensors ({error}); choose a"
            " whole file"
        ) from error


def _patches(
    patcher: ModelPatcher, layers: Mapping[str, dict[str, Tensor]], keys: Mapping[str, Any]
) -> dict[Any, Any]:
    """The stock loader's patches, once each layer's tensors are known to fit."""
    own = set(patcher.model.state_dict())
    names: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, roles in layers.items():
        key = keys[name]
        check_layer(name, roles, _shape(patcher.model, own, key))
        if key in names:
            raise LoraFileError(
                f"the LoRA file has one layer under several names ({names[key]}, {name}); choose another file"
            )
        names[key] = name
        readable = for_comfyui(roles, partial(_original, patcher, key))
        tensors |= {_spelled(name, role): tensor for role, tensor in readable.items()}
    return comfy.lora.load_lora(tensors, {name: keys[name] for name in layers}, log_missing=False)


def _spelled(name: str, role: str) -> str:
    """As the stock loader knows all roles."""
    return f"{name}.{KOHYA.get(role, role)}"


def _shape(module: Any, own: set[str], key: Any) -> LayerShape:
    """own: the names in the module's state dict, which decide what ComfyUI patches."""
    name, rows = _whole(key), key[1] if isinstance(key, tuple) else None
    if not name.endswith(_WEIGHT):
        shape = LayerShape(weight=tuple(comfy.utils.get_attr(module, name).shape), adaptable=False)
    else:
        layer = comfy.utils.get_attr(module, name.removesuffix(_WEIGHT))
        bias = name.removesuffix(_WEIGHT) + ".bias"
        shape = LayerShape(
            weight=weight_shape(layer),
            bias=tuple(layer.bias.shape) if bias in own else None,
            adaptable=is_linear(layer) or is_convolution(layer),
        )
    return shape if rows is None else shape.rows(rows[2], rows[0])


def _original(patcher: ModelPatcher, key: Any) -> Tensor:
    """A weight, or rows of it, with the patches of this patcher alone, in fp32 on the CPU."""
    name, rows = _whole(key), key[1] if isinstance(key, tuple) else None
    weight, _, convert = get_key_weight(patcher.model, name)
    if name in patcher.backup:  # patched in place, by this model or a clone
        weight = patcher.backup[name].weight
    if convert is not None:
        weight = convert(weight, inplace=False)
    layer = comfy.utils.get_attr(patcher.model, name.rpartition(".")[0])
    plain = unpacked(layer, weight.detach()).to("cpu", torch.float32, copy=True)
    if name in patcher.patches:
        plain = comfy.lora.calculate_weight(patcher.patches[name], plain, name)
    return plain if rows is None else plain.narrow(*rows)


def _check_unused(unused: list[str], total: int, has_clip: bool, notify: Callable[[str], None]) -> None:
    text = [key for key in unused if is_text_encoder(key)]
    if text and not has_clip and len(text) < total:
        notify(
            f"{len(text)} tensors of the LoRA are for the text encoder and were left out;"
            " connect clip to use them"
        )
        unused = [key for key in unused if key not in set(text)]
    if unused:
        raise cannot_use(unused, total, "nothing was applied")


def _wrapped(names: Iterable[str], keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names of the file that are known once PEFT's or a pipeline's wrapper is taken off."""
    for name in names:
        if name not in keys:
            known = next((c for c in candidates(name) if c in keys), None)
            if known is not None:
                yield name, keys[known]


def _all_keys(patcher: ModelPatcher) -> dict[str, Any]:
    """Names in files → ComfyUI's key, or (key, rows) for a part of a layer: the stock loader's, and more."""
    keys, weights = _stock_keys(patcher), _weights(patcher)
    modules = [k for k in weights if k.startswith(_NET) and k.endswith(_WEIGHT)]
    for layer, name in _unet_names(patcher).items():
        key = _NET + layer + _WEIGHT
        for spelling in (name, name.replace("to_out.0", "to_out")) if key in weights else ():
            keys.setdefault(spelling, key)
            keys.setdefault(f"unet.{spelling}", key)
    for name, layer in _diffsynth_names(m.removeprefix(_NET).removesuffix(_WEIGHT) for m in modules):
        keys.setdefault(name, _NET + layer + _WEIGHT)
    for key in modules:
        keys.setdefault(key.removeprefix(_NET).removesuffix(_WEIGHT), key)
    return keys


def _weights(patcher: ModelPatcher) -> dict[str, Tensor]:
    """The model's own weights, under the names that they have without an adapter, also with one inside."""
    weights = patcher.model.state_dict()
    return {_outside(k): v for k, v in weights.items() if not _ADAPTER_TENSOR.search(k)}


def _stock_keys(patcher: ModelPatcher) -> dict[str, Any]:
    """What the stock LoraLoader reads, also while an adapter is inside the network."""
    weights = _weights(patcher)
    keys: dict[str, Any] = {}
    for name, key in comfy.lora.model_lora_keys_unet(patcher.model, {}).items():
        key = (_outside(key[0]), *key[1:]) if isinstance(key, tuple) else _outside(key)
        if _whole(key) in weights:
            keys[_outside(name)] = key
    return keys


def _outside(name: str) -> str:
    return name.replace(".base_layer", "").replace("_base_layer", "")


def _unet_names(patcher: ModelPatcher) -> dict[str, str]:
    """Layer of a UNet → its name in diffusers; empty for other networks."""
    mapping = comfy.utils.unet_to_diffusers(patcher.model.model_config.unet_config)
    return {
        v.removesuffix(_WEIGHT): k.removesuffix(_WEIGHT) for k, v in mapping.items() if k.endswith(_WEIGHT)
    }


def _diffsynth_names(layers: Iterable[str]) -> Iterator[tuple[str, str]]:
    """DiffSynth's UNets are one flat list of residual, attention, sampling, push and pop blocks."""
    layers = list(layers)
    numbers: dict[str, int] = {}
    n = 0
    for part in ("input_blocks", "middle_block", "output_blocks"):
        for block in _numbers_below(layers, part):
            if part == "middle_block":
                numbers[f"{part}.{block}."] = n
                n += 1
                continue
            if part == "input_blocks" and block == 0:
                continue  # the first convolution is outside of the list
            n += part == "output_blocks"  # pop
            for child in _numbers_below(layers, f"{part}.{block}"):
                numbers[f"{part}.{block}.{child}."] = n
                n += 1
            n += part == "input_blocks"  # push
    for layer in layers:
        for prefix, number in numbers.items():
            if layer.startswith(prefix) and ".transformer_blocks." in f".{layer}":
                inner = layer.removeprefix(prefix).replace("to_out.0", "to_out")
                inner = inner.replace("ff.net.0.proj", "act_fn.proj").replace("ff.net.2", "ff")
                yield f"blocks.{number}.{inner}", layer


def _numbers_below(layers: list[str], parent: str) -> list[int]:
    found = {layer[len(parent) + 1 :].split(".")[0] for layer in layers if layer.startswith(f"{parent}.")}
    return sorted(int(number) for number in found if number.isdigit())


def _split_rows(patcher: ModelPatcher, prefix: str) -> dict[str, tuple[tuple[str, int, int], ...]]:
    """Layers that names starting with `prefix` know in parts (Z-Image's fused qkv as to_q, to_k, to_v)."""
    parts: dict[str, dict[tuple[int, int], str]] = {}
    for name, key in _stock_keys(patcher).items():
        if isinstance(key, tuple) and name.startswith(prefix) and _is_weight(key):
            rows = _rows(key)
            parts.setdefault(rows.layer, {}).setdefault((rows.start, rows.length), name)
    weights = _weights(patcher)
    out = {}
    for layer, own in parts.items():
        ordered = sorted((start, length, name) for (start, length), name in own.items())
        ends = [0, *(start + length for start, length, _ in ordered)]
        outputs = weights[_NET + layer + _WEIGHT].shape[0]
        if [start for start, _, _ in ordered] == ends[:-1] and ends[-1] == outputs:
            out[layer] = tuple((name, start, length) for start, length, name in ordered)
    return out


def _shared_names(patcher: ModelPatcher) -> dict[str, str]:
    """Layer → `diffusion_model.<diffusers' module>`, for families where ComfyUI reads that spelling too."""
    keys = _stock_keys(patcher)
    out = {}
    for name, key in keys.items():
        shared = name.startswith(_NET) and f"transformer.{name.removeprefix(_NET)}" in keys
        if shared and isinstance(key, str) and _is_weight(key):
            out[_layer(key)] = name
    return out


def _diffusers_names(patcher: ModelPatcher, layers: Iterable[str]) -> dict[str, FileName]:
    unet = _unet_names(patcher)
    if unet:
        names = {layer: FileName(f"unet.{name}") for layer, name in unet.items()}
    else:
        names = {layer: FileName("", parts) for layer, parts in _split_rows(patcher, "transformer.").items()}
        for name, key in _stock_keys(patcher).items():
            if isinstance(key, str) and name.startswith("transformer.") and _is_weight(key):
                names.setdefault(_layer(key), FileName(name))
    layers = list(layers)
    unknown = [layer for layer in layers if layer not in names]
    if unknown:
        raise LoraFileError(
            f"diffusers has no name for {len(unknown)} of the trained layers, for example {unknown[0]};"
            " save in ComfyUI's names, or train other targets"
        )
    return {layer: names[layer] for layer in layers}


def _is_weight(key: Any) -> bool:
    """A layer's weight, or rows of it; not one that the stock loader rearranges (scale and shift swapped)."""
    if isinstance(key, tuple):
        return key[0].endswith(_WEIGHT) and len(key) == 2 and key[1][0] == 0
    return key.endswith(_WEIGHT)


def _whole(key: Any) -> str:
    """ComfyUI's key without the rows."""
    return key[0] if isinstance(key, tuple) else key


def _layer(key: Any) -> str:
    return _whole(key).removeprefix(_NET).removesuffix(_WEIGHT)


def _rows(key: Any) -> Rows:
    if isinstance(key, tuple):
        _, start, length = key[1]
        return Rows(_layer(key), start, length)
    return Rows(_layer(key))
