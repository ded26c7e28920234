"""The whole graph on a real server, over HTTP and websocket."""

from __future__ import annotations

import io
import itertools
import json
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from workbench.client import Client, Prompt, PromptRejected


def steps_of(done) -> list[int]:
    """The steps that were reported."""
    return [point[0] for e in done.of_type("in_graph_lora.progress") for point in e.get("points", [])]


@pytest.fixture(scope="module")
def pictures(server) -> str:
    """A folder in the server's input folder."""
    return make_pictures(server.base / "input" / "live-pictures").name


def make_pictures(folder: Path) -> Path:
    """Five pictures of three shapes, and two broken files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i, size in enumerate([(64, 64), (90, 60), (64, 64), (60, 110), (64, 64)]):
        pixels = random.integers(0, 255, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i}.jpg")
    (folder / "0.txt").write_text("a red toy")
    (folder / "empty.png").write_bytes(b"")
    (folder / "broken.jpg").write_bytes((folder / "1.jpg").read_bytes()[:200])
    return folder


def graph(folder: str, **train: object) -> Prompt:
    """Our five nodes among stock ones."""
    options = {
        "steps": 3, "learning_rate": 1e-3, "rank": 4, "alpha": 0.0, "batch_size": 2, "train_seed": 0,
        "name": "live", **train,
    }  # fmt: skip
    sampling = {"steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    model, clip, vae = ["1", 0], ["1", 1], ["1", 2]
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-sd15.safetensors"}},
        "2": {"class_type": "LoadDataset", "inputs": {"folder": folder, "resolution": 64, "repeats": 1}},
        "3": {
            "class_type": "CaptionImages",
            "inputs": {
                "dataset": ["2", 0], "method": "template", "trigger": "aawxbc", "class_word": "figurine",
                "template": "a photo of {trigger} {class}", "on_existing": "keep",
            },
        },
        "4": {
            "class_type": "TrainLoRA",
            "inputs": {"model": model, "clip": clip, "vae": vae, "dataset": ["3", 0], **options},
        },
        "5": {
            "class_type": "ApplyLoRA",
            "inputs": {"model": model, "strength_model": 1.0, "strength_clip": 1.0, "lora": ["4", 0]},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "aawxbc figurine"}},
        "7": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "8": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["5", 0], "positive": ["6", 0], "negative": ["6", 0], "latent_image": ["7", 0],
                "seed": 1, "denoise": 1.0, **sampling,
            },
        },
        "9": {"class_type": "VAEDecode", "inputs": {"samples": ["8", 0], "vae": vae}},
        "10": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "live"}},
        "11": {
            "class_type": "CompareBaseline",
            "inputs": {
                "model": model, "clip": clip, "vae": vae, "lora": ["4", 0], "prompts": "aawxbc figurine",
                "negative": "", "seed": 1, "images_per_prompt": 1, "width": 64, "height": 64,
                "strengths": "0, 1", **sampling,
            },
        },
        "12": {"class_type": "SaveImage", "inputs": {"images": ["11", 0], "filename_prefix": "grid"}},
        "13": {"class_type": "LossGraphNode", "inputs": {"loss": ["4", 2], "filename_prefix": "loss"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def result(server, pictures):
    with Client(server.url) as client:
        done = client.run(graph(pictures))
        assert done.status == "success", done.error
        yield done


def test_the_five_nodes_run_in_one_graph_with_stock_nodes(result, server, client):
    (run,) = result.outputs["4"]["run"]
    lora = Path(run["lora_path"])
    assert lora.parent == server.base / "output" / "loras"
    with safe_open(lora, framework="pt") as f:
        assert len(list(f.keys())) % 3 == 0
        assert f.metadata()["ss_network_dim"] == "4"
    assert Path(run["loss_curve"]).exists()
    for node in ("10", "12", "13"):
        (saved, *_) = result.outputs[node]["images"]
        assert Image.open(io.BytesIO(client.image(saved))).size[0] >= 64


def test_skipped_pictures_are_named_on_the_node(result):
    text = " ".join(result.outputs["2"]["text"])
    assert "empty.png" in text
    assert "broken.jpg" in text


def test_the_template_fills_only_missing_captions(result):
    captions = " ".join(result.outputs["3"]["text"])
    assert "a red toy" in captions
    assert "a photo of aawxbc figurine" in captions


def test_progress_reaches_the_page_step_by_step(result):
    assert steps_of(result) == [1, 2, 3]
    told = result.of_type("in_graph_lora.progress")
    fractions = [e["fraction"] for e in told]
    assert fractions == sorted(fractions)
    assert (told[-1]["state"], fractions[-1]) == ("finished", 1)
    assert {"trying out one step", "encoding pictures", "steps"} & {e["phase"] for e in told}
    assert 0 < told[-1]["memory"] <= told[-1]["memory_peak"]
    bar = [e["value"] / e["max"] for e in result.of_type("progress") if e["node"] == "4"]
    assert bar == sorted(bar)
    assert bar[-1] <= 1


def test_the_new_lora_is_in_the_stock_loaders_list(result, client):
    (run,) = result.outputs["4"]["run"]
    listed = client.object_info("LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    options = listed if isinstance(listed, list) else client.object_info("LoraLoader")
    assert Path(run["lora_path"]).name in json.dumps(options)


def test_an_interrupt_stops_training_keeps_the_work_and_the_next_prompt_runs(server, client, pictures):
    prompt_id = client.queue(graph(pictures, steps=5000, name="stopped"))
    stopped = []

    def stop(event):
        if event.type == "in_graph_lora.progress" and event.data.get("points") and not stopped:
            stopped.append(event)
            client.interrupt()

    done = client.wait(prompt_id, timeout=120, on_event=stop)
    assert done.status == "interrupted"
    assert list((server.base / "output" / "in-graph-lora" / "stopped").rglob("step_??????.safetensors"))
    assert not (server.base / "output" / "loras" / "stopped.safetensors").exists()
    again = client.run(graph(pictures, steps=2, name="after-stop"))
    assert again.status == "success", again.error


def test_stop_and_keep_ends_the_training_and_the_nodes_behind_it_run(server, client, pictures):
    prompt_id = client.queue(graph(pictures, steps=5000, name="kept"))
    asked = []

    def stop(event):
        if event.type == "in_graph_lora.progress" and event.data["step"] >= 2 and not asked:
            asked.append(client.post("/in_graph_lora/stop/4", {}))

    done = client.wait(prompt_id, timeout=120, on_event=stop)
    assert done.status == "success", done.error
    assert "10" in done.outputs
    (run,) = done.outputs["4"]["run"]
    assert "run again to go on" in " ".join(run["notices"])
    assert Path(run["lora_path"]).exists()


def test_the_same_graph_goes_on_after_a_stop_and_is_kept_when_it_has_ended(server, client, pictures):
    """Nothing empties the executor's cache, which would answer with the stopped run."""
    nodes = graph(pictures, steps=12, name="goes-on")
    asked = []

    def stop(event):
        if event.type == "in_graph_lora.progress" and event.data["step"] >= 2 and not asked:
            asked.append(client.post("/in_graph_lora/stop/4", {}))

    stopped = client.wait(client.queue(nodes), timeout=120, on_event=stop)
    (run,) = stopped.outputs["4"]["run"]
    (said,) = [n for n in run["notices"] if n.startswith("stopped at step")]
    again = client.run(nodes)
    steps = steps_of(again)
    assert steps[-1] == 12
    assert f"stopped at step {steps[0] - 1};" in said
    (ended,) = again.outputs["4"]["run"]
    assert ended["run_dir"] == run["run_dir"]
    third = client.run(nodes)
    assert third.status == "success"
    assert not third.of_type("in_graph_lora.progress")
    cached = [node for e in third.of_type("execution_cached") for node in e["nodes"]]
    assert "4" in cached, "a run that has ended is not run again"


