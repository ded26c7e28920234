"""ComfyUI in the test process, and the modules of this folder under the package name `parity`."""

from __future__ import annotations

import sys
import types
from pathlib import Path

from workbench.dev import host

host.private_comfyui()

_package = types.ModuleType("parity")
_package.__path__ = [str(Path(__file__).parent)]
sys.modules["parity"] = _package
