"""Go on from an existing LoRA: its layers, kind, ranks and alphas become those of the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import LoraFileError
from .layers import adapter_parameters, base_weight, dora_norm

if TYPE_CHECKING:
    from ..config import AdapterConfig

_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True, kw_only=True)
class StartingLora:
    """Read by `readers.read_start`: the same function as the file, in the adapter's own tensors."""

    kind: str
    layers: Mapping[str, Mapping[str, Tensor]]
    """Layer → its tensors by the names of `Adapter.state_dict`; for DoRA `dora_scale`."""
    alphas: Mapping[str, float]
    ranks: Mapping[str, int]
    dora_over_base: bool = False
    """`dora_scale` is over ‖W‖ (ComfyUI's reading, and our files), else over ‖W + ΔW‖ (LyCORIS, peft)."""
    left_out: tuple[str, ...] = ()
    """Tensors of the file that no adapter can hold."""

    def plans(self) -> dict[str, tuple[int, float]]:
        return {name: (self.ranks[name], self.alphas[name]) for name in self.layers}

    def adapted(self, config: AdapterConfig) -> AdapterConfig:
        """The settings with the file's kind; ranks and alphas differ from layer to layer and stay here."""
        same = config.kind == "locon" and self.kind == "lora"
        return config if same else replace(config, kind=self.kind)

    def check_layers(self, net: nn.Module) -> None:
        modules = dict(net.named_modules())
        missing = [name for name in self.layers if name not in modules]
        if missing:
            raise LoraFileError(
                f"the starting LoRA has {len(missing)} layers that this model lacks, for example"
                f" {missing[0]}; start from one of the same model family"
            )

    def check_fit(self, layers: Mapping[str, nn.Module]) -> None:
        """layers: freshly injected ones, which may be without storage. Raises LoraFileError."""
        for name, tensors in self.layers.items():
            expected = {k: tuple(p.shape) for k, p in adapter_parameters(layers[name]) if k != _MAGNITUDE}
            given = {k: tuple(v.shape) for k, v in tensors.items() if k != "dora_scale"}
            if expected != given:
                raise LoraFileError(
                    f"the starting LoRA does not fit layer {name}: it has {given}, the layer needs"
                    f" {expected}; start from a LoRA of the same model"
                )

    def fill(self, layers: Mapping[str, nn.Module]) -> None:
        """Copy the tensors into freshly injected layers."""
        self.check_fit(layers)
        for name, tensors in self.layers.items():
            layer = layers[name]
            own = dict(adapter_parameters(layer))
            values = dict(tensors)
            scale = values.pop("dora_scale", None)
            with torch.no_grad():
                for key, value in values.items():
                    own[key].copy_(value)
                if scale is not None:
                    assert isinstance(layer, BaseTunerLayer)
                    own[_MAGNITUDE].copy_(self._magnitude(layer, scale))

    def _magnitude(self, layer: BaseTunerLayer, scale: Tensor) -> Tensor:
        magnitude = scale.float().flatten().to(base_weight(layer).device)
        if self.dora_over_base:
            merged, base = dora_norms(layer)
            magnitude = magnitude * merged / base
        shape = dict(adapter_parameters(layer))[_MAGNITUDE].shape
        return magnitude.reshape(shape)


def dora_norms(layer: BaseTunerLayer) -> tuple[Tensor, Tensor]:
    """(‖W + ΔW‖, ‖W‖) of each output row."""
    own = dict(adapter_parameters(layer))
    norm, full = dora_norm(layer), base_weight(layer)
    delta = (own["lora_B"].detach().flatten(1) @ own["lora_A"].detach().flatten(1)).to(full.device)
    scaling = layer.scaling["default"]  # type: ignore[index]
    merged = norm(full, delta, scaling).flatten()
    return merged, norm(full, torch.zeros_like(full), 1.0).flatten()
