"""What Evaluate LoRA reads from runs and LoRA files, and where it writes its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..adapters.lora_file import read_lora
from ..adapters.metadata import CONFIG
from ..adapters.shapes import check_file
from ..config import DataConfig, TrainConfig
from ..errors import ConfigError
from ..evidence.kept import tensors_digest
from ..evidence.page import page
from ..evidence.shots import KINDS, evenly
from ..files import not_written, sha256, write_image, write_json, write_text
from ..pictures.drawing import to_pil, to_tensor
from ..pictures.grid import labelled_grid
from ..runs.checkpoints import loras
from ..runs.folder import RunFolder
from . import paths
from .evidence import Evaluated, NamedLora

IN_THE_GRID = 3
"""Pictures of each kind of prompt."""


def chosen_loras(
    connected: Mapping[str, Tensor] | None, run: RunFolder | None, count: int, files: Sequence[str]
) -> list[NamedLora]:
    """Checkpoints of the run, then files, then what is connected; the same tensors once.

    Raises ConfigError for a run without checkpoints, LoraFileError for a file that is none.
    """
    found = []
    if run is not None:
        there = loras(run.checkpoints)
        if not there:
            raise ConfigError(f"run {run.path.name} has no checkpoint yet; choose another run")
        found += [
            NamedLora(
                name=run.path.parent.name,
                step=step,
                digest=sha256(there[step]),
                load=partial(_read, there[step]),
            )
            for step in evenly(list(there), count)
        ]
    for name in files:
        path = paths.lora_path(name)
        found.append(
            NamedLora(
                name=Path(name).with_suffix("").as_posix(), digest=sha256(path), load=partial(_read, path)
            )
        )
    if connected is not None:
        digest = tensors_digest(connected)
        known = {tensors_digest(lora.load()) for lora in found}
        if digest not in known:
            found.append(NamedLora(name="lora", digest=digest, load=lambda: connected))
    return list({lora.digest: lora for lora in found}.values())


def _read(path: Path) -> dict[str, Tensor]:
    tensors, _ = read_lora(path)
    check_file(tensors)
    return tensors


def trained_with(run: RunFolder | None, files: Sequence[str], held_out: int, edit_node: str) -> TrainConfig:
    """Settings of the training as far as they are known: of the run, or of the first file that has them; else
    what the node says."""
    found = _config(run.config()) if run is not None else None
    for name in files:
        found = found or _config(_written_in(paths.lora_path(name)))
    told = found or TrainConfig(data=DataConfig(edit_node=edit_node))
    if run is not None and found is not None and found.validation.held_out:
        return told
    return replace(told, validation=replace(told.validation, held_out=held_out))


def _config(content: Any) -> TrainConfig | None:
    """None where it is none, or of another version."""
    try:
        return TrainConfig.from_dict(content)
    except (ConfigError, TypeError, AttributeError, ValueError):
        return None


def _written_in(path: Path) -> Any:
    _, metadata = read_lora(path)
    try:
        return json.loads(metadata.get(CONFIG, "null"))
    except ValueError:
        return None


def sheet(result: Evaluated) -> Tensor:
    """[1, H, W, 3]: a column for each candidate, some rows for each kind of prompt."""
    report = result.report
    rows = []
    for kind, words in KINDS.items():
        own = [i for i, shot in enumerate(report.shots) if shot.kind == kind][:IN_THE_GRID]
        for i in own:
            shot = report.shots[i]
            images = [result.picture(column, i) for column in range(len(report.columns))]
            rows.append((f"{words} · seed {shot.seed} · {shot.prompt}", images))
    titles = [candidate.label for candidate, _ in report.columns]
    return to_tensor(labelled_grid(titles, rows))


def write(result: Evaluated, run: RunFolder | None) -> tuple[str, Tensor, Path]:
    """report.json, report.html and more in a folder of their own.

    Returns the Markdown, which names the folder, the grid of `sheet`, and where that lies as a picture.
    """
    parent = run.path / "evidence" if run is not None else paths.evidence_directory()
    folder = _new_folder(parent)
    report = result.report
    write_json(folder / "report.json", report.to_dict())
    name = result.best.name if run is None else run.path.parent.name
    write_text(folder / "report.html", page(report, result.picture, name, result.trained))
    where = folder.relative_to(paths.output_directory()).as_posix()
    text = f"{report.markdown()}\n\nReport with pictures: {where}/report.html"
    write_text(folder / "report.md", text + "\n")
    grid = sheet(result)
    write_image(folder / "grid.png", to_pil(grid))
    return text, grid, folder / "grid.png"


def _new_folder(parent: Path) -> Path:
    stamp, n = datetime.now().strftime("%Y%m%d-%H%M%S"), 1
    while True:
        path = parent / (stamp if n == 1 else f"{stamp}-{n}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            n += 1
        except OSError as error:
            raise not_written(path, error) from error
        else:
            return path
