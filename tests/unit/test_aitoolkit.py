"""Job files of ai-toolkit."""

from __future__ import annotations

import pytest
import yaml
from PIL import Image

from in_graph_lora.trainer.data.layouts import aitoolkit
from in_graph_lora.trainer.data.scan import check_folder, folder_fingerprint, scan_folder
from in_graph_lora.trainer.errors import DatasetError


def picture(path, colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def job(tmp_path, *datasets, **process):
    process = {"type": "sd_trainer", "datasets": list(datasets), **process}
    text = yaml.safe_dump({"job": "extension", "config": {"name": "x", "process": [process]}})
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def reasons(dataset):
    return [str(p) for p in dataset.problems]


def test_the_datasets_of_a_job_are_read_with_what_has_a_counterpart(tmp_path):
    for name in ("mine/a.png", "mine/10_deep/b.png", "mine/c.png", "mine/before/a.png", "class/d.png"):
        picture(tmp_path / name)
    for name in ("masks/a.png", "poses/a.png", "poses/b.png", "mine/before/c.png", "mine/before/b.png"):
        picture(tmp_path / name)
    picture(tmp_path / "poses/c.png")
    (tmp_path / "mine/a.cap").write_text("[trigger] on a sofa")
    (tmp_path / "mine/10_deep/b.cap").write_text("")
    (tmp_path / "mine/c.txt").write_text("another ending")
    (tmp_path / "class/d.txt").write_text("a [trigger]dog")
    path = job(
        tmp_path,
        {
            "folder_path": "mine",
            "caption_ext": "cap",
            "default_caption": "a toy",
            "num_repeats": 10,
            "resolution": [512, 768],
            "random_crop": True,
            "flip_x": True,
            "loss_multiplier": 0.5,
            "mask_path": "masks",
            "control_path_1": "mine/before",
            "control_path_2": str(tmp_path / "poses"),
            "caption_dropout_rate": 0.05,
            "shuffle_tokens": True,
            "keep_tokens": 0,
            "flip_y": True,
            "cache_latents_to_disk": True,
            "num_frames": 1,
        },
        {
            "folder_path": "class",
            "is_reg": True,
            "resolution": 512,
            "alpha_mask": True,
            "trigger_word": "sks",
        },
        trigger_word="p3r5on",
    )
    check_folder(path)
    found = scan_folder(path)
    assert [(r.name, r.caption, r.repeats, r.weight, r.role) for r in found.records] == [
        ("a.png", "p3r5on on a sofa", 10, 0.5, "instance"),
        ("c.png", "p3r5on a toy", 10, 0.5, "instance"),
        ("b.png", "p3r5on a toy", 10, 0.5, "instance"),
        ("d.png", "a sksdog", 1, 1.0, "class"),
    ]
    first, *_, last = found.records
    assert (first.framing.resolutions, first.framing.crop, first.framing.flip) == ((512, 768), "random", True)
    assert (last.framing.resolutions, last.framing.alpha_mask) == ((512,), True)
    assert first.mask == tmp_path / "masks/a.png"
    assert [[c.path.parent.name for c in r.controls] for r in found.records] == [["before", "poses"]] * 3 + [
        []
    ]
    assert reasons(found) == [
        "config.yaml: these settings of its datasets are not used: caption_dropout_rate (set it on Train"
        " Objective), flip_y, shuffle_tokens (set it on Train Objective)"
    ]
    assert not found.problems[0].skipped


def test_what_the_job_names_is_part_of_the_fingerprint(tmp_path):
    for name in ("mine/a.png", "masks/a.png", "before/a.png"):
        picture(tmp_path / name)
    (tmp_path / "mine/a.cap").write_text("x")
    settings = {
        "folder_path": "mine",
        "caption_ext": ".cap",
        "mask_path": "masks",
        "control_path": ["before"],
    }
    path = job(tmp_path, settings)
    prints = [folder_fingerprint(path)]
    for change in (
        lambda: (tmp_path / "mine/a.cap").write_text("y"),
        lambda: picture(tmp_path / "masks/a.png", (255, 255, 255)),
        lambda: picture(tmp_path / "before/a.png", (1, 2, 3)),
        lambda: job(tmp_path, settings | {"num_repeats": 2}),
    ):
        change()
        prints.append(folder_fingerprint(path))
    assert len(set(prints)) == 5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "folder_path of dataset 1 names no folder"),
        ({"folder_path": 3}, "names no folder"),
        ({"folder_path": "gone"}, "gone: there is no such folder"),
        ({"folder_path": "mine", "num_repeats": 0}, "num_repeats of dataset 1 is 0"),
        ({"folder_path": "mine", "resolution": ["big"]}, "resolution of dataset 1 is 'big'"),
        ({"folder_path": "mine", "flip_x": "yes"}, "flip_x of dataset 1 is 'yes'; write true or false"),
        ({"folder_path": "mine", "default_caption": 3}, "default_caption of dataset 1 is 3; write a text"),
        ({"folder_path": "mine", "loss_multiplier": 0}, "loss_multiplier of dataset 1 is 0"),
        ({"folder_path": "mine", "mask_path": "gone"}, "gone: there is no such folder"),
        ({"folder_path": "mine", "control_path": "gone"}, "gone: there is no such control folder"),
        ({"folder_path": "mine", "control_path": [3]}, "control_path of dataset 1 names no folder"),
        (
            {"folder_path": "mine", "caption_ext": "json"},
            r"captions of dataset 1 are JSON files; save them as",
        ),
        ({"folder_path": "mine", "type": "slider"}, "dataset 1 is of type 'slider'"),
    ],
)
def test_a_setting_that_is_wrong_is_told_in_a_sentence(tmp_path, settings, words):
    picture(tmp_path / "mine" / "a.png")
    with pytest.raises(DatasetError, match=words):
        scan_folder(job(tmp_path, settings))


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", r"config\.yaml: cannot be understood \(.+, line 1\); correct it"),
        (
            '- folder_path: "C:\\pictures"',
            "escape character.*line 1; paths with backslashes go without quotes",
        ),
        ("!!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: &a [*a]", "more than 50000 values"),
        (BOMB, "more than 50000 values, with those that aliases repeat"),
        (MERGED, "more than 50000 values"),
        ("[" * 3000, r"config\.yaml: cannot be understood"),
        ("a: " + "9" * 5000, "cannot be understood"),
        ("a: 2026-99-99", "cannot be understood"),
        ("config: {process: [{datasets: [x]}]}", "'x' under datasets is no list of settings"),
        ("config: {process: [{datasets: []}]}", "has no datasets under config and process"),
        ("config: 3", "has no datasets"),
        ("", "has no datasets"),
        ("a: " + "x" * 2000, r"has 2003 bytes \(limit 2000\)"),
    ],
)
def test_a_file_that_is_wrong_is_told_in_a_sentence(tmp_path, text, words, monkeypatch):
    monkeypatch.setattr(aitoolkit, "MAX_BYTES", 2000 if text.startswith("a: x") else 500_000)
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match=words):
        scan_folder(path)


def test_a_job_may_repeat_itself_by_aliases(tmp_path):
    picture(tmp_path / "mine" / "a.png")
    path = tmp_path / "config.yml"
    path.write_text(
        "common: &common {folder_path: mine, flip_x: true}\n"
        "config: {process: [{datasets: [{<<: *common, num_repeats: 2}, *common]}]}\n"
    )
    assert [(r.repeats, r.framing.flip) for r in scan_folder(path).records] == [(2, True), (1, True)]
