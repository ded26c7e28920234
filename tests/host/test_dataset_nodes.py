"""LoadDataset and CaptionImages, run by ComfyUI's own validation and executor."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import math
from pathlib import Path
from types import SimpleNamespace

import execution
import folder_paths
import pytest
import torch
from comfy_api.latest import io
from PIL import Image

import nodes as comfy_nodes
from in_graph_lora.nodes import load_dataset
from in_graph_lora.nodes.caption_images import CaptionImages
from in_graph_lora.nodes.load_dataset import LoadDataset, caption_lines, resolve_folder
from in_graph_lora.nodes.sockets import CATEGORY, TrainDataset
from in_graph_lora.nodes.video_clips import VideoClips
from in_graph_lora.trainer.data.clip import ClipOptions
from in_graph_lora.trainer.data.images import inspect_image
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.host import paths

from ..clips import write_clip

GRAPH_IMAGES = paths.graph_images_directory()


class Pictures(io.ComfyNode):
    """Two pictures of different sizes, as a list, as core's loaders of folders give them."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="TestPictures",
            inputs=[],
            outputs=[io.Image.Output(is_output_list=True), io.Image.Output()],
        )

    @classmethod
    def execute(cls):
        return io.NodeOutput([torch.zeros(1, 40, 30, 3), torch.ones(2, 20, 60, 3)], torch.rand(3, 32, 32, 4))


class Sink(io.ComfyNode):
    """Keeps what it gets."""

    got = []

    @classmethod
    def define_schema(cls):
        inputs = [TrainDataset.Input("dataset"), io.String.Input("caption", optional=True, force_input=True)]
        return io.Schema(node_id="TestSink", inputs=inputs, outputs=[], is_output_node=True)

    @classmethod
    def execute(cls, dataset, caption=None):
        Sink.got.append((dataset, caption))
        return io.NodeOutput()


@pytest.fixture
def comfy(monkeypatch):
    for node, name in [
        (LoadDataset, "LoadDataset"),
        (CaptionImages, "CaptionImages"),
        (VideoClips, "VideoClips"),
        (Pictures, "TestPictures"),
        (Sink, "TestSink"),
    ]:
        monkeypatch.setitem(comfy_nodes.NODE_CLASS_MAPPINGS, name, node)
    Sink.got.clear()
    events = []
    server = SimpleNamespace(
        client_id=None,
        last_node_id=None,
        send_sync=lambda event, data, sid=None: events.append((event, data)),
    )
    executor = execution.PromptExecutor(
        server, cache_type=execution.CacheType.CLASSIC, cache_args={"ram": 0, "ram_inactive": 0, "lru": 0}
    )

    def run(prompt):
        """Node ids that ran, {node id: ui}; validation and execution errors are raised as AssertionError."""
        # A request brings new objects each time; the executor writes into them.
        prompt = copy.deepcopy(prompt)
        events.clear()
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("p", prompt, None))
        assert valid, json.dumps([error, node_errors], default=str)
        executor.execute(prompt, "p", {"client_id": "c"}, outputs)
        failures = [data["exception_message"] for event, data in executor.status_messages if "error" in event]
        assert not failures, failures
        ran = [data["node"] for event, data in events if event == "executing" and data["node"]]
        shown = {data["node"]: data["output"] for event, data in events if event == "executed"}
        return ran, shown

    return run


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate([(400, 300), (300, 400), (300, 300)]):
        Image.new("RGB", size, (80 * i, 0, 0)).save(tmp_path / f"img{i}.png")
    (tmp_path / "img0.txt").write_text("a red square", encoding="utf-8")
    (tmp_path / "broken.jpg").touch()
    return tmp_path


def load(**inputs):
    return {"class_type": "LoadDataset", "inputs": {"folder": "", "resolution": 512, "repeats": 1, **inputs}}


def caption(dataset, **inputs):
    defaults = {
        "method": "template",
        "trigger": "ohwx",
        "class_word": "dog",
        "template": "a photo of {trigger} {class}",
        "on_existing": "keep",
    }
    return {"class_type": "CaptionImages", "inputs": {"dataset": dataset, **defaults, **inputs}}


def sink(dataset, **inputs):
    return {"class_type": "TestSink", "inputs": {"dataset": dataset, **inputs}}


