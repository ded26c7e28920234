"""The tensors of a loan: ordinary, patched as the sampler patches them, where the run needs them.

Where they come from, and what is still to be done about the patches (a LoRA of the graph) of the model:

ComfyUI has loaded it in full     they lie on the device, patched
it was unloaded                   they lie in host memory, unpatched: as a full load would patch them
dynamic VRAM                      they are brought in at use, where they may be evicted before the backward
                                  pass reads them again: as a layer patches them when they come in

The patched tensor is a new one that lives as long as the loan; the original object comes back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import comfy.float
import comfy.model_management as mm
import comfy.utils
import torch
from comfy.quant_ops import QuantizedTensor
from torch import Tensor, nn

from .quantised import packed

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher

Patch = Callable[[nn.Module, str, Tensor], "Tensor | None"]
"""(layer, name, parameter) → what stands for it in a loan, on the device; None: the parameter itself."""

_HOST = torch.device("cpu")
_EVERYTHING = 1e32
_AT_USE = ("_v", "weight_lowvram_function", "bias_lowvram_function")
"""What a layer has under dynamic VRAM, to bring in and patch what lies elsewhere."""


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor over the same storage; a quantised one, which autograd never sees, as it is."""
    if packed(tensor):
        return tensor
    out = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return out.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


@contextmanager
def trainable_view(
    module: nn.Module, view: Callable[[nn.Module, str, Tensor], Tensor] | None = None
) -> Iterator[None]:
    """Every parameter and buffer of `module` aliased, frozen; the original objects back at the end.

    view: what stands for one, from its layer, its name there and itself; its alias where nothing is given.
    """
    saved: list[tuple[dict[str, Any], str, Any]] = []
    view = view or Staging().view
    try:
        for m in module.modules():
            stores: list[dict[str, Any]] = [m._parameters, m._buffers]
            for store in stores:
                for name, tensor in list(store.items()):
                    if tensor is not None:
                        saved.append((store, name, tensor))
                        store[name] = view(m, name, tensor)
        yield
    finally:
        for store, name, tensor in saved:
            store[name] = tensor


class Staging:
    """What stands for each parameter and buffer in a loan; one for all places that a tensor is in."""

    def __init__(
        self,
        device: torch.device | None = None,
        away: Iterable[nn.Module] = (),
        patch: Patch = lambda layer, name, tensor: None,
        held: Patch = lambda layer, name, tensor: None,
    ) -> None:
        """device: where they are brought; None: they stay. away: modules whose parameters stay where they
        are, or lie in host memory when they had to be changed. held: a last change, of what is on the device.
        """
        self.device, self.patch, self.held = device, patch, held
        self.copied = 0
        """Bytes of changed parameters that lie in host memory."""
        self._away = {id(m) for block in away for m in block.modules()}
        self._made: dict[int, Tensor] = {}

    def view(self, layer: nn.Module, name: str, tensor: Tensor) -> Tensor:
        parameter = name in layer._parameters
        with torch.no_grad():
            changed = self._changed(layer, name, tensor) if parameter else None
        if changed is None and id(tensor) in self._made:
            return self._made[id(tensor)]
        made = alias(tensor if changed is None else changed)
        if parameter and id(layer) in self._away:
            if changed is not None:
                made = made.to(_HOST)
                self.copied += nbytes(made)
        elif self.device is not None and made.device != self.device:
            made = made.to(self.device)
        if parameter and not packed(made):
            made = nn.Parameter(made, requires_grad=False)
        if changed is None:
            self._made[id(tensor)] = made
        return made

    @property
    def remarks(self) -> list[str]:
        if not self.copied:
            return []
        return [
            f"{self.copied / 2**30:.2f} GB of streamed weights are not the model's own (quantised for the run"
            " or with a LoRA on them): a copy of them lies in system memory"
        ]

    def _changed(self, layer: nn.Module, name: str, tensor: Tensor) -> Tensor | None:
        patched = self.patch(layer, name, tensor)
        held = self.held(layer, name, tensor if patched is None else patched)
        return patched if held is None else held


def nbytes(tensor: Tensor) -> int:
    """Of the tensor's values as they are held, with their scales where it is quantised."""
    if not isinstance(tensor, QuantizedTensor):
        return tensor.numel() * tensor.element_size()
    whole: Any = tensor
    return sum(nbytes(getattr(whole, name)) for name in whole.__tensor_flatten__()[0])


