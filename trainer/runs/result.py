"""What a run gives."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from ..adapters.lora_file import read_lora
from ..processes import Processes
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


_PATHS = ("path", "embedding", "run", "loss_curve", "previews")


def shared_result(processes: Processes, result: Result | None) -> Result:
    """The main process's, in all of them; the others give None. Its paths are those of its machine."""
    if processes.size == 1:
        assert result is not None
        return result
    told = processes.told(lambda: _said(result))
    lora = load(processes.from_main(lambda: save(result.lora) if result else b""))
    paths = {name: Path(told[name]) if told[name] is not None else None for name in _PATHS}
    return Result(**{**told, **paths}, lora=lora)


def _said(result: Result | None) -> dict[str, Any]:
    """All but the tensors, as JSON."""
    if result is None:
        return {}
    values = {f.name: getattr(result, f.name) for f in fields(result) if f.name != "lora"}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
