"""Captions in a real server: a model in a folder looks, files are written, the same again asks nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.client import Client, Prompt

from ..tiny_captioners import blip

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(server) -> Path:
    folder: Path = server.base / "input" / "to-caption"
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 4, 4, 3), dtype=np.uint8)
    for i, p in enumerate(pixels):
        Image.fromarray(p).resize((64, 64)).save(folder / f"red_fox_{i}.png")
    (folder / "red_fox_0.txt").write_text("by hand")
    blip(server.base / "models" / "LLM" / "tiny-blip")
    return folder


def graph(prefix: str) -> Prompt:
    return {
        "1": {
            "class_type": "LoadDataset", "inputs": {"folder": "to-caption", "resolution": 64, "repeats": 1}
        },
        "2": {
            "class_type": "CaptionImages",
            "inputs": {
                "dataset": ["1", 0], "method": "model_folder", "model_folder": "tiny-blip", "max_length": 4,
                "trigger": "ohwx", "class_word": "", "template": "{trigger}", "on_existing": "keep",
            },
        },
        "3": {
            "class_type": "EditCaptions",
            "inputs": {
                "dataset": ["2", 0], "prefix": prefix, "suffix": "", "replacements": "by hand => by Hand",
                "class_word": "", "trigger": "", "min_count": 1, "write_sidecars": "overwrite",
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "5": {"class_type": "CheckTrigger", "inputs": {"clip": ["4", 1], "trigger": "ohwx"}},
    }  # fmt: skip


def test_captions_are_written_shown_and_kept(server, client: Client, folder: Path):
    done = client.run(graph("a photo of"))
    assert done.status == "success", done.error
    shown = done.outputs["2"]["text"]
    assert shown[0] == "red_fox_0.png: by hand"
    assert all(line.startswith(f"red_fox_{i}.png: ohwx, ") for i, line in enumerate(shown[1:], 1))
    assert done.outputs["3"]["text"][:2] == [
        "3 of 3 captions changed",
        "3 caption files written, 0 were so already",
    ]
    texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
    assert texts[0] == "a photo of by Hand\n"
    assert all(text.startswith("a photo of ohwx, ") for text in texts[1:])
    assert [path.read_text() for path in folder.glob("*.bak")] == ["by hand"]
    assert "**ohwx** is rare" in done.outputs["5"]["text"][0]
    pictures = [event for event in done.of_type("binary") if len(event["bytes"]) > 200]
    assert len(pictures) >= 2, "each picture is shown with its caption"
    again = client.run(graph("a photo of"))
    assert again.status == "success", again.error
    assert [path.read_text() for path in sorted(folder.glob("*.txt"))] == texts
    assert len(list((server.base / "output" / "in-graph-lora" / "captions").rglob("*.json"))) == 2
