"""Pictures from the graph outlive ComfyUI's temp folder, on a real server."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.client import Client, Prompt, Result

pytestmark = pytest.mark.slow


@pytest.fixture
def picture(server) -> str:
    path: Path = server.base / "input" / "from-the-graph.png"
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


def graph(picture: str, steps: int) -> Prompt:
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "2": {"class_type": "LoadImage", "inputs": {"image": picture}},
        "3": {
            "class_type": "LoadDataset",
            "inputs": {
                "folder": "", "resolution": 64, "repeats": 1, "images": ["2", 0], "captions": "a toy",
            },
        },
        "4": {
            "class_type": "TrainLoRA",
            "inputs": {
                "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["3", 0], "steps": steps,
                "learning_rate": 1e-3, "rank": 2, "alpha": 0.0, "batch_size": 1, "train_seed": 0,
                "name": "from_the_graph",
            },
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 1]}},
    }  # fmt: skip


def cached(done: Result) -> set[str]:
    return {node for event in done.of_type("execution_cached") for node in event["nodes"]}


def trained(client: Client, picture: str, steps: int) -> Result:
    done = client.run(graph(picture, steps))
    assert done.status == "success", done.error
    assert done.of_type("in_graph_lora.progress")[-1]["step"] == steps
    return done


def test_the_graph_trains_again_after_temp_was_cleared_and_after_the_pictures_were_deleted(
    server, client, picture
):
    trained(client, picture, 1)
    shutil.rmtree(server.base / "temp")  # as ComfyUI does at each start
    assert {"2", "3"} <= cached(trained(client, picture, 2))
    shutil.rmtree(server.base / "output" / "in-graph-lora" / "graph-images")
    assert "3" not in cached(trained(client, picture, 3)), "they are made again"
    assert {"2", "3"} <= cached(trained(client, picture, 4))
