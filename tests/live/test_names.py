"""What a user types into the node search finds our nodes and takes no other for them."""

from __future__ import annotations

from collections import Counter

from PIL import Image

from workbench.client import Client

CATEGORY = "In-Graph LoRA"
SHOWS_ALONE = {
    "LoadDataset", "JoinDatasets", "CaptionImages", "EditCaptions", "DatasetReport", "CheckTrigger",
    "PlanTraining", "TrainLoRA", "CompareBaseline", "EvaluateLoRA", "CompareReports",
}  # fmt: skip


def words(name: str) -> str:
    return " ".join(name.replace("-", " ").lower().split())


def test_no_node_has_the_display_name_of_another(client: Client):
    nodes = client.object_info()
    names = Counter(words(node["display_name"] or name) for name, node in nodes.items())
    ours = {name: node for name, node in nodes.items() if node["category"].startswith(CATEGORY)}
    assert len(ours) >= 20
    assert {
        n: node["display_name"] for n, node in ours.items() if names[words(node["display_name"])] > 1
    } == {}


def test_names_that_comfyui_has_too_say_whose_they_are(client: Client):
    nodes = client.object_info()
    assert nodes["TrainLoraNode"]["display_name"] == "Train LoRA"  # else the test below proves nothing
    for kind in ("TrainLoRA", "ApplyLoRA", "LoadDataset"):
        name = nodes[kind]["display_name"]
        assert name.endswith(" (In-Graph)")
        assert name.removesuffix(" (In-Graph)").lower() in nodes[kind]["search_aliases"]


def test_nodes_that_show_something_run_alone(client: Client):
    nodes = client.object_info()
    assert {kind for kind in SHOWS_ALONE if not nodes[kind]["output_node"]} == set()


def test_load_dataset_runs_alone_and_says_what_is_there(client: Client, server):
    folder = server.base / "input" / "alone"
    folder.mkdir(exist_ok=True)
    (folder / "torn.png").write_bytes(b"")
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    inputs = {"folder": "alone", "resolution": 64, "repeats": 1}
    done = client.run({"1": {"class_type": "LoadDataset", "inputs": inputs}})
    assert done.status == "success"
    text = done.outputs["1"]["text"][0]
    assert text.startswith("1 image · 1 skipped · 1 bucket")
    assert "| torn.png | skipped |" in text
