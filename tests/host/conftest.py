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
def loaded(tiny_checkpoint: Path) -> Loaded:
    """Model, CLIP and VAE of the generated checkpoint. Every test leaves them as it found them."""
    from .loaded import load

    return load(tiny_checkpoint)