def test_a_pause_ends_the_queue_item_and_other_prompts_run_with_the_lora_so_far(client, pictures):
    nodes = graph(pictures, steps=5000, name="pauses")
    asked = []

    def pause(event):
        if event.type == "in_graph_lora.progress" and event.data.get("points") and not asked:
            asked.append(client.post(f"/in_graph_lora/pause/4?prompt={event.data['prompt_id']}", {}))

    paused = client.wait(client.queue(nodes), timeout=120, on_event=pause)
    assert paused.status == "success", paused.error
    told = paused.of_type("in_graph_lora.progress")[-1]
    assert told["state"] == "paused"
    assert not {"10", "12"} & paused.outputs.keys(), "the nodes behind wait"
    nodes["6"]["inputs"]["text"] = "another prompt"
    tried = client.run(nodes)
    assert "10" in tried.outputs
    assert not steps_of(tried), "it is paused"
    assert client.post(f"/in_graph_lora/continue?{urlencode({'run': told['run']})}", {}) == {"paused": True}
    asked.clear()
    went_on = client.wait(client.queue(nodes), timeout=120, on_event=pause)
    assert steps_of(went_on)[0] == told["step"] + 1


def test_the_page_gets_at_most_five_messages_a_second(result):
    times = [e["elapsed"] for e in result.of_type("in_graph_lora.progress")]
    gaps = [b - a for a, b in itertools.pairwise(times[:-1])]  # the last one is sent at once
    assert min(gaps) > 0.19


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    """A transformers folder: a tiny random DINOv2."""
    import torch
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("judge") / "tiny-dino"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}
    Dinov2Model(Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size=28).save_pretrained(folder)
    return folder


