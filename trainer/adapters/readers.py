"""LoRA files of other trainers: kohya, ComfyUI, diffusers, PEFT, DiffSynth, LyCORIS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..errors import LoraFileError
from .kinds import KINDS
from .metadata import DORA_NORM
from .names import Rows, find, is_text_encoder, split_key
from .start import StartingLora

_KINDS = {name: KINDS[name].roles for name in ("lora", "loha", "lokr", "oft")}
"""What tensors alone can say of a file; DoRA is a LoRA with scales."""
_DORA = ("dora_scale", "lora_magnitude_vector")


def read_start(
    tensors: Mapping[str, Tensor],
    aliases: Mapping[str, Rows],
    *,
    file_alpha: float = 0.0,
    metadata: Mapping[str, str] | None = None,
) -> StartingLora:
    """A LoRA file as the start of a training. Every tensor is used, or LoraFileError names those left over.

    aliases: the names that a layer of this model has in files (`trainer.host.lora.aliases`).
    file_alpha: α of files that carry none (DiffSynth); 0 means equal to the rank.
    """
    modules = _by_module(tensors, aliases)
    kind = _kind(modules)
    layers, alphas, ranks = {}, {}, {}
    for layer, pieces in _by_layer(modules, aliases).items():
        read = _read_pieces(layer, kind, pieces, file_alpha)
        layers[layer], ranks[layer], alphas[layer] = read
    return StartingLora(
        kind=kind,
        layers=layers,
        alphas=alphas,
        ranks=ranks,
        dora_over_base=(metadata or {}).get(DORA_NORM) == "base",
    )


def with_alpha(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The tensors, with `alpha` for each LoRA layer of the file that has none."""
    out = dict(tensors)
    for key in tensors:
        split = split_key(key)
        if split and split[1] == "lora_A":
            out.setdefault(f"{split[0]}.alpha", torch.tensor(float(alpha)))
    return out


def _by_module(tensors: Mapping[str, Tensor], aliases: Mapping[str, Rows]) -> dict[str, dict[str, Tensor]]:
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    unused = []
    for key, tensor in tensors.items():
        split = split_key(key)
        if split is None or find(split[0], aliases) is None:
            unused.append(key)
        else:
            modules[split[0]][split[1]] = tensor
    known = {role for roles in _KINDS.values() for role in roles} | {"alpha", *_DORA}
    unused += [f"{m} ({role})" for m, roles in modules.items() for role in roles if role not in known]
    if unused:
        raise cannot_use(unused, len(tensors), "the training cannot go on from it")
    if not modules:
        raise LoraFileError("the starting LoRA has no tensors; choose another file")
    return modules


def cannot_use(keys: Iterable[str], total: int, consequence: str) -> LoraFileError:
    keys = list(keys)
    text = " (text-encoder tensors among them)" if any(is_text_encoder(k) for k in keys) else ""
    return LoraFileError(
        f"{len(keys)} of the LoRA's {total} tensors fit nothing in this model{text}: {', '.join(keys[:3])}"
        f"{' and more' if len(keys) > 3 else ''}; {consequence}, choose a LoRA of the same model family"
    )


def _kind(modules: Mapping[str, Mapping[str, Tensor]]) -> str:
    found = {kind for roles in modules.values() for kind, names in _KINDS.items() if names & roles.keys()}
    if len(found) != 1:
        raise LoraFileError(
            f"the starting LoRA mixes the kinds {', '.join(sorted(found)) or 'none'}; training goes on from"
            " files of one kind"
        )
    dora = [any(role in _DORA for role in roles) for roles in modules.values()]
    if any(dora) and (not all(dora) or found != {"lora"}):
        raise LoraFileError("the starting LoRA has DoRA scales on some layers only; use a plain LoRA or DoRA")
    return "dora" if any(dora) else found.pop()


def _by_layer(
    modules: Mapping[str, Mapping[str, Tensor]], aliases: Mapping[str, Rows]
) -> dict[str, list[tuple[Rows, str, Mapping[str, Tensor]]]]:
    layers: dict[str, list[tuple[Rows, str, Mapping[str, Tensor]]]] = defaultdict(list)
    for prefix, roles in modules.items():
        rows = find(prefix, aliases)
        assert rows is not None
        layers[rows.layer].append((rows, prefix, roles))
    for pieces in layers.values():
        pieces.sort(key=lambda piece: piece[0].start)
    return layers


