"""What ComfyUI's start has to wait for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from workbench.dev.host import private_comfyui, register_pack
private_comfyui()
register_pack()
import in_graph_lora.nodes
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_nodes_are_listed_before_the_libraries_of_training_are_imported(repo_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=repo_root, capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.splitlines()[-1].split())
    assert "in_graph_lora" in imported
    assert not imported & {"peft", "diffusers", "accelerate"}