def test_previews_and_what_is_measured_reach_the_page_and_load_run_gives_each_step(
    server, client, pictures, judge
):
    nodes = graph(pictures, steps=4, name="watched", preview=["20", 0])
    nodes["20"] = {
        "class_type": "TrainPreview",
        "inputs": {
            "prompts": "aawxbc figurine\na figurine", "every": 2, "held_out": 1, "measure_every": 2,
            "keep_best": True, "patience": 0, "negative": "", "seed": 1, "sampling_steps": 2, "cfg": 3.0,
            "sampler_name": "euler", "scheduler": "normal", "width": 0, "height": 0, "checkpoint_every": 0,
            "keep_states": 2, "judge_folder": str(judge), "decides": "judge",
            "unrelated_prompts": "a lake\na house",
        },
    }  # fmt: skip
    shown = []

    def ask(event):
        if event.type == "in_graph_lora.progress" and event.data.get("previews") == [2]:
            shown.append(client.get("/in_graph_lora/training?workflow=live-canvas&node=4"))

    prompt_id = client.queue(nodes, extra_data={"extra_pnginfo": {"workflow": {"id": "live-canvas"}}})
    done = client.wait(prompt_id, timeout=180, on_event=ask)
    assert done.status == "success", done.error
    told = done.of_type("in_graph_lora.progress")
    assert [step for e in told for step, _ in e.get("held_out", [])] == [0, 2, 4]
    assert [step for e in told for step in e.get("previews", [])] == [0, 2, 4]
    (during,) = shown
    assert [point[0] for point in during["points"]][:2] == [1, 2]
    after = client.get("/in_graph_lora/training?workflow=live-canvas&node=4")
    assert (after["state"], after["previews"], len(after["prompts"])) == ("finished", [0, 2, 4], 4)
    picture = {"run": after["run"], "step": 4, "prompt": 1}
    assert Image.open(io.BytesIO(client.fetch(f"/in_graph_lora/preview?{urlencode(picture)}"))).width == 64
    for change in (
        {"run": "../.."},
        {"step": 3},
        {"prompt": 4},
        {"step": "-1"},
        {"run": after["run"] + "/.."},
    ):
        with pytest.raises(HTTPError) as refused:
            client.fetch(f"/in_graph_lora/preview?{urlencode({**picture, **change})}")
        assert refused.value.code == 404
        refused.value.close()
    for elsewhere in ("workflow=another&node=4", "workflow=live-canvas&node=5", "workflow=&node=4"):
        assert client.get(f"/in_graph_lora/training?{elsewhere}") == {}
    (run,) = done.outputs["4"]["run"]
    name = Path(run["run_dir"]).relative_to(server.base / "output" / "in-graph-lora").as_posix()
    again = {
        "1": {"class_type": "LoadRun", "inputs": {"run": name, "step": 2}},
        "2": {"class_type": "LossGraphNode", "inputs": {"loss": ["1", 1], "filename_prefix": "again"}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 2]}},
    }
    loaded = client.run(again)
    assert loaded.status == "success", loaded.error
    assert "ss_steps" in json.dumps(loaded.outputs["3"])
    assert "held-out loss" in json.dumps(loaded.outputs["1"])
    assert "judge: subject fidelity" in json.dumps(loaded.outputs["1"])
    log = (Path(run["run_dir"]) / "events.jsonl").read_text(encoding="utf-8").splitlines()
    judged = {e["step"]: e for e in map(json.loads, log) if e["event"] == "Judged"}
    assert list(judged) == [0, 2, 4]
    assert {"subject", "leak", "drift", "copies", "pixel_copies"} <= judged[4]["figures"].keys()
    best = next(step for step in (4, 2) if judged[step]["best"])
    kept = Path(run["run_dir"]) / "checkpoints" / f"step_{best:06}.safetensors"
    assert kept.read_bytes() == Path(run["lora_path"]).read_bytes()


