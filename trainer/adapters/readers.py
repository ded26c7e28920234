"""LoRA files of other trainers: kohya, ComfyUI, diffusers, PEFT, DiffSynth, LyCORIS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import LoraFileError, shortened
from .kinds import KINDS
from .metadata import CONFIG, DORA_NORM
from .names import Rows, by_layer, find, is_text_encoder, split_key, unplaced
from .shapes import LayerShape, Roles, Shape, check_layer
from .start import StartingLora

_KINDS = {name: KINDS[name].roles for name in ("lora", "loha", "lokr", "oft")}
"""What tensors alone can say of a file; DoRA is a LoRA with scales."""
_WHOLE = KINDS["full"].roles
_DORA = ("dora_scale", "lora_magnitude_vector")
_NO_ADAPTER = {"diff_b", "w_norm", "b_norm"}
"""Changes of norms and biases, which ComfyUI's trainer saves beside its LoRAs."""
_KNOWN = {role for roles in _KINDS.values() for role in roles} | {"alpha", *_DORA, *_WHOLE, *_NO_ADAPTER}


def read_start(
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, Rows],
    shapes: Mapping[str, LayerShape],
    *,
    file_alpha: float = 0.0,
    metadata: Mapping[str, str] | None = None,
) -> StartingLora:
    """A LoRA file as the start of a training, checked against the layers that it is for.

    What no adapter can hold (norms, biases, embeddings) is named in `StartingLora.left_out`; LoraFileError is
    raised for any other tensor that cannot be used.

    aliases: the names that a layer of this model has in files (`trainer.host.lora.aliases`). shapes: of every
    layer. file_alpha: α of files that carry none (DiffSynth); 0 means equal to the rank.
    """
    modules, left_out = _by_module(tensors, aliases, shapes)
    kind = _kind(modules)
    layers, alphas, ranks = {}, {}, {}
    for layer, pieces in _by_layer(modules, aliases).items():
        read = _read_pieces(layer, kind, pieces, shapes[layer].weight, file_alpha)
        layers[layer], ranks[layer], alphas[layer] = read
    about = metadata or {}
    # Our files that went on from a DoRA did not always say which norm; it was ComfyUI's.
    over_base = about.get(DORA_NORM, "base" if CONFIG in about else "merged") == "base"
    return StartingLora(
        kind=kind,
        layers=layers,
        alphas=alphas,
        ranks=ranks,
        dora_over_base=over_base and any("dora_scale" in roles for roles in modules.values()),
        left_out=tuple(left_out),
    )