def _read_pieces(
    layer: str, kind: str, pieces: list[tuple[Rows, str, Mapping[str, Tensor]]], file_alpha: float
) -> tuple[dict[str, Tensor], int, float]:
    """(tensors, rank, alpha) of one layer of the network."""
    rows, prefix, roles = pieces[0]
    if len(pieces) == 1 and not rows.length:
        if kind in ("lora", "dora"):
            return _lora(prefix, roles, file_alpha)
        return {"loha": _loha, "lokr": _lokr, "oft": _oft}[kind](prefix, roles)
    if kind != "lora" or any(not piece[0].length for piece in pieces):
        raise LoraFileError(
            f"{layer} is one layer here and {len(pieces)} in the starting LoRA ({prefix}, …); only plain"
            " LoRAs can be joined"
        )
    return _fused([(piece_rows, _lora(name, t, file_alpha)) for piece_rows, name, t in pieces])


def _need(prefix: str, roles: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    for name in names:
        if name not in roles:
            raise LoraFileError(f"{prefix} has no {name} in the starting LoRA; the file is incomplete")
    return [roles[name].float() for name in names]


def _alpha(roles: Mapping[str, Tensor], default: float) -> float:
    return float(roles["alpha"].float().item()) if "alpha" in roles else default


def _lora(
    prefix: str, roles: Mapping[str, Tensor], file_alpha: float
) -> tuple[dict[str, Tensor], int, float]:
    a, b = _need(prefix, roles, "lora_A", "lora_B")
    rank = a.shape[0]
    tensors = {"lora_A": a, "lora_B": b}
    scale = next((roles[name] for name in _DORA if name in roles), None)
    if scale is not None:
        if scale.numel() != b.shape[0]:
            raise LoraFileError(
                f"{prefix}: its DoRA scale has {scale.numel()} values for {b.shape[0]} outputs; scales on the"
                " input side cannot be trained further"
            )
        tensors["dora_scale"] = scale
    return tensors, rank, _alpha(roles, file_alpha or float(rank))


def _fused(
    pieces: list[tuple[Rows, tuple[dict[str, Tensor], int, float]]],
) -> tuple[dict[str, Tensor], int, float]:
    """LoRAs on rows of a layer as one: A stacked, B block by block, each with its own scale folded into B."""
    total = sum(rank for _, (_, rank, _) in pieces)
    outputs = max(rows.start + rows.length for rows, _ in pieces)
    a = torch.cat([tensors["lora_A"] for _, (tensors, _, _) in pieces])
    b = torch.zeros(outputs, total)
    column = 0
    for rows, (tensors, rank, alpha) in pieces:
        b[rows.start : rows.start + rows.length, column : column + rank] = tensors["lora_B"] * (alpha / rank)
        column += rank
    return {"lora_A": a, "lora_B": b}, total, float(total)


def _loha(prefix: str, roles: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int, float]:
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    tensors: dict[str, Tensor] = dict(zip(names, _need(prefix, roles, *names), strict=True))
    rank = tensors["hada_w1_b"].shape[0]
    return tensors, rank, _alpha(roles, float(rank))


def _lokr(prefix: str, roles: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int, float]:
    """A factored w1 is multiplied out; a full w2 has no rank and no scale."""
    factored = "lokr_w2" not in roles
    if "lokr_w1" in roles:
        (w1,) = _need(prefix, roles, "lokr_w1")
        rank = 0
    else:
        left, right = _need(prefix, roles, "lokr_w1_a", "lokr_w1_b")
        w1, rank = left @ right, right.shape[0]
    if factored:
        w2_a, w2_b = _need(prefix, roles, "lokr_w2_a", "lokr_w2_b")
        rank = w2_b.shape[0]
        return {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b}, rank, _alpha(roles, float(rank))
    (w2,) = _need(prefix, roles, "lokr_w2")
    if rank:
        w1 = w1 * (_alpha(roles, float(rank)) / rank)
    full = max(w2.shape[:2])  # a rank from which on peft, too, keeps w2 whole
    return {"lokr_w1": w1, "lokr_w2": w2}, full, float(full)


def _oft(prefix: str, roles: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int, float]:
    (blocks,) = _need(prefix, roles, "oft_blocks")
    if blocks.ndim != 3 or _alpha(roles, 0.0) > 0:
        raise LoraFileError(f"{prefix}: only OFT without constraint can be trained further, not BOFT or COFT")
    return {"oft_blocks": blocks}, blocks.shape[1], 0.0