def test_a_folder_runs_through_both_nodes(comfy, folder):
    prompt = {"1": load(folder=str(folder)), "2": caption(["1", 0]), "3": sink(["2", 0])}
    ran, shown = comfy(prompt)
    assert ran == ["1", "2", "3"]
    [(dataset, _)] = Sink.got
    assert [r.caption for r in dataset.records] == [
        "a red square",
        "a photo of ohwx dog",
        "a photo of ohwx dog",
    ]
    text = shown["1"]["text"][0]
    assert text.splitlines()[0] == "3 images · 1 skipped · 3 buckets"
    assert "| broken.jpg | skipped | the file is empty (0 bytes); copy it again |" in text.splitlines()
    assert (
        "⚠ 3 pictures are too small for the resolution and enlarged: img0.png (1.5 times), img1.png (1.5"
        " times), img2.png (1.7 times); Image Framing can train them at their own size, or refuse them"
    ) in text.splitlines()
    assert "⚠ 2 without a caption; add Caption Images or .txt files" in text.splitlines()
    assert sum(line.endswith(" of the subject | cut, on average |") for line in text.splitlines()) == 1
    [preview] = shown["1"]["images"]
    assert (Path(folder_paths.get_temp_directory()) / preview["subfolder"] / preview["filename"]).is_file()
    assert shown["2"]["text"][0] == "img0.png: a red square"


def test_clips_are_taken_as_the_node_in_front_says(comfy, folder):
    write_clip(folder / "walk.mp4", 30)
    options = {"frames": 9, "fps": 12.0, "part": "chunks", "chunks": 2, "gifs": False}
    prompt = {
        "0": {"class_type": "VideoClips", "inputs": options},
        "1": load(folder=str(folder), clips=["0", 0]),
        "2": sink(["1", 0]),
    }
    _, shown = comfy(prompt)
    assert shown["1"]["text"][0].startswith("4 images · 1 clip · 1 skipped")
    [(dataset, _)] = Sink.got
    [clip] = [r.clip for r in dataset.records if r.clip]
    assert (clip.frames, clip.options) == (30, ClipOptions(**options))
    ran, _ = comfy(prompt)
    assert ran == []
    prompt["0"]["inputs"]["frames"] = 17
    comfy(prompt)
    assert Sink.got[-1][0].digest != dataset.digest
    write_clip(folder / "walk.mp4", 20)
    ran, _ = comfy(prompt)
    assert ran == ["1", "2"], "an edited clip is noticed"


def test_nothing_runs_again_until_a_caption_is_edited(comfy, folder):
    prompt = {"1": load(folder=str(folder)), "2": sink(["1", 0])}
    assert comfy(prompt)[0] == ["1", "2"]
    assert comfy(prompt)[0] == []
    (folder / "img0.txt").write_text("a RED square", encoding="utf-8")
    assert comfy(prompt)[0] == ["1", "2"]
    assert Sink.got[-1][0].records[0].caption == "a RED square"


def test_control_folders_are_read_and_an_edited_control_picture_runs_the_node_again(comfy, folder):
    hints = folder / "hints", folder / "poses"
    for i, hint in enumerate(hints):
        hint.mkdir()
        Image.new("RGB", (50, 40), (0, 90 * i, 0)).save(hint / "img0.png")
    written = "\n".join(map(str, hints)) + "\n"
    prompt = {"1": load(folder=str(folder), control_folder=written), "2": sink(["1", 0])}
    _, shown = comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [[c.path for c in r.controls] for r in dataset.records] == [
        [hint / "img0.png" for hint in hints], [], [],
    ]  # fmt: skip
    assert "3 images · 1 with control pictures · 2 skipped" in shown["1"]["text"][0]
    assert comfy(prompt)[0] == []
    Image.new("RGB", (60, 40)).save(hints[1] / "img0.png")
    assert comfy(prompt)[0] == ["1", "2"]


