"""LoRA files that are whole, one of each kind that ComfyUI reads, and the ways in which they break."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Roles = dict[str, Tensor]
Shape = tuple[int, ...]

ENDINGS = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight", "lora_mid": "lora_mid.weight"}
RANK = 2


@dataclass(frozen=True)
class Layer:
    """A layer of a tiny model by its name in files; the shapes are the model's."""

    family: str
    name: str
    shape: Shape
    bias: bool = False
    rows: bool = False


LAYERS = {
    "linear": Layer(
        "sd15", "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0", (64, 64), bias=True
    ),
    "conv": Layer("sd15", "diffusion_model.input_blocks.1.0.in_layers.2", (64, 64, 3, 3), bias=True),
    "norm": Layer("sd15", "diffusion_model.input_blocks.1.0.in_layers.0", (64,), bias=True),
    "rows of qkv": Layer("z_image", "diffusion_model.layers.0.attention.to_k", (256, 256), rows=True),
    "fused qkv": Layer("flux1", "diffusion_model.double_blocks.0.img_attn.qkv", (384, 128), bias=True),
    "rows of linear1": Layer(
        "flux1", "transformer.single_transformer_blocks.0.attn.to_k", (128, 128), rows=True
    ),
    "entrance": Layer("flux1", "diffusion_model.img_in", (128, 64), bias=True),
}


def file(layer: Layer, roles: Roles) -> dict[str, Tensor]:
    return {f"{layer.name}.{ENDINGS.get(role, role)}": tensor for role, tensor in roles.items()}


def _random(**shapes: Shape) -> Roles:
    g = torch.Generator().manual_seed(0)
    return {role: 0.1 * torch.randn(shape, generator=g) for role, shape in shapes.items()}


def _halves(n: int) -> Shape:
    a = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    return a, n // a


