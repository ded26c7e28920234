"""ComfyUI in the test process, and the modules of this folder under the package name `parity`."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools import base, comfyui, host

_found = os.environ.get("IGL_COMFYUI") or comfyui.find()
if _found is None:
    raise pytest.UsageError("ComfyUI is not here yet: start the tests with `python dev.py test`")

if "folder_paths" not in sys.modules:  # the host tests, in the same run, may have done it
    _base = Path(tempfile.mkdtemp(prefix="in-graph-lora-parity-")).resolve()
    atexit.register(shutil.rmtree, _base, ignore_errors=True)
    base.prepare(_base)
    host.import_comfyui(Path(_found), _base)

_package = types.ModuleType("parity")
_package.__path__ = [str(Path(__file__).parent)]
sys.modules["parity"] = _package


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Sums in one order: the differences that are measured are the networks', not the scheduler's."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
