from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from in_graph_lora.trainer.data.drawn_masks import MASKS, drawn_mask, with_drawn_masks
from in_graph_lora.trainer.data.framing import Framing
from in_graph_lora.trainer.data.images import open_image
from in_graph_lora.trainer.data.picture_cache import _control_pictures
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import folder_fingerprint, scan_folder
from in_graph_lora.trainer.data.views import views
from in_graph_lora.trainer.errors import DatasetError


def picture(
    path: Path, size: tuple[int, int] = (40, 30), colour: tuple[int, int, int] = (200, 30, 60)
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def controls(dataset: Dataset) -> dict[str, list[str]]:
    return {r.path.name: [c.path.name for c in r.controls] for r in dataset.records}


def reasons(dataset: Dataset) -> dict[str, str]:
    return {p.path.name: p.reason for p in dataset.problems}


def test_control_pictures_beside_the_picture_come_by_number_and_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a", "a-control-10", "a-control-2", "a-control", "b", "b-control-1"):
        picture(tmp_path / f"{name}.png")
    picture(tmp_path / "1_c" / "a.webp")
    picture(tmp_path / "1_c" / "a-control.jpg", size=(12, 34))
    picture(tmp_path / "d.png")
    picture(tmp_path / "d-condlabel.png")
    dataset = scan_folder(tmp_path)
    assert controls(dataset) == {
        "a.png": ["a-control.png", "a-control-2.png", "a-control-10.png"],
        "b.png": ["b-control-1.png"],
        "d.png": ["d-condlabel.png"],
        "a.webp": ["a-control.jpg"],
    }
    assert dataset.records[3].controls[0].size == (12, 34)
    assert dataset.problems == ()


def test_what_is_only_named_like_a_control_picture_is_a_picture_and_named(tmp_path: Path) -> None:
    picture(tmp_path / "remote-control.png")
    dataset = scan_folder(tmp_path)
    assert controls(dataset) == {"remote-control.png": []}
    assert "there is no picture remote beside it" in reasons(dataset)["remote-control.png"]


def test_control_folders_are_read_by_stem_in_their_order(tmp_path: Path) -> None:
    pictures, first, second = tmp_path / "pictures", tmp_path / "pictures" / "sources", tmp_path / "poses"
    for name in ("a.png", "b.jpg", "5_c/d.png"):
        picture(pictures / name)
    picture(pictures / "a-control.png")
    picture(first / "a.webp")
    picture(first / "5_c" / "d.png")
    picture(first / "d.png")
    for name in ("a.png", "b.png", "d.png"):
        picture(second / name)
    dataset = scan_folder(pictures, control_folders=[first, second])
    found = {
        r.path.name: [c.path.relative_to(tmp_path).as_posix() for c in r.controls] for r in dataset.records
    }
    assert found == {
        "a.png": ["pictures/a-control.png", "pictures/sources/a.webp", "poses/a.png"],
        "b.jpg": ["poses/b.png"],
        "d.png": ["pictures/sources/5_c/d.png", "poses/d.png"],
    }
    assert reasons(dataset) == {
        "sources": "control pictures that belong to no picture: d.png; name them like it",
    }


def test_metadata_names_control_pictures_in_columns_and_lists(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "before", "pose", "deep/hint"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,control_path_1,control_path\na.png,make it red,pose.png,before.png\nb.png,x,,\n"
    )
    rows = [
        {"file_name": "b.png", "control_path": ["deep/hint.png", "before.png"]},
        {"file_name": "c.png", "control_path": "../secret.png"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = scan_folder(tmp_path)
    assert controls(dataset) == {
        "a.png": ["before.png", "pose.png"],
        "b.png": ["hint.png", "before.png"],
        "c.png": [],
    }
    assert [r.caption for r in dataset.records] == ["make it red", "x", ""]
    assert "line 2: a control_path leads out of the folder" in reasons(dataset)["metadata.jsonl"]
    assert "deep" not in reasons(dataset)


def test_pictures_without_a_control_picture_are_named(tmp_path: Path) -> None:
    for name in ("a", "a-control", "b", "c"):
        picture(tmp_path / f"{name}.png")
    reason = reasons(scan_folder(tmp_path))[tmp_path.name]
    assert reason.startswith("2 of 3 pictures have no control picture: b.png, c.png; ")


def test_broken_control_pictures_are_named_and_left_out(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a-control.png").write_bytes(b"no picture")
    (tmp_path / "b-control.png").symlink_to(picture(tmp_path.parent / f"{tmp_path.name}-outside.png"))
    picture(tmp_path / "b-control-1.png")
    (tmp_path / "metadata.csv").write_text("file_name,control_path\na.png,gone.png\n")
    dataset = scan_folder(tmp_path)
    assert controls(dataset) == {"a.png": [], "b.png": ["b-control-1.png"]}
    told = reasons(dataset)
    assert "(a control picture of a.png, left out)" in told["a-control.png"]
    assert "leads out of the folder" in told["b-control.png"]
    assert "cannot be read" in told["gone.png"]


def test_a_control_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="nowhere: there is no such control folder; check the path"):
        scan_folder(tmp_path, control_folders=[tmp_path / "nowhere"])


def test_digest_and_fingerprint_change_with_a_control_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    without = scan_folder(tmp_path).digest
    hint = picture(tmp_path / "hints" / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,control_path\na.png,hints/a.png\n")
    first, fingerprint = scan_folder(tmp_path).digest, folder_fingerprint(tmp_path)
    picture(hint, size=(50, 50))
    assert len({without, first, scan_folder(tmp_path).digest}) == 3
    assert folder_fingerprint(tmp_path) != fingerprint


def test_masks_are_drawn_for_pictures_without_one_and_once_for_held_out_ones(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "c-masklabel"):
        picture(tmp_path / f"{name}.png")
    dataset = scan_folder(tmp_path)
    records = [dataset.records[0].with_role("validation"), *dataset.records[1:]]
    drawn = with_drawn_masks(dataset.with_records(records))
    assert [(r.name, r.drawn_mask) for r in drawn.records] == [
        ("a.png", 1),
        *(("b.png", i) for i in range(MASKS)),
        ("c.png", None),
    ]
    assert drawn.shown == MASKS + 1


def test_a_drawn_mask_depends_on_picture_and_number_alone() -> None:
    masks = [drawn_mask(d, n, (96, 64)) for d in ("x", "y") for n in range(1, MASKS)]
    assert all(m.shape == (64, 96) and set(m.unique().tolist()) == {0.0, 1.0} for m in masks)
    assert all(0.05 < m.mean() < 0.85 for m in masks)
    assert len({m.numpy().tobytes() for m in masks}) == len(masks)
    assert torch.equal(drawn_mask("x", 2, (96, 64)), masks[1])
    assert drawn_mask("x", 0, (96, 64)).min() == 1
    assert drawn_mask("x", 1, (1, 1)).shape == (1, 1)


def test_control_pictures_are_mirrored_with_their_picture(tmp_path):
    rng = np.random.RandomState(0)
    for name in ("a.png", "a-control.png"):
        Image.fromarray(rng.randint(0, 256, (64, 160, 3), dtype=np.uint8)).save(tmp_path / name)
    (record,) = scan_folder(tmp_path, framing=Framing(flip=True)).records
    control = open_image(record.controls[0].path)
    plain, flipped = views(record, resolution=64)
    for view, expected in ((plain, control), (flipped, ImageOps.mirror(control))):
        given = _control_pictures(record, view, view.cut(open_image(record.path)), None)
        assert given.images[0]().tobytes() == expected.tobytes()
        assert torch.allclose(given.cut(given.images[0]()), view.cut(control), atol=2 / 255)


def test_what_is_said_of_a_folder_with_control_pictures_stays_but_for_its_being_unread(tmp_path):
    for name in ("a.png", "before.png", "hints/b.png", "hints/deep/c.png"):
        picture(tmp_path / name)
    (tmp_path / "orphan.txt").write_text("a caption without a picture")
    rows = ({"file_name": "a.png", "text": "x", "control_path": c} for c in (["before.png", "hints/b.png"],))
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = scan_folder(tmp_path)
    assert controls(dataset) == {"a.png": ["before.png", "b.png"]}
    assert [str(p) for p in dataset.problems] == [
        f"{tmp_path.name}: captions without a picture: orphan.txt; rename or remove them"
    ]
