"""Which tensors of a LoRA file make the change of a layer together, and which shapes fit the layer.

    lora   lora_B [out, r] · lora_A [r, in·k…]
           Tucker: lora_A [r, in], lora_mid [r, r, k, k]
    loha   (w1_a [out, r] · w1_b [r, in·k…]) ∘ (w2_a · w2_b)
           Tucker: w_a [r, out], w_b [r, in], t1 and t2 [r, r, k, k]
    lokr   w1 [a, c] ⊗ w2 [b, d] or [b, d, k…], where a·b = out and c·d = in
           each may be a product, _a · _b; w2 also Tucker's, with t2
    oft    oft_blocks [n, s, s], where n·s = out; with four dimensions BOFT, [stages, n, s, s]
    diff, w_norm, set_weight    the weight's own shape; diff_b, b_norm the bias's

ComfyUI's loader takes all this for granted: it meets what is wrong while it samples, or never says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import LoraFileError, shortened
from .names import by_layer

Roles = Mapping[str, Tensor]
"""Role of a tensor (`names.split_key`) → the tensor, for one layer of a file."""
Shape = tuple[int, ...]

WIDEST = 16
"""How many times its elements `reshape_weight` may give a weight. Flux.1 Fill has 6 times Flux.1's inputs."""


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """A layer of the network, or rows of it, that tensors of a file are for."""

    weight: Shape
    bias: Shape | None = None
    whole: bool = True
    """False: rows of a layer."""
    adaptable: bool = True
    """Whether adapters can sit on it: a linear layer or a convolution without groups."""

    def rows(self, length: int, dim: int = 0) -> LayerShape:
        weight = (*self.weight[:dim], length, *self.weight[dim + 1 :])
        return replace(self, weight=weight, bias=None, whole=False)


class _Misfit(Exception):
    """What is wrong with a layer's tensors, as what follows the layer's name."""


def check_file(tensors: Mapping[str, Tensor]) -> None:
    """What can be told without the model. Raises LoraFileError for the first layer that is broken."""
    for name, roles in by_layer(tensors).items():
        check_layer(name, roles)


def check_layer(name: str, roles: Roles, layer: LayerShape | None = None) -> str:
    """The kind of the tensors that a file has for a layer; "" for a bias alone.

    layer: of the model; None checks the tensors against each other only. Raises LoraFileError.
    """
    try:
        for role, tensor in roles.items():
            _check_values(role, tensor)
        kind = _kind(roles)
        change = _CHANGES[kind](roles) if kind in _CHANGES else None
        if layer is not None:
            _check_fit(kind, roles, change, layer)
    except _Misfit as misfit:
        raise LoraFileError(f"{name} in the LoRA file {misfit}; choose a whole file for this model") from None
    return kind