def test_pictures_in_a_list_become_one_dataset(comfy):
    inputs = {"images": ["0", 0], "captions": "one\n\nthree", "repeats": 4}
    prompt = {"0": {"class_type": "TestPictures", "inputs": {}}, "1": load(**inputs), "2": sink(["1", 0])}
    comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [(r.size, r.caption, r.repeats) for r in dataset.records] == [
        ((30, 40), "one", 4),
        ((60, 20), "", 4),
        ((60, 20), "three", 4),
    ]
    assert {r.path.parent for r in dataset.records} == {GRAPH_IMAGES}
    assert len({r.path for r in dataset.records}) == 2, "equal pictures are one file"


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"half a pict")])
def test_connected_pictures_that_were_deleted_or_damaged_are_made_again(comfy, damage):
    inputs = {"images": ["0", 0], "captions": "a toy"}
    prompt = {"0": {"class_type": "TestPictures", "inputs": {}}, "1": load(**inputs), "2": sink(["1", 0])}
    comfy(prompt)
    assert comfy(prompt)[0] == []
    before = Sink.got[-1][0]
    for path in {r.path for r in before.records}:
        damage(path)
    assert comfy(prompt)[0] == ["1", "2"]
    after = Sink.got[-1][0]
    assert after.digest == before.digest
    assert all(inspect_image(r.path) == (r.size, r.digest) for r in after.records)
    assert comfy(prompt)[0] == [], "once is enough"


def test_a_batch_with_alpha_and_one_caption_for_all(comfy):
    inputs = {"images": ["0", 1], "captions": " a photo \n"}
    prompt = {"0": {"class_type": "TestPictures", "inputs": {}}, "1": load(**inputs), "2": sink(["1", 0])}
    comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [r.caption for r in dataset.records] == ["a photo"] * 3


def test_captions_with_what_is_no_character_are_named_on_both_nodes(comfy):
    prompt = {
        "0": {"class_type": "TestPictures", "inputs": {}},
        "1": load(images=["0", 1], captions="a \ud83d toy\na toy\na toy"),
        "2": caption(["1", 0], template="{trigger}, {caption}", trigger="\ud83d", on_existing="overwrite"),
        "3": sink(["2", 0]),
    }
    _, shown = comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [r.caption for r in dataset.records] == ["�, a � toy", "�, a toy", "�, a toy"]
    (name, *_) = [r.name for r in dataset.records]
    assert f"� replaces what is no character in caption of {name};" in shown["1"]["text"][0]
    assert f"� replaces what is no character in trigger, caption of {name}" in shown["2"]["text"][0]


def test_folder_images_and_class_folder_are_joined_in_this_order(comfy, folder, tmp_path_factory):
    classes = tmp_path_factory.mktemp("class")
    Image.new("RGB", (64, 64)).save(classes / "any.png")
    inputs = {"folder": str(folder), "images": ["0", 0], "class_folder": str(classes), "repeats": 2}
    prompt = {
        "0": {"class_type": "TestPictures", "inputs": {}},
        "1": load(**inputs),
        "2": caption(["1", 0]),
        "3": sink(["2", 0]),
    }
    comfy(prompt)
    [(dataset, _)] = Sink.got
    assert [(r.role, r.repeats) for r in dataset.records] == [("instance", 2)] * 6 + [("class", 1)]
    assert dataset.records[-1].caption == "a photo of dog"
    assert [p.path.name for p in dataset.problems] == ["broken.jpg"]


def test_captions_come_out_as_a_list(comfy, folder):
    prompt = {"1": load(folder=str(folder)), "2": caption(["1", 0]), "3": sink(["1", 0], caption=["2", 1])}
    comfy(prompt)
    assert [text for _, text in Sink.got] == ["a red square", "a photo of ohwx dog", "a photo of ohwx dog"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"folder": ""}, "folder: is empty; type the path"),
        ({"folder": "no/such"}, "there is no such folder; check the path"),
        ({"folder": "../outside"}, "leads out of ComfyUI's input folder; type the absolute path instead"),
    ],
)
def test_a_wrong_folder_is_refused_before_anything_runs(comfy, inputs, message):
    with pytest.raises(AssertionError, match="custom_validation_failed") as e:
        comfy({"1": load(**inputs), "2": sink(["1", 0])})
    assert message in str(e.value)
    assert Sink.got == []


def test_a_folder_without_pictures_is_refused_before_anything_runs(comfy, tmp_path):
    with pytest.raises(AssertionError, match="the folder holds no pictures"):
        comfy({"1": load(folder=str(tmp_path)), "2": sink(["1", 0])})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"captions": "one"}, "captions: these are for connected images"),
        ({"class_folder": "no/such"}, "there is no such folder"),
    ],
)
def test_errors_of_the_run_are_one_sentence(comfy, folder, inputs, message):
    with pytest.raises(AssertionError, match=message):
        comfy({"1": load(folder=str(folder), **inputs), "2": sink(["1", 0])})