def whole(layer: Layer) -> dict[str, Roles]:
    """Kind → tensors for the layer that ComfyUI's own loader takes."""
    out, *rest = layer.shape
    alpha = {"alpha": torch.tensor(3.0)}
    flat, r, ones = math.prod(rest), RANK, (1,) * (len(rest) - 1)
    bias = _random(diff_b=(out,)) if layer.bias else {}
    found = {"diff": _random(diff=layer.shape) | bias, "set_weight": _random(set_weight=layer.shape)}
    if not rest:
        return found | {"norm": _random(w_norm=(out,), b_norm=(out,))}
    (a, b), (c, d) = _halves(out), _halves(rest[0])
    lora = _random(lora_A=(r, *rest), lora_B=(out, r, *ones))
    found |= {
        "lora": lora,
        "lora with alpha": lora | alpha,
        "lora, written flat": _random(lora_A=(r, flat), lora_B=(out, r)) | alpha,
        "lora with a bias": lora | bias,
        "dora": lora | alpha | _random(dora_scale=(out, 1, *ones)),
        "dora on the inputs": lora | alpha | _random(dora_scale=(1, rest[0], *ones)),
        "loha": alpha
        | _random(hada_w1_a=(out, r), hada_w1_b=(r, flat), hada_w2_a=(out, r), hada_w2_b=(r, flat)),
        "lokr": _random(lokr_w1=(a, c), lokr_w2=(b, d, *rest[1:])),
        "lokr with w2 in factors": alpha
        | _random(lokr_w1=(a, c), lokr_w2_a=(b, r), lokr_w2_b=(r, d * flat // rest[0])),
        "lokr in factors": alpha
        | _random(lokr_w1_a=(a, r), lokr_w1_b=(r, c), lokr_w2_a=(b, r), lokr_w2_b=(r, d * flat // rest[0])),
        "oft": _random(oft_blocks=(out // 4, 4, 4)),
        "oft with a constraint": _random(oft_blocks=(out // 4, 4, 4), rescale=(out, 1, *ones)) | alpha,
        # as many stages as there can be
        "boft": _random(oft_blocks=((out & -out).bit_length() - 2, out // 4, 4, 4), rescale=(out, 1, *ones))
        | alpha,
    }
    if len(rest) == 3:
        core, kernel = (r, r, *rest[1:]), rest[0]
        found |= {
            "tucker lora": alpha | _random(lora_A=(r, kernel, 1, 1), lora_B=(out, r, 1, 1), lora_mid=core),
            "tucker loha": alpha
            | _random(hada_w1_a=(r, out), hada_w1_b=(r, kernel), hada_t1=core)
            | _random(hada_w2_a=(r, out), hada_w2_b=(r, kernel), hada_t2=core),
            "tucker lokr": alpha | _random(lokr_w1=(a, c), lokr_w2_a=(r, b), lokr_w2_b=(r, d), lokr_t2=core),
        }
    if layer.name.endswith("img_in"):
        wide = _random(lora_A=(r, 2 * flat), lora_B=(out, r))
        found["lora that widens"] = wide | {"reshape_weight": torch.tensor([out, 2 * flat])}
    if layer.family == "sd15":
        return found
    few = ("lora with alpha", "lora that widens", "dora", "loha", "lokr with w2 in factors", "oft", "diff")
    return {kind: found[kind] for kind in few if kind in found}


CAN_BE_MISSING = {"diff", "dora_scale", "rescale", "diff_b", "b_norm", "lora_mid", "lokr_t2"}

Change = Callable[[Tensor], Tensor]


def _spoilt(value: float) -> Change:
    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[-1] = value
        return t

    return spoil


ANY: dict[str, Change] = {
    "is a single number": lambda t: t.sum(),
    "is empty": lambda t: t[:0],
    "has a row too many": lambda t: torch.cat([t, t[:1]]),
    "has NaN": _spoilt(math.nan),
    "has infinity": _spoilt(-math.inf),
    "is of whole numbers": lambda t: t.to(torch.int32),
    "is of complex numbers": lambda t: t.to(torch.complex64),
    "is sparse": lambda t: t.to_sparse(),
    "is without storage": lambda t: t.to("meta"),
}
MATRIX: dict[str, Change] = {
    "has a column too few": lambda t: t[:, : t.shape[1] - 1],
    "has one dimension": lambda t: t.flatten(),
    "has a dimension too many": lambda t: t[None],
}
ALPHA: dict[str, Callable[[], Tensor]] = {
    "is a vector": lambda: torch.tensor([1.0, 2.0]),
    "is empty": lambda: torch.empty(0),
    "is NaN": lambda: torch.tensor(math.nan),
    "is infinite": lambda: torch.tensor(math.inf),
    "is complex": lambda: torch.tensor(1j),
}
RESHAPE: dict[str, Callable[[Shape], Tensor]] = {
    "is a single number": lambda shape: torch.tensor(shape[0]),
    "is empty": lambda shape: torch.empty(0, dtype=torch.int64),
    "is a matrix": lambda shape: torch.tensor([shape]),
    "is of fractions": lambda shape: torch.tensor(shape, dtype=torch.float32),
    "is negative": lambda shape: -torch.tensor(shape),
    "is smaller": lambda shape: torch.tensor([shape[0], shape[1] - 1]),
    "asks for another dimension": lambda shape: torch.tensor([*shape, 1]),
    "asks for more outputs": lambda shape: torch.tensor([2 * shape[0], shape[1]]),
    "does not fit the product": lambda shape: torch.tensor([shape[0], 3 * shape[1]]),
    "overflows": lambda shape: torch.tensor([shape[0], 2**62]),
}


def broken(layer: Layer) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """(what is wrong, file) for the layer."""
    kinds = whole(layer)
    for kind, roles in kinds.items():
        own = [role for role in roles if role not in ("alpha", "reshape_weight")]
        for role in own:
            changes = ANY | (MATRIX if roles[role].ndim > 1 else {})
            if kind == "oft with a constraint" and role == "oft_blocks":
                changes.pop("has a dimension too many")  # a BOFT of one stage
            for what, change in changes.items():
                yield f"{kind}: {role} {what}", file(layer, {**roles, role: change(roles[role])})
            rest = {k: v for k, v in roles.items() if k != role}
            if rest and role not in CAN_BE_MISSING:
                yield f"{kind}: no {role}", file(layer, rest)
        for what, make in ALPHA.items():
            yield f"{kind}: alpha {what}", file(layer, {**roles, "alpha": make()})
        yield f"{kind}: a list for a tensor", file(layer, {**roles, own[0]: [1.0]})  # type: ignore[dict-item]
        larger = whole(
            Layer(layer.family, layer.name, tuple(8 * n for n in layer.shape[:2]) + layer.shape[2:])
        )
        if kind in larger:
            yield f"{kind}: for a larger layer", file(layer, larger[kind])
    yield "alpha alone", file(layer, {"alpha": torch.tensor(1.0)})
    yield from _mixed(layer, kinds)
    if "lora that widens" in kinds:
        widening = kinds["lora that widens"]
        for what, reshape in RESHAPE.items():
            yield f"reshape_weight {what}", file(layer, {**widening, "reshape_weight": reshape(layer.shape)})
        huge = {"lora_A": torch.ones(1, 10**6), "lora_B": torch.ones(10**6, 1)}
        yield "4 TB", file(layer, {**huge, "reshape_weight": torch.tensor([10**6, 10**6])})
        out, flat = layer.shape
        huge = {"lora_A": torch.ones(1, 10**6 * flat), "lora_B": torch.ones(out, 1)}
        yield "half a terabyte", file(layer, {**huge, "reshape_weight": torch.tensor([out, 10**6 * flat])})


def _mixed(layer: Layer, kinds: dict[str, Roles]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    simple = [
        k for k in ("lora with alpha", "loha", "lokr", "oft", "diff", "set_weight", "norm") if k in kinds
    ]
    for i, one in enumerate(simple):
        for two in simple[i + 1 :]:
            yield f"{one} and {two}", file(layer, {**kinds[one], **kinds[two]})
    if "lora with alpha" in kinds:
        lora = file(layer, kinds["lora with alpha"])
        a = kinds["lora with alpha"]["lora_A"]
        yield "lora_A in two spellings", {**lora, f"{layer.name}.lora_A.weight": a}
        yield "rescale of another kind", {**lora, f"{layer.name}.rescale": torch.ones(layer.shape[0], 1)}
    if "lokr" in kinds:
        yield "w1 whole and in factors", file(layer, {**kinds["lokr in factors"], **kinds["lokr"]})
    if not layer.bias:
        kind = next(iter(kinds))
        bias = torch.ones(layer.shape[0])
        yield "a bias that the layer has not", file(layer, {**kinds[kind], "diff_b": bias})
