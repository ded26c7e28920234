"""A server that is killed in the middle of a training, and a name that two trainings share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors import safe_open

from workbench.client import Client, Prompt, Result
from workbench.dev import base
from workbench.dev import server as servers

pytestmark = pytest.mark.slow

STEPS = 16
PREVIEW = {
    "prompts": "aawxbc figurine", "every": 6, "held_out": 1, "measure_every": 3, "keep_best": False,
    "patience": 0, "negative": "", "seed": 1, "sampling_steps": 1, "cfg": 1.0, "sampler_name": "euler",
    "scheduler": "normal", "width": 0, "height": 0, "checkpoint_every": 2, "keep_states": 2,
}  # fmt: skip


def write_pictures(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.radial_gradient("L").rotate(i * 30).resize((64, 64)).convert("RGB").save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"aawxbc figurine {i}")
    return folder.name


def graph(folder: str, **trainings: dict[str, Any]) -> Prompt:
    """A TrainLoRA node for each of `trainings`, by its id, on one model and dataset."""
    nodes: Prompt = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "2": {"class_type": "LoadDataset", "inputs": {"folder": folder, "resolution": 64, "repeats": 1}},
        "3": {"class_type": "TrainPreview", "inputs": PREVIEW},
    }
    for node, options in trainings.items():
        inputs = {
            "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "dataset": ["2", 0], "steps": 3,
            "learning_rate": 1e-3, "rank": 4, "alpha": 0.0, "batch_size": 2, "train_seed": 0, **options,
        }  # fmt: skip
        nodes[node] = {"class_type": "TrainLoRA", "inputs": inputs}
    return nodes


def shown(done: Result, node: str) -> dict[str, Any]:
    assert done.status == "success", done.error
    (run,) = done.outputs[node]["run"]
    return run


def rank_of(lora: str) -> int:
    with safe_open(lora, framework="pt") as f:
        assert all(f.get_tensor(key) is not None for key in f.keys())  # noqa: SIM118 - not a dict
        return int(f.metadata()["ss_network_dim"])


def test_after_the_server_was_killed_the_same_graph_goes_on(comfyui, tiny_checkpoint, tmp_path):
    folder = base.prepare(tmp_path / "base")
    (folder / "models" / "checkpoints" / tiny_checkpoint.name).symlink_to(tiny_checkpoint)
    prompt = graph(write_pictures(folder / "input" / "pictures"), t={"name": "killed", "steps": STEPS})
    prompt["t"]["inputs"]["preview"] = ["3", 0]

    def start() -> servers.Server:
        return servers.start(Path(sys.executable), comfyui, folder, log=tmp_path / "server.log")

    with start() as running, Client(running.url) as client:

        def kill(event):
            if event.type == "in_graph_lora.progress" and event.data["step"] >= 5:
                running.process.kill()

        with pytest.raises(ConnectionError):
            client.wait(client.queue(prompt), timeout=180, on_event=kill)
    (checkpoints,) = folder.rglob("output/in-graph-lora/killed/*/checkpoints")
    newest = max(int(path.stem.removeprefix("step_")) for path in checkpoints.glob("step_*.json"))
    assert 4 <= newest < STEPS
    with start() as running, Client(running.url) as client:
        done = client.run(prompt)
    steps = [point[0] for e in done.of_type("in_graph_lora.progress") for point in e.get("points", [])]
    assert steps[0] == newest + 1
    assert steps[-1] == STEPS
    run = shown(done, "t")
    assert f"going on from step {newest}" in " ".join(run["notices"])
    assert Path(run["run_dir"]) == checkpoints.parent
    assert rank_of(run["lora_path"]) == 4
    assert not list((folder / "output").rglob("*.part"))


def test_two_trainings_of_one_name_overwrite_nothing(server, client):
    folder = write_pictures(server.base / "input" / "two-nodes")
    prompt = graph(
        folder,
        a={"name": "shared", "rank": 4},
        b={"name": "shared", "rank": 2},
        same={"name": "shared", "rank": 4},
    )
    done = client.run(prompt)
    a, b, same = (shown(done, node) for node in ("a", "b", "same"))
    assert (rank_of(a["lora_path"]), rank_of(b["lora_path"])) == (4, 2)
    assert a["run_dir"] != b["run_dir"]
    assert (same["lora_path"], same["run_dir"]) == (a["lora_path"], a["run_dir"])
    files = {Path(run["lora_path"]): Path(run["lora_path"]).read_bytes() for run in (a, b)}
    assert {path.name for path in files} == {"shared.safetensors", "shared_2.safetensors"}
    # Another input makes ComfyUI run the nodes again; what it asks for changes no weights.
    prompt["3"]["inputs"] = {**PREVIEW, "prompts": "", "held_out": 0}
    for node in ("a", "b"):
        prompt[node]["inputs"]["preview"] = ["3", 0]
    again = client.run(prompt)
    assert [shown(again, node)["lora_path"] for node in ("a", "b")] == [a["lora_path"], b["lora_path"]]
    points = [e["points"] for e in again.of_type("in_graph_lora.progress") if "points" in e]
    assert not points, "nothing is trained again"
    assert "finished already" in " ".join(shown(again, "b")["notices"])
    assert {path: path.read_bytes() for path in (server.base / "output" / "loras").glob("shared*")} == files
