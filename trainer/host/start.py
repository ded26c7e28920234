"""ComfyUI for a script: found, told its options, before anything of it is imported."""

from __future__ import annotations

import sys
from pathlib import Path

from ..errors import ConfigError


def use_comfyui(folder: Path | str, *, cpu: bool = False, output: Path | str | None = None) -> None:
    """Makes `import comfy` work, once in a process and before the first such import.

    folder: ComfyUI's, the one with main.py. output: where results go, in place of ComfyUI's own folder.
    Raises ConfigError.
    """
    root = Path(folder).expanduser().resolve()
    if not (root / "main.py").exists() or not (root / "comfy").is_dir():
        raise ConfigError(f"{root} is no ComfyUI; give its folder, the one with main.py")
    if "comfy.cli_args" not in sys.modules:
        sys.path.insert(0, str(root))
    from comfy.cli_args import args

    if "comfy.model_management" in sys.modules and args.cpu != cpu:
        raise ConfigError("ComfyUI is running already; call use_comfyui before anything of it is imported")
    args.cpu = cpu
    import folder_paths

    if output is not None:
        folder_paths.set_output_directory(str(Path(output).expanduser().resolve()))
