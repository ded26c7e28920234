"""ComfyUI inside the test process, on the CPU, with all its folders in a temporary base directory.

It has to happen before a test module imports anything of ComfyUI's, and so when this file is imported.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from devtools import base, comfyui, host

_found = os.environ.get("IGL_COMFYUI") or comfyui.find()
if _found is None:
    raise pytest.UsageError("ComfyUI is not here yet: start the tests with `python dev.py test`")

HOST_BASE = Path(tempfile.mkdtemp(prefix="in-graph-lora-host-")).resolve()
atexit.register(shutil.rmtree, HOST_BASE, ignore_errors=True)
base.prepare(HOST_BASE)
host.import_comfyui(Path(_found), HOST_BASE)


@pytest.fixture(scope="session")
def host_base() -> Path:
    """The base directory that folder_paths of this process points at."""
    return HOST_BASE
