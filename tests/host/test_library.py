"""The page about the library: its code runs as it stands, but for the names of files."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.host.start import use_comfyui

from .loaded import write_pictures

pytestmark = pytest.mark.slow


def test_the_recipes_of_the_page_run_one_after_the_other(
    repo_root, comfyui, tiny_checkpoint, output, tmp_path
) -> None:
    page = (repo_root / "docs" / "library.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    pictures = write_pictures(tmp_path / "pictures", [(64, 64)] * 2)
    names = {
        '"~/ComfyUI"': repr(str(comfyui)),
        '"results"': repr(str(output)),
        '"sd15.safetensors"': repr(str(tiny_checkpoint)),
        '"pictures"': repr(str(pictures)),
    }
    for name, own in names.items():
        assert name in code
        code = code.replace(name, own)
    script = tmp_path / "library.py"
    script.write_text(code, encoding="utf-8")
    found = runpy.run_path(str(script))
    assert found["result"].stopped
    assert found["result"].path.parent == output / "loras"
    assert len(found["losses"]) == 7
    assert found["more"].losses == found["losses"][:5], "it went on from step 3"
    assert found["mine"].losses == found["losses"][5:], "from its own beginning"
    assert found["mine"].losses != found["losses"][:2]
    assert "charbonnier " in (found["mine"].run / "config.json").read_text(encoding="utf-8")


def test_what_is_no_comfyui_is_refused_and_so_is_another_device_later(comfyui, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no ComfyUI"):
        use_comfyui(tmp_path)
    with pytest.raises(ConfigError, match="is running already"):
        use_comfyui(comfyui, cpu=False)