@contextmanager
def brought(patcher: ModelPatcher, *, lean: bool = False) -> Iterator[Patch]:
    """ComfyUI's side of a loan: the model loaded, with the objects and forward passes that nodes have put in.

    lean: not all of its weights are to lie on the device. Yields what patches those that it has not patched.
    """
    if patcher.is_dynamic():
        patcher.partially_unload(patcher.offload_device, _EVERYTHING)  # what is there would lie there twice
        mm.load_models_gpu([patcher], force_full_load=True)
        # The views are made by now when the layers are used: nothing is to be brought in or patched again.
        with _attributes((m, dict.fromkeys(_AT_USE, _ABSENT)) for m in patcher.model.modules()) as before:
            yield partial(_patched_at_use, patcher, before)
    elif lean and not computes_in_host_memory(patcher):
        mm.free_memory(_EVERYTHING, patcher.load_device)
        patcher.patch_model(load_weights=False)
        try:
            with _attributes(_loaded_attributes(patcher)):
                yield partial(_patched_in_full, patcher, _patched_places(patcher))
        finally:
            patcher.unpatch_model(unpatch_weights=False)
    else:
        mm.load_models_gpu([patcher], force_full_load=True)
        yield lambda layer, name, tensor: None


def computes_in_host_memory(patcher: ModelPatcher) -> bool:
    return mm.is_device_cpu(patcher.load_device)


def _patched_in_full(
    patcher: ModelPatcher, places: Mapping[tuple[int, str], str], layer: nn.Module, name: str, tensor: Tensor
) -> Tensor | None:
    """By the patcher itself, as it loads a model in full: also one of a pack, which has its own ways."""
    key, store = places.get((id(layer), name)), cast("dict[str, Any]", layer._parameters)
    if key is None:
        return None
    try:
        patcher.backup[key] = None  # it would copy the weight
        store[name] = nn.Parameter(tensor.to(patcher.load_device, copy=True), requires_grad=False)
        patcher.patch_weight_to_device(key, device_to=patcher.load_device)
        return store[name]
    finally:
        del patcher.backup[key]
        store[name] = tensor


def _patched_places(patcher: ModelPatcher) -> dict[tuple[int, str], str]:
    """(id of a layer, name of a parameter there) → the key of its patches."""
    places: dict[tuple[int, str], str] = {}
    for key in patcher.patches:
        path, _, name = key.rpartition(".")
        layer: Any = comfy.utils.get_attr(patcher.model, path) if path else patcher.model
        places[id(layer), name] = key
    return places


def _loaded_attributes(patcher: ModelPatcher) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """What `ModelPatcher.load` sets in layers besides their weights."""
    for path, layer in patcher.model.named_modules():
        if hasattr(layer, "comfy_cast_weights"):
            values: dict[str, Any] = {"comfy_force_cast_weights": patcher.force_cast_weights}
            if patcher.force_cast_weights:
                values["comfy_cast_weights"] = True
            for name in ("weight", "bias"):
                if functions := patcher.weight_wrapper_patches.get(f"{path}.{name}"):
                    values[f"{name}_function"] = list(functions)
            yield layer, values


def _patched_at_use(
    patcher: ModelPatcher,
    at_use: Mapping[int, Mapping[str, Any]],
    layer: nn.Module,
    name: str,
    tensor: Tensor,
) -> Tensor | None:
    """As `comfy.ops.resolve_cast_module_with_vbar` leaves a weight on the card."""
    patch = at_use[id(layer)].get(f"{name}_lowvram_function")
    dtype = getattr(tensor, "_model_dtype", tensor.dtype)
    if not callable(patch) and dtype == tensor.dtype and not tensor.is_meta:
        return None
    if tensor.is_meta:  # the file lacks it
        tensor = torch.zeros(tensor.shape, dtype=tensor.dtype)
    held: Any = tensor.to(patcher.load_device, copy=True)
    if not packed(held):  # which a change of dtype might unpack
        held = held.to(dtype)
    if not callable(patch):
        return held
    # Text encoders, which have no such function, compute in fp32.
    weight = held.to(getattr(patcher.model, "get_dtype_inference", lambda: torch.float32)())
    weight = patch(weight.dequantize() if isinstance(weight, QuantizedTensor) else weight)
    seed = comfy.utils.string_to_seed(layer.seed_key)  # type: ignore[arg-type]
    if isinstance(held, QuantizedTensor):
        return held.requantize_from_float(weight, scale="recalculate", stochastic_rounding=seed)
    return comfy.float.stochastic_rounding(weight, held.dtype, seed=seed)


_ABSENT = object()


@contextmanager
def _attributes(
    changes: Iterable[tuple[nn.Module, Mapping[str, Any]]],
) -> Iterator[dict[int, dict[str, Any]]]:
    """Own attributes of modules for a while. Yields those before, by the module's id."""
    before: dict[int, dict[str, Any]] = {}
    changed: list[nn.Module] = []
    try:
        for module, values in changes:
            before[id(module)] = {name: vars(module).get(name, _ABSENT) for name in values}
            changed.append(module)
            _set(module, values)
        yield before
    finally:
        for module in changed:
            _set(module, before[id(module)])


def _set(module: nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if value is _ABSENT:
            vars(module).pop(name, None)
        else:
            vars(module)[name] = value
