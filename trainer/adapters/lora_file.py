"""An adapter's tensors in the names of a LoRA file, and the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import LoraFileError
from ..files import write_whole
from .inject import Adapter
from .kinds import KINDS
from .layers import adapter_parameters
from .low_rank import ADAPTER
from .metadata import DORA_NORM, tensors_hash
from .names import KOHYA, FileName
from .own import OutputRotation, Own, weight_shape
from .start import dora_norms

_DOTTED = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}


def file_tensors(adapter: Adapter, names: Mapping[str, FileName]) -> dict[str, Tensor]:
    """The tensors of a LoRA file that does what the adapter does, fp32 on the CPU.

    names: layer → its name in the file (`trainer.host.lora.file_names`). kohya's names (`lora_unet_…`) come
    with `.alpha`. Names with dots (`diffusion_model.…`) come with `lora_A`/`lora_B` and the scale folded into
    B, since some of diffusers' readers of such names refuse an alpha and all take a missing one as scale 1.
    """
    kind = KINDS[adapter.config.kind]
    lycoris = adapter.config.file_names == "lycoris"
    out: dict[str, Tensor] = {}
    for layer, module in adapter.layers.items():
        name = names[layer]
        kohya, peft = bool(name.prefix) and "." not in name.prefix, name.is_diffusers
        if peft and not kind.has_b:
            raise LoraFileError(f"diffusers cannot read kind {kind.name}; save in ComfyUI's names")
        tensors, scale = _layer_tensors(module)
        if "lora_magnitude_vector" in tensors and not peft:
            tensors["dora_scale"] = _dora_scale(module, tensors.pop("lora_magnitude_vector"), merged=lycoris)
        if lycoris and "lokr_w2_a" in tensors:
            tensors = _without_factors(tensors, weight_shape(module.get_base_layer()))  # type: ignore[operator]
        # Readers give a LoKr without a rank the scale 1.
        if not kohya or not kind.alpha_in_file:
            tensors, scale = _folded(tensors, kind.scaled, scale), 1.0
        for prefix, part in _parts(layer, name, tensors):
            out |= {f"{prefix}.{(KOHYA if kohya else _DOTTED).get(k, k)}": v for k, v in part.items()}
            if kohya and "diff" not in part:
                out[f"{prefix}.alpha"] = torch.tensor(_file_alpha(module, scale))
    return out


def _layer_tensors(module: torch.nn.Module) -> tuple[dict[str, Tensor], float]:
    """(the adapter's own tensors, the scale that is not in them)"""
    tensors = {
        key: p.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, p in adapter_parameters(module)
    }
    scale = 1.0 if isinstance(module, Own) else float(module.scaling[ADAPTER])  # type: ignore[index]
    return tensors, scale


def _dora_scale(module: torch.nn.Module, magnitude: Tensor, *, merged: bool) -> Tensor:
    """m for readers that divide by ‖W + ΔW‖ (merged), as the paper does, else m·‖W‖/‖W + ΔW‖.

    ComfyUI divides a scale on the output side by ‖W‖.
    """
    scale = magnitude.flatten()
    if not merged:
        over, base = dora_norms(module)  # type: ignore[arg-type]
        scale = scale * (base / over).cpu()
    weight_dims = module.get_base_layer().weight.ndim  # type: ignore[operator, union-attr]
    return scale.reshape(-1, *[1] * (weight_dims - 1)).contiguous()


def _without_factors(tensors: dict[str, Tensor], weight: tuple[int, ...]) -> dict[str, Tensor]:
    """A LoKr of a convolution with w2 multiplied out.

    LyCORIS counts the kernel of a factored w2 among the inputs, and refuses some. Not for convolutions of one
    dimension, whose whole w2 ComfyUI and LyCORIS multiply in different orders.
    """
    if len(weight) != 4:
        return tensors
    out = dict(tensors)
    w2 = out.pop("lokr_w2_a") @ out.pop("lokr_w2_b")
    return out | {"lokr_w2": w2.reshape(len(w2), -1, *weight[2:])}


def _folded(tensors: dict[str, Tensor], factor: str, scale: float) -> dict[str, Tensor]:
    return {k: v * scale if k == factor and scale != 1 else v for k, v in tensors.items()}


def _file_alpha(module: torch.nn.Module, scale: float) -> float:
    """Readers divide alpha by the rank. For OFT alpha is a constraint, and 0 means none."""
    return 0.0 if isinstance(module, OutputRotation) else scale * module.r[ADAPTER]  # type: ignore[index]


def _parts(layer: str, name: FileName, tensors: dict[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """One layer of the network as the layers that the file's names know."""
    plain = tensors.keys() == {"lora_A", "lora_B"}  # only ΔW = B·A can be cut into rows
    if not name.parts or (name.prefix and not plain):
        return [(name.prefix, tensors)]
    if not plain:
        raise LoraFileError(f"diffusers has {layer} in {len(name.parts)} layers; save in ComfyUI's names")
    covered = sum(rows for _, _, rows in name.parts)
    if covered != tensors["lora_B"].shape[0]:
        raise LoraFileError(
            f"{layer} has {tensors['lora_B'].shape[0]} outputs, its names in the file {covered}"
        )
    a, b = tensors["lora_A"], tensors["lora_B"]
    return [(p, {"lora_A": a.clone(), "lora_B": b[s : s + n].clone()}) for p, s, n in name.parts]


def write_lora(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file so that its final name never holds half a file."""
    data = save(dict(tensors), metadata={**metadata, "modelspec.hash_sha256": tensors_hash(tensors)})
    write_whole(path, data)


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    A `dora_scale` that its metadata says to be over ‖W + ΔW‖ is called `lora_magnitude_vector`, peft's word
    for it. Raises LoraFileError; what the tensors are is checked by `shapes`.
    """
    try:
        if not path.is_file():
            raise LoraFileError(f"{path.name} {_instead_of_a_file(path)}; refresh the list of LoRA files")
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise LoraFileError(
            f"{path.name} is not a readable safetensors file ({error}); choose another one"
        ) from error
    if metadata.get(DORA_NORM) == "merged":
        tensors = {k.replace(".dora_scale", ".lora_magnitude_vector"): v for k, v in tensors.items()}
    return tensors, metadata


def _instead_of_a_file(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a link to nothing"
    if path.is_dir():
        return "is a folder"
    return "is no regular file" if path.exists() else "does not exist"
