"""ComfyUI's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..errors import ConfigError, LoraFileError
from ..runs.listing import Runs

RUNS = "in-graph-lora"
"""Below the output folder."""


def input_directory() -> Path:
    return Path(folder_paths.get_input_directory())


def output_directory() -> Path:
    return Path(folder_paths.get_output_directory())


def lora_directory() -> Path:
    """`output/loras`, which ComfyUI lists in LoraLoader."""
    return output_directory() / "loras"


def embedding_directory() -> Path:
    """`output/embeddings`; `offer_embeddings` lets prompts find what is there."""
    return output_directory() / "embeddings"


def offer_embeddings() -> None:
    """To be called before a text encoder is loaded, which is told the folders then."""
    folder_paths.add_model_folder_path("embeddings", str(embedding_directory()))


def runs_directory(name: str) -> Path:
    return output_directory() / RUNS / name


def graph_images_directory() -> Path:
    """Pictures that came from the graph: ComfyUI clears its temp folder while datasets still point there."""
    return output_directory() / RUNS / "graph-images"


def cache_directory() -> Path:
    """Latents and conditions of all runs."""
    return output_directory() / RUNS / "cache"


def class_images_directory() -> Path:
    """What the untouched model has drawn of a class, for prior preservation."""
    return output_directory() / RUNS / "class-images"


def captions_directory() -> Path:
    """What models have written about pictures, to be used again."""
    return output_directory() / RUNS / "captions"


def jobs_directory() -> Path:
    """Trainings that were written down and not begun."""
    return output_directory() / RUNS / "jobs"


def unpacked_directory() -> Path:
    """Archives of pictures, unpacked."""
    return output_directory() / RUNS / "unpacked"


def evidence_directory() -> Path:
    """Pictures that Evaluate LoRA has drawn, and reports on LoRAs that are of no run."""
    return output_directory() / RUNS / "evidence"


def reports() -> list[str]:
    """Folders below `output/in-graph-lora` with a report of Evaluate LoRA, the newest first. None is behind a
    link."""
    root = output_directory() / RUNS
    found = [*root.glob("evidence/*/report.json"), *root.glob("*/*/evidence/*/report.json")]
    own = [
        path for path in found if path.is_file() and path.resolve() == root.resolve() / path.relative_to(root)
    ]
    own.sort(key=lambda path: (path.stat().st_mtime_ns, path.as_posix()), reverse=True)
    return [path.parent.relative_to(root).as_posix() for path in own]


def report_path(name: str) -> Path:
    """The file behind a name of `reports`; any other name is refused."""
    if name not in reports():
        raise ConfigError(f"there is no report {name[:80]!r}; refresh the page and choose again")
    return output_directory() / RUNS / name / "report.json"


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


def runs() -> Runs:
    """All runs below the output folder."""
    return Runs(output_directory() / RUNS)


def run_path(run: str) -> Path:
    """The folder behind an id of the list; anything else is refused with StorageError."""
    return runs().folder(run).path


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