def _check_values(role: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise _Misfit(f"has a {type(tensor).__name__} as {role}, not a tensor")
    shape = list(tensor.shape)
    if role == "reshape_weight":
        if tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex():
            raise _Misfit(f"has a reshape_weight of shape {shape} and {tensor.dtype}, not a list of sizes")
        return
    if role == "alpha" and (tensor.numel() != 1 or tensor.is_complex()):
        raise _Misfit(f"has an alpha of shape {shape} and {tensor.dtype}, not one number")
    if role != "alpha" and not tensor.is_floating_point():
        raise _Misfit(f"has {role} in {tensor.dtype}, which is no floating-point format")
    if not tensor.numel():
        raise _Misfit(f"has an empty {role} of shape {shape}")
    try:
        finite = all(math.isfinite(extreme) for extreme in tensor.float().aminmax())
    except RuntimeError as error:  # 4-bit, sparse or without storage
        raise _Misfit(f"has {role} in {tensor.dtype}, {tensor.layout}, which cannot be read") from error
    if not finite:
        raise _Misfit(f"has NaN or infinity in {role}")


def _sets(*spaced: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in spaced)


_TOGETHER = {
    "lora": _sets("lora_A lora_B", "lora_A lora_B lora_mid"),
    "loha": _sets(
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
        "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
    ),
    "lokr": _sets(
        *(
            f"{w1} {w2}"
            for w1 in ("lokr_w1", "lokr_w1_a lokr_w1_b")
            for w2 in ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_w2_a lokr_w2_b lokr_t2")
        )
    ),
    "oft": _sets("oft_blocks", "oft_blocks rescale"),
    "diff": _sets("diff"),
    "norm": _sets("w_norm", "w_norm b_norm"),
    "set_weight": _sets("set_weight"),
}
"""Kind → the roles that it may consist of."""
_BESIDE = {
    "lora": {"dora_scale", "lora_magnitude_vector", "reshape_weight"},
    "loha": {"dora_scale"},
    "lokr": {"dora_scale"},
}
"""What may come with a kind, besides alpha and a bias's diff_b."""


def _kind(roles: Roles) -> str:
    kinds = [kind for kind, sets in _TOGETHER.items() if roles.keys() & frozenset().union(*sets)]
    if len(kinds) > 1:
        raise _Misfit(f"mixes the kinds {', '.join(sorted(kinds))}")
    if not kinds and "diff_b" not in roles:
        raise _Misfit(f"has {', '.join(sorted(roles))} and nothing that it belongs to")
    kind = kinds[0] if kinds else ""
    own = roles.keys() & frozenset().union(*_TOGETHER.get(kind, ()))
    if kind and own not in _TOGETHER[kind]:
        _refuse_set(own, _TOGETHER[kind])
    beside = roles.keys() - own - {"alpha", "diff_b"}
    if beside - _BESIDE.get(kind, set()) or len(beside) > 1 or {"diff_b", "b_norm"} <= roles.keys():
        raise _Misfit(f"has {', '.join(sorted(roles))}, which do not belong together")
    return kind


def _refuse_set(own: Iterable[str], sets: Iterable[frozenset[str]]) -> None:
    lacking = [together.difference(own) for together in sets if together.issuperset(own)]
    if lacking:
        raise _Misfit(f"has {', '.join(sorted(own))} and no {', '.join(sorted(min(lacking, key=len)))}")
    raise _Misfit(f"has {', '.join(sorted(own))}, which do not belong together")


def _lora(roles: Roles) -> Shape:
    a, b, mid = roles["lora_A"], roles["lora_B"], roles.get("lora_mid")
    if a.ndim < 2 or b.ndim < 2 or b[0].numel() != a.shape[0]:
        raise _unmultipliable(roles, "lora_B", "lora_A")
    if mid is None:
        return b.shape[0], a[0].numel()
    if mid.ndim != 4 or mid.shape[:2] != (len(a), len(a)) or a[0].numel() != a.shape[1]:
        raise _unmultipliable(roles, "lora_B", "lora_mid", "lora_A")
    return b.shape[0], a.shape[1], *mid.shape[2:]


def _loha(roles: Roles) -> Shape:
    one = _product(roles, "hada_w1_a", "hada_w1_b", "hada_t1")
    two = _product(roles, "hada_w2_a", "hada_w2_b", "hada_t2")
    if one != two:
        raise _Misfit(f"multiplies {_spelled(one)} with {_spelled(two)} element by element")
    return one


def _lokr(roles: Roles) -> Shape:
    factors = []
    for w, core in (("lokr_w1", ""), ("lokr_w2", "lokr_t2")):
        whole = roles.get(w)
        factors.append(_product(roles, f"{w}_a", f"{w}_b", core) if whole is None else tuple(whole.shape))
    w1, w2 = factors
    if len(w1) != 2 or len(w2) not in (2, 3, 4):
        raise _Misfit(f"multiplies {_spelled(w1)} with {_spelled(w2)} as a Kronecker product")
    return w1[0] * w2[0], w1[1] * w2[1], *w2[2:]


def _product(roles: Roles, a_role: str, b_role: str, core_role: str) -> Shape:
    """Shape of a · b, or of the Tucker product of a, b and a core."""
    a, b, core = roles[a_role], roles[b_role], roles.get(core_role)
    if core is None:
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
            raise _unmultipliable(roles, a_role, b_role)
        return a.shape[0], b.shape[1]
    if a.ndim != 2 or b.ndim != 2 or core.ndim != 4 or core.shape[:2] != (len(a), len(b)):
        raise _unmultipliable(roles, a_role, core_role, b_role)
    return a.shape[1], b.shape[1], *core.shape[2:]


def _oft(roles: Roles) -> Shape:
    """[out]: a rotation says nothing of the inputs."""
    blocks, rescale = roles["oft_blocks"], roles.get("rescale")
    if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
        raise _Misfit(f"has oft_blocks of shape {list(blocks.shape)}, which are no square blocks")
    outputs, size = blocks.shape[-3] * blocks.shape[-1], blocks.shape[-1]
    if blocks.ndim == 4:
        if "alpha" not in roles:
            raise _Misfit("has a BOFT without alpha, which ComfyUI does not read")
        if size % 2 or any(outputs % (size << stage) for stage in range(len(blocks))):
            raise _Misfit(f"has oft_blocks of shape {list(blocks.shape)}, which make no butterfly")
    if rescale is not None and (rescale.shape[:1] != (outputs,) or rescale.numel() != outputs):
        raise _Misfit(f"has a rescale of shape {list(rescale.shape)} for {outputs} outputs")
    return (outputs,)


_CHANGES: Mapping[str, Callable[[Roles], Shape]] = {"lora": _lora, "loha": _loha, "lokr": _lokr, "oft": _oft}
"""Kind → shape of the change that its tensors make. Raises _Misfit when they do not multiply."""
_AS_IT_IS = {"diff": "diff", "norm": "w_norm", "set_weight": "set_weight"}
"""Kind → the role that has the weight's own shape."""


def _check_fit(kind: str, roles: Roles, change: Shape | None, layer: LayerShape) -> None:
    weight = _reshaped(roles, layer)
    if kind in _AS_IT_IS:
        change = tuple(roles[_AS_IT_IS[kind]].shape)
        fits = change == weight
    else:
        fits = change is None or _fits(change, weight)
    if not fits:
        assert change is not None
        raise _Misfit(f"is for {_spelled(change)}, and the layer's weight is {_spelled(weight)}")
    _check_dora(roles, weight)
    rescale = roles.get("rescale")
    if rescale is not None and rescale.ndim != len(weight):
        raise _Misfit(f"has a rescale of shape {list(rescale.shape)} for a weight of {_spelled(weight)}")
    for role in roles.keys() & {"diff_b", "b_norm"}:
        if tuple(roles[role].shape) != layer.bias:
            there = "no bias of its own" if layer.bias is None else f"a bias of {_spelled(layer.bias)}"
            raise _Misfit(f"has a {role} of shape {list(roles[role].shape)}, and the layer has {there}")


def _fits(change: Shape, weight: Shape) -> bool:
    """A change that is written flat, [out, in·k…], fits a convolution too."""
    if change[:1] != weight[:1] or len(change) == 1:
        return change[:1] == weight[:1]
    flat = 2 in (len(change), len(weight)) or len(weight) == 1
    return change == weight or (flat and math.prod(change) == math.prod(weight))


def _reshaped(roles: Roles, layer: LayerShape) -> Shape:
    """The weight's shape once ComfyUI has padded it for the LoRA."""
    if "reshape_weight" not in roles:
        return layer.weight
    sizes = tuple(int(size) for size in roles["reshape_weight"])
    old = layer.weight
    same = layer.whole and len(sizes) == len(old) and sizes[:1] == old[:1]
    if not same or any(new < size for new, size in zip(sizes, old, strict=True)):
        raise _Misfit(f"reshapes a weight of {_spelled(old)} to {_spelled(sizes)}")
    if math.prod(sizes) > WIDEST * math.prod(old):
        raise _Misfit(
            f"reshapes a weight of {_spelled(old)} to {_spelled(sizes)}, over {WIDEST} times as much"
        )
    return sizes


def _check_dora(roles: Roles, weight: Shape) -> None:
    scale, magnitude = roles.get("dora_scale"), roles.get("lora_magnitude_vector")
    ones = (1,) * (len(weight) - 2)
    if scale is not None:
        sides = ((*weight[:1], 1, *ones), (1, *weight[1:2], *ones))
        if len(weight) < 2 or tuple(scale.shape) not in sides:
            raise _Misfit(f"has a dora_scale of shape {list(scale.shape)} for a weight of {_spelled(weight)}")
    if magnitude is not None and (len(weight) < 2 or (magnitude.numel(),) != weight[:1]):
        raise _Misfit(f"has {magnitude.numel()} DoRA magnitudes for a weight of {_spelled(weight)}")


def _unmultipliable(roles: Roles, *names: str) -> _Misfit:
    shapes = (f"{name} {list(roles[name].shape)}" for name in names)
    return _Misfit(f"has {shortened(shapes)}, which cannot be multiplied")


def _spelled(shape: Shape) -> str:
    return " × ".join(map(str, shape)) or "one number"