def test_stopping_a_node_that_trains_nothing_is_answered_with_404(client):
    with pytest.raises(HTTPError) as refused:
        client.post("/in_graph_lora/stop/999", {})
    assert refused.value.code == 404
    refused.value.close()


def test_a_restarted_graph_goes_on_where_the_stop_was(server, client, pictures):
    """The executor's own cache is emptied first, as after a restart of ComfyUI."""
    (run_folder,) = (server.base / "output" / "in-graph-lora" / "kept").iterdir()
    newest = max(int(p.stem.removeprefix("step_")) for p in (run_folder / "checkpoints").glob("*.json"))
    client.free()
    done = client.run(graph(pictures, steps=newest + 1, name="kept"))
    assert done.status == "success", done.error
    steps = steps_of(done)
    assert steps == [newest + 1]
    (run,) = done.outputs["4"]["run"]
    assert f"going on from step {newest}" in " ".join(run["notices"])


@pytest.mark.parametrize(
    ("node", "change", "message"),
    [
        ("2", {"folder": "no-such-folder"}, "no-such-folder"),
        ("4", {"name": "../escape"}, "cannot be a file name"),
        ("4", {"rank": 0}, "rank"),
        ("4", {"steps": 0}, "steps"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(client, pictures, node, change, message):
    prompt = graph(pictures)
    prompt[node]["inputs"] |= change
    with pytest.raises(PromptRejected, match=rf"node {node} \(.*{message}") as refused:
        client.queue(prompt)
    assert message in json.dumps(refused.value.details["node_errors"][node])
    if node == "4":  # the server would run what has no error, such as Caption Images, and call that success
        deadline = time.monotonic() + 20
        while (waiting := client.get("/queue")) != {"queue_running": [], "queue_pending": []}:
            assert time.monotonic() < deadline, waiting
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("node", "change", "message"),
    [
        ("3", {"template": "", "trigger": ""}, "caption"),
        ("3", {"template": "{colour}"}, "colour"),
        ("4", {"batch_size": 64}, "larger than the dataset"),
        ("11", {"strengths": "one"}, "strengths is 'one'"),
    ],
)
def test_bad_input_gives_one_sentence_on_its_node(client, server, pictures, node, change, message):
    prompt = graph(pictures, name="bad", steps=2)
    prompt[node]["inputs"] |= change
    done = client.run(prompt)
    assert done.status == "error"
    assert done.error["node_id"] == node
    assert message in done.error["exception_message"]
    if node != "11":
        assert not (server.base / "output" / "loras" / "bad.safetensors").exists()
        assert not (server.base / "output" / "in-graph-lora" / "bad").exists()
