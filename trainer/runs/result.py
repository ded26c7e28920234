"""What a run gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..adapters.lora_file import read_lora
from .folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Result:
    lora: dict[str, Tensor]
    """The file's tensors, on the CPU; with an embedding also its vectors."""
    path: Path
    """The LoRA in its final place; of a run that trains an embedding alone, the embedding."""
    embedding: Path | None
    """The embedding in its final place."""
    losses: list[float]
    """Of each step."""
    run: Path
    loss_curve: Path
    previews: Path | None
    """The overview of all preview pictures."""
    stopped: bool
    """The run was told to stop before its end, and can be gone on with."""

    @classmethod
    def of(
        cls,
        folder: RunFolder,
        source: Path,
        path: Path,
        embedding: Path | None,
        losses: list[float],
        *,
        stopped: bool = False,
    ) -> Result:
        """source: the file with all tensors, a checkpoint's or its copy."""
        return cls(
            lora=read_lora(source)[0],
            path=path,
            embedding=embedding,
            losses=losses,
            run=folder.path,
            loss_curve=folder.loss_curve,
            previews=folder.overview,
            stopped=stopped,
        )