def with_alpha(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The tensors, with `alpha` for each LoRA layer of the file that has none."""
    out = dict(tensors)
    for key in tensors:
        split = split_key(key)
        if split and split[1] == "lora_A":
            out.setdefault(f"{split[0]}.alpha", torch.tensor(float(alpha)))
    return out


def _by_module(
    tensors: Mapping[str, Tensor], aliases: Mapping[str, Rows], shapes: Mapping[str, LayerShape]
) -> tuple[dict[str, Roles], list[str]]:
    """(prefix → role → tensor of what adapters can hold, names of the rest)"""
    if not tensors:
        raise LoraFileError("the starting LoRA has no tensors; choose another file")
    if unused := unplaced(tensors, lambda prefix: find(prefix, aliases) is not None):
        raise cannot_use(unused, len(tensors), "the training cannot go on from it")
    modules: dict[str, Roles] = {}
    left_out, other = [], []
    checked = []
    for name, roles in by_layer(tensors).items():
        rows = find(name, aliases)
        assert rows is not None
        layer = shapes[rows.layer]
        kind = check_layer(name, roles, layer.rows(rows.length) if rows.length else layer)
        checked.append((name, roles, kind, layer.adaptable))
    # ComfyUI's trainer saves whole changes beside its LoRAs; a file of nothing else is of kind full.
    holding = _KINDS if any(kind in _KINDS for _, _, kind, _ in checked) else {"diff": _WHOLE}
    for name, roles, kind, adaptable in checked:
        held = kind in holding and adaptable
        dropped = [role for role in roles if not held or role in _NO_ADAPTER]
        left_out += [f"{name}.{role}" for role in dropped]
        other += [f"{name}.{role}" for role in roles if role not in _KNOWN]
        if held:
            modules[name] = {role: tensor for role, tensor in roles.items() if role not in dropped}
    if other:
        raise LoraFileError(
            f"training cannot go on from a LoRA with {shortened(other)}; start from another file, or use this"
            " one with Apply LoRA"
        )
    if not modules:
        raise LoraFileError(
            f"the starting LoRA has nothing that an adapter can hold, only {shortened(left_out)}; choose"
            " another file"
        )
    return modules, left_out


def cannot_use(keys: Iterable[str], total: int, consequence: str) -> LoraFileError:
    keys = list(keys)
    text = " (text-encoder tensors among them)" if any(is_text_encoder(k) for k in keys) else ""
    return LoraFileError(
        f"{len(keys)} of the LoRA's {total} tensors fit nothing in this model{text}: {', '.join(keys[:3])}"
        f"{' and more' if len(keys) > 3 else ''}; {consequence}, choose a LoRA of the same model family"
    )


def _kind(modules: Mapping[str, Roles]) -> str:
    if all(_WHOLE & roles.keys() for roles in modules.values()):
        return "full"
    found = {kind for roles in modules.values() for kind, names in _KINDS.items() if names & roles.keys()}
    if len(found) != 1:
        raise LoraFileError(
            f"the starting LoRA mixes the kinds {', '.join(sorted(found))}; training goes on from"
            " files of one kind"
        )
    scales = [{role for role in _DORA if role in roles} for roles in modules.values()]
    if any(scales) and (found != {"lora"} or any(own != scales[0] for own in scales)):
        raise LoraFileError("the starting LoRA has DoRA scales on some layers only; use a plain LoRA or DoRA")
    return "dora" if any(scales) else found.pop()


def _by_layer(
    modules: Mapping[str, Roles], aliases: Mapping[str, Rows]
) -> dict[str, list[tuple[Rows, str, Roles]]]:
    layers: dict[str, list[tuple[Rows, str, Roles]]] = defaultdict(list)
    for prefix, roles in modules.items():
        rows = find(prefix, aliases)
        assert rows is not None
        layers[rows.layer].append((rows, prefix, roles))
    for pieces in layers.values():
        pieces.sort(key=lambda piece: piece[0].start)
    return layers


def _read_pieces(
    layer: str, kind: str, pieces: list[tuple[Rows, str, Roles]], weight: Shape, file_alpha: float
) -> tuple[dict[str, Tensor], int, float]:
    """(tensors, rank, alpha) of one layer of the network, whose weight has this shape."""
    rows, prefix, roles = pieces[0]
    if len(pieces) == 1 and not rows.length:
        if kind in ("lora", "dora"):
            return _lora(prefix, roles, weight, file_alpha)
        return {"loha": _loha, "lokr": _lokr, "oft": _oft, "full": _full}[kind](prefix, roles, weight)
    if len({own.start for own, _, _ in pieces}) < len(pieces):
        names = shortened(name for _, name, _ in pieces)
        raise LoraFileError(
            f"the starting LoRA has {layer} under several names ({names}); choose another file"
        )
    if kind != "lora" or any(not piece[0].length for piece in pieces):
        raise LoraFileError(
            f"{layer} is one layer here and {len(pieces)} in the starting LoRA ({prefix}, …); only plain"
            " LoRAs can be joined"
        )
    parts = [(own, _lora(name, t, (own.length, *weight[1:]), file_alpha)) for own, name, t in pieces]
    return _fused(parts, weight)


def _alpha(prefix: str, roles: Roles, default: float) -> float:
    alpha = float(roles["alpha"].float().item()) if "alpha" in roles else default
    if not alpha:
        raise LoraFileError(
            f"{prefix} has alpha 0 in the starting LoRA, so that it never acts; choose another file"
        )
    return alpha


def _lora(
    prefix: str, roles: Roles, weight: Shape, file_alpha: float
) -> tuple[dict[str, Tensor], int, float]:
    """Written flat or as a convolution's, the tensors become those of the layer."""
    rank, kernel = len(roles["lora_A"]), weight[2:]
    tensors = {
        "lora_A": roles["lora_A"].float().reshape(rank, -1, *kernel),
        "lora_B": roles["lora_B"].float().reshape(-1, rank, *[1] * len(kernel)),
    }
    scale = next((roles[name] for name in _DORA if name in roles), None)
    if scale is not None:
        if "dora_scale" in roles and len(scale) != weight[0]:
            raise LoraFileError(
                f"{prefix}: its DoRA scale has {scale.numel()} values for {weight[0]} outputs; scales on the"
                " input side cannot be trained further"
            )
        tensors["dora_scale"] = scale
    return tensors, rank, _alpha(prefix, roles, file_alpha or float(rank))


def _fused(
    pieces: list[tuple[Rows, tuple[dict[str, Tensor], int, float]]], weight: Shape
) -> tuple[dict[str, Tensor], int, float]:
    """LoRAs on rows of a layer as one: A stacked, B block by block, each with its own scale folded into B."""
    total = sum(rank for _, (_, rank, _) in pieces)
    a = torch.cat([tensors["lora_A"] for _, (tensors, _, _) in pieces])
    b = torch.zeros(weight[0], total)
    column = 0
    for rows, (tensors, rank, alpha) in pieces:
        b[rows.start : rows.start + rows.length, column : column + rank] = tensors["lora_B"] * (alpha / rank)
        column += rank
    return {"lora_A": a, "lora_B": b}, total, float(total)


def _loha(prefix: str, roles: Roles, weight: Shape) -> tuple[dict[str, Tensor], int, float]:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors = {name: roles[name].float() for name in names}
    rank = len(tensors["hada_w1_b"])
    return tensors, rank, _alpha(prefix, roles, float(rank))


def _lokr(prefix: str, roles: Roles, weight: Shape) -> tuple[dict[str, Tensor], int, float]:
    """A factored w1 is multiplied out; a full w2 has no rank and no scale."""
    values = {role: tensor.float() for role, tensor in roles.items()}
    if "lokr_w1" in values:
        w1, rank = values["lokr_w1"], 0
    else:
        w1, rank = values["lokr_w1_a"] @ values["lokr_w1_b"], len(values["lokr_w1_b"])
    if "lokr_w2" not in values:
        w2_a, w2_b = values["lokr_w2_a"], values["lokr_w2_b"]
        rank = len(w2_b)
        alpha = _alpha(prefix, roles, float(rank))
        return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}, rank, alpha
    w2 = values["lokr_w2"]
    if len(weight) != 3:  # peft takes a w2 of three dimensions for another product
        w2 = w2.reshape(len(w2), -1, *weight[2:])
    if rank:
        w1 = w1 * (_alpha(prefix, roles, float(rank)) / rank)
    full = max(w2.shape[:2])  # a rank from which on peft, too, keeps w2 whole
    return {"lokr_w1": w1, "lokr_w2": w2}, full, float(full)


def _full(prefix: str, roles: Roles, weight: Shape) -> tuple[dict[str, Tensor], int, float]:
    """It has neither rank nor alpha: 1 stands for both."""
    return {"diff": roles["diff"].float().reshape(weight)}, 1, 1.0


def _oft(prefix: str, roles: Roles, weight: Shape) -> tuple[dict[str, Tensor], int, float]:
    blocks = roles["oft_blocks"].float()
    if blocks.ndim != 3 or float(roles.get("alpha", torch.tensor(0.0))) > 0:
        raise LoraFileError(f"{prefix}: only OFT without constraint can be trained further, not BOFT or COFT")
    return {"oft_blocks": blocks}, blocks.shape[1], 0.0
