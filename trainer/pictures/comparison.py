"""With and without the LoRA, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from .drawing import to_pil, to_tensor
from .grid import labelled_grid


def parse_strengths(text: str) -> list[float]:
    """ "0, 0.5, 1" → [0.0, 0.5, 1.0]. The baseline (0) is put first when it is missing."""
    try:
        strengths = [
            float(part) for part in text.replace(";", ",").replace("，", ",").split(",") if part.strip()
        ]
    except ValueError as error:
        raise ConfigError(
            f"strengths is {text!r}; write numbers with commas between them, like 0, 1"
        ) from error
    if not strengths or not all(map(math.isfinite, strengths)):
        raise ConfigError(f"strengths is {text!r}; write at least one finite number, like 0, 1")
    return list(dict.fromkeys([0.0, *strengths]))


@dataclass(frozen=True, kw_only=True)
class Row:
    """The same prompt and seed at each strength."""

    prompt: str
    seed: int
    images: Sequence[Tensor]
    """[1, H, W, 3] in 0..1 for each strength."""


def column_title(strength: float) -> str:
    return "without LoRA" if strength == 0 else f"LoRA × {strength:g}"


def comparison_grid(rows: Sequence[Row], strengths: Sequence[float]) -> Tensor:
    """[1, H, W, 3]: a row for each prompt and seed, a labelled column for each strength."""
    titles = [column_title(s) for s in strengths]
    captioned = [(f"seed {row.seed} · {row.prompt}", [to_pil(i) for i in row.images]) for row in rows]
    return to_tensor(labelled_grid(titles, captioned))


def report(rows: Sequence[Row], strengths: Sequence[float], settings: str) -> str:
    """Markdown: how far each strength moves each picture away from the baseline (mean |Δ|, 0 to 255)."""
    lines = [
        "## Comparison with the untouched model",
        "",
        f"{len(rows)} pictures a column, same prompts and seeds. {settings}",
        "",
        "| prompt | seed | " + " | ".join(column_title(s) for s in strengths) + " |",
        "|---|---|" + "---|" * len(strengths),
    ]
    for row in rows:
        base = row.images[0]
        moved = [f"{255 * (image - base).abs().mean().item():.2f}" for image in row.images]
        lines.append(f"| {row.prompt.replace('|', '/')} | {row.seed} | " + " | ".join(moved) + " |")
    lines += [
        "",
        "Each number is the mean change of a pixel against the first column, of 255."
        " 0.00 in the column of a LoRA means that it does nothing for this prompt.",
    ]
    return "\n".join(lines)
