"""ComfyUI inside the test process, on the CPU, with all its folders in a temporary base directory.

It has to happen before a test module imports anything of ComfyUI's, and so when this file is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workbench.dev import host

if TYPE_CHECKING:
    from .loaded import Loaded

HOST_BASE = host.private_comfyui()


@pytest.fixture(scope="session")
def host_base() -> Path:
    """The base directory that folder_paths of this process points at."""
    return HOST_BASE


@pytest.fixture(scope="session")
def _loaded(tiny_checkpoint: Path) -> Loaded:
    from .loaded import load

    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def loaded(_loaded: Loaded) -> Loaded:
    """Model, CLIP and VAE of the generated checkpoint, without a LoRA that sampling has left in them."""
    import comfy.model_management as mm
    import torch

    with torch.inference_mode():
        mm.load_models_gpu([_loaded.model, _loaded.clip.patcher])
    return _loaded


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder, empty; the LoRAs in it are listed."""
    import folder_paths

    from in_graph_lora.trainer.host import paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    folder_paths.add_model_folder_path("loras", str(paths.lora_directory()))
    paths.lora_directory().mkdir(parents=True)
    return tmp_path