def test_captions_that_do_not_fit_the_images_say_both_counts(comfy):
    inputs = {"images": ["0", 0], "captions": "one\ntwo"}
    prompt = {"0": {"class_type": "TestPictures", "inputs": {}}, "1": load(**inputs), "2": sink(["1", 0])}
    with pytest.raises(AssertionError, match="captions: 2 lines for 3 images"):
        comfy(prompt)


def test_a_template_with_nothing_to_fill_in_stops_the_run(comfy, folder):
    prompt = {
        "1": load(folder=str(folder)),
        "2": caption(["1", 0], trigger="", class_word=""),
        "3": sink(["2", 0]),
    }
    with pytest.raises(AssertionError, match=r"img1\.png, img2\.png have no caption"):
        comfy(prompt)


def test_inputs_that_are_not_used_yet_say_so(comfy, folder, caplog):
    prompt = {
        "1": load(folder=str(folder)),
        "2": caption(["1", 0], model_folder="/models/blip"),
        "3": sink(["2", 0]),
    }
    with caplog.at_level(logging.WARNING):
        _, shown = comfy(prompt)
    assert shown["2"]["text"][0] == "model_folder is not used by the method 'template'"
    assert "model_folder is not used" in caplog.text


def test_an_interrupt_stops_the_scan(monkeypatch, folder):
    import comfy.model_management as management

    def interrupted(self, *args):
        raise management.InterruptProcessingException

    monkeypatch.setattr(load_dataset.NodeProgress, "update", interrupted)
    monkeypatch.setattr(LoadDataset, "hidden", SimpleNamespace(unique_id="1"), raising=False)
    with pytest.raises(management.InterruptProcessingException):
        LoadDataset.execute(folder=[str(folder)], resolution=[512], repeats=[1])


def test_the_fingerprint_is_unknown_for_linked_or_missing_folders_and_stable_otherwise(folder):
    known = LoadDataset.fingerprint_inputs(folder=[str(folder)], resolution=[512], captions=[""])
    assert known == LoadDataset.fingerprint_inputs(folder=[str(folder)], class_folder=[""])
    assert known != LoadDataset.fingerprint_inputs(folder=[str(folder)], class_folder=[str(folder)])
    assert math.isnan(LoadDataset.fingerprint_inputs(folder=(None,)))
    assert math.isnan(LoadDataset.fingerprint_inputs(folder=["no/such"]))
    connected = LoadDataset.fingerprint_inputs(folder=[""], images=(None,))
    assert connected == LoadDataset.fingerprint_inputs(folder=[""], images=(None,))


def test_a_relative_folder_is_found_in_comfyuis_input_folder():
    inside = Path(folder_paths.get_input_directory()) / "set"
    assert resolve_folder(" set ") == inside
    assert resolve_folder('"set"') == inside


def test_a_relative_link_out_of_the_input_folder_is_refused(tmp_path):
    link = Path(folder_paths.get_input_directory()) / "link-out"
    link.symlink_to(tmp_path)
    try:
        with pytest.raises(DatasetError, match="leads out of ComfyUI's input folder"):
            resolve_folder("link-out")
    finally:
        link.unlink()
    assert resolve_folder(str(tmp_path)) == tmp_path


def test_caption_lines_keeps_lists_and_splits_one_text():
    assert caption_lines([""]) == []
    assert caption_lines(["\n a \nb\n"]) == ["", "a", "b"]
    assert caption_lines(["a\nb", "c"]) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("node", "inputs", "outputs"),
    [
        (
            LoadDataset,
            [
                "folder",
                "resolution",
                "repeats",
                "images",
                "captions",
                "class_folder",
                "control_folder",
                "framing",
                "subfolders",
                "mask_folder",
                "clips",
            ],
            ["dataset", "preview", "count"],
        ),
        (
            CaptionImages,
            [
                "dataset",
                "method",
                "trigger",
                "class_word",
                "template",
                "on_existing",
                "clip",
                "model_folder",
            ],
            ["dataset", "captions"],
        ),
    ],
)
def test_the_public_contract_of_the_nodes(node, inputs, outputs):
    schema = node.GET_SCHEMA()
    assert schema.node_id == node.__name__
    assert schema.category == CATEGORY
    assert [i.id for i in schema.inputs][: len(inputs)] == inputs
    assert [o.display_name for o in schema.outputs] == outputs
    assert all(item.tooltip for item in [*schema.inputs, *schema.outputs])
