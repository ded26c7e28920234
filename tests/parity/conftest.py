"""ComfyUI in the test process."""

from __future__ import annotations

from workbench.dev import host

host.private_comfyui()
