"""ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..errors import LoraFileError, StorageError


def input_directory() -> Path:
    return Path(folder_paths.get_input_directory())


def output_directory() -> Path:
    return Path(folder_paths.get_output_directory())


def lora_directory() -> Path:
    """`output/loras`, which ComfyUI lists in LoraLoader."""
    return output_directory() / "loras"


def runs_directory(name: str) -> Path:
    return output_directory() / "in-graph-lora" / name


def graph_images_directory() -> Path:
    """Pictures that came from the graph: ComfyUI clears its temp folder while datasets still point there."""
    return output_directory() / "in-graph-lora" / "graph-images"


def evidence_directory() -> Path:
    """Pictures that Evaluate LoRA has drawn, and reports on LoRAs that are of no run."""
    return output_directory() / "in-graph-lora" / "evidence"


def comfyui_version() -> str:
    """Empty where ComfyUI does not say."""
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return __version__


def output_image(path: Path) -> dict[str, str]:
    """A picture below the output folder, as the page asks for it."""
    folder = path.parent.relative_to(output_directory()).as_posix()
    return {"filename": path.name, "subfolder": folder, "type": "output"}


def run_names() -> list[str]:
    """`<name>/<run>` of every run below the output folder, newest first."""
    runs = output_directory() / "in-graph-lora"
    found = sorted(runs.glob("*/*/run.json"), key=lambda p: p.stat().st_mtime_ns, reverse=True)
    return [p.parent.relative_to(runs).as_posix() for p in found]


def run_path(name: str) -> Path:
    """The folder behind a name of the list; any other name is refused, also one with path parts."""
    if name not in run_names():
        raise StorageError(f"there is no run {name!r}; refresh the list of runs")
    return output_directory() / "in-graph-lora" / name


def lora_names() -> list[str]:
    """All LoRA files, as LoraLoader lists them."""
    return folder_paths.get_filename_list("loras")


def lora_path(name: str) -> Path:
    """The file behind a name of the list; any other name is refused, also one with path parts."""
    if name not in lora_names():
        raise LoraFileError(f"LoRA file {name!r} is not in ComfyUI's list; refresh the page and choose again")
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise LoraFileError(
            f"LoRA file {name!r} is no file: a folder, a pipe, or a link to nothing; choose another one"
        )
    return Path(path)
