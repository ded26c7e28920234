"""GGUF files on a real server, the pack ComfyUI-GGUF beside ours. Wants GGUF_PACK and the package gguf."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from workbench.client import Client, Prompt
from workbench.dev import base
from workbench.dev import server as server_tools
from workbench.dev.steps import LOGS

from ..gguf_files import SCALES, folder, packed_at_random

KINDS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *SCALES)
NET = "model.diffusion_model."


def write_gguf(path: Path, weights: dict[str, np.ndarray], kind: str) -> None:
    """The matrices of the blocks in this format; K formats go in rows of 256, which the miniature has."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), arch="sd3")
    for i, (name, weight) in enumerate(weights.items()):
        weight = np.ascontiguousarray(weight.astype(np.float32))
        if weight.ndim != 2 or "blocks." not in name:
            writer.add_tensor(name, weight, raw_dtype=gguf.GGMLQuantizationType.F32)
        elif kind in SCALES:
            writer.add_tensor(name, packed_at_random(weight.shape, kind, i), raw_dtype=quantisation)
        else:
            writer.add_tensor(name, gguf.quants.quantize(weight, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_server(comfyui: Path, miniature_checkpoint: Path, tmp_path_factory) -> Iterator[server_tools.Server]:
    place = folder()
    pytest.importorskip("gguf")
    home = base.prepare(tmp_path_factory.mktemp("gguf-base"))
    (home / "custom_nodes" / "ComfyUI-GGUF").symlink_to(place, target_is_directory=True)
    # The package may be here by PYTHONPATH alone, which the server is not given.
    spec = importlib.util.find_spec("gguf")
    assert spec is not None
    assert spec.origin is not None
    (home / "custom_nodes" / "path-of-gguf").mkdir()
    script = f"import sys; sys.path.append({str(Path(spec.origin).parents[1])!r})\n"
    (home / "custom_nodes" / "path-of-gguf" / "prestartup_script.py").write_text(script)
    (home / "custom_nodes" / "path-of-gguf" / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (home / "models" / "diffusion_models").mkdir(parents=True)
    (home / "models" / "checkpoints" / "miniature.safetensors").symlink_to(miniature_checkpoint)
    weights = load_file(miniature_checkpoint)
    own = {k.removeprefix(NET): v for k, v in weights.items() if k.startswith(NET)}
    for kind in KINDS:
        write_gguf(home / "models" / "diffusion_models" / f"{kind}.gguf", own, kind)
    pictures = home / "input" / "pictures"
    pictures.mkdir()
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text("a red toy")
    log = LOGS / f"test-gguf-server-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.log"
    with server_tools.start(Path(sys.executable), comfyui, home, log=log) as running:
        yield running


def graph(kind: str) -> Prompt:
    model = ["2", 0]
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "miniature.safetensors"}},
        "2": {"class_type": "UnetLoaderGGUF", "inputs": {"unet_name": f"{kind}.gguf"}},
        "3": {"class_type": "LoadDataset", "inputs": {"folder": "pictures", "resolution": 64, "repeats": 1}},
        "4": {
            "class_type": "TrainLoRA",
            "inputs": {
                "model": model, "clip": ["1", 1], "vae": ["1", 2], "dataset": ["3", 0], "steps": 2,
                "learning_rate": 1e-2, "rank": 4, "alpha": 0.0, "batch_size": 1, "train_seed": 0,
                "name": kind,
            },
        },
        "5": {
            "class_type": "ApplyLoRA",
            "inputs": {"model": model, "strength_model": 1.0, "strength_clip": 1.0, "lora": ["4", 0]},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red toy"}},
        "7": {
            "class_type": "EmptySD3LatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        **{
            f"{i}": {
                "class_type": "KSampler",
                "inputs": {
                    "model": of, "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["7", 0],
                    "seed": 1, "denoise": 1.0, "steps": 2, "cfg": 1.0, "sampler_name": "euler",
                    "scheduler": "simple",
                },
            }
            for i, of in ((8, ["5", 0]), (9, model))
        },
        **{
            f"{i + 2}": {"class_type": "VAEDecode", "inputs": {"samples": [f"{i}", 0], "vae": ["1", 2]}}
            for i in (8, 9)
        },
        **{
            f"{i + 2}": {
                "class_type": "SaveImage",
                "inputs": {"images": [f"{i}", 0], "filename_prefix": f"{kind}-{i}"},
            }
            for i in (10, 11)
        },
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_is_trained_applied_and_sampled(gguf_server: server_tools.Server, kind: str) -> None:
    with Client(gguf_server.url) as client:
        result = client.run(graph(kind))
        assert result.status == "success", result.error
        pictures = [client.image(result.outputs[node]["images"][0]) for node in ("12", "13")]
        other = graph(kind)
        other["4"]["inputs"] |= {"train_seed": 1, "memory": ["0", 0]}
        other["0"] = {
            "class_type": "TrainMemory",
            "inputs": {
                "checkpointing": 1, "precision": "auto", "compile": False, "streamed": 1.0, "fit": "manual",
                "base_precision": "as loaded", "offload_activations": True,
            },
        }  # fmt: skip
        again = client.run(other)
        assert again.status == "success", again.error
        anew = client.image(again.outputs["12"]["images"][0])
    assert len({*pictures, anew}) == 3, "each LoRA does something of its own"
    (run,) = result.outputs["4"]["run"]
    assert Path(run["lora_path"]).exists()
