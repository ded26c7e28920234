from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from in_graph_lora.trainer.data.records import Problem
from in_graph_lora.trainer.data.report import title
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.pictures.contact_sheet import contact_sheet


@pytest.fixture
def dataset(tmp_path):
    for i, size in enumerate([(400, 300), (300, 400), (200, 1), (300, 300)]):
        Image.new("RGB", size, (250, 0, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("一只猫 a cat 😀 \x00\t" + "very " * 50, encoding="utf-8")
    return scan_folder(tmp_path)


def test_the_sheet_is_one_picture_as_comfyui_expects(dataset):
    sheet = contact_sheet(dataset)
    assert sheet.ndim == 4
    assert sheet.shape[0] == 1
    assert sheet.shape[3] == 3
    assert sheet.dtype == torch.float32
    assert 0 <= float(sheet.min()) <= float(sheet.max()) <= 1


def test_each_picture_has_the_shape_of_its_bucket(dataset):
    sheet = np.asarray(contact_sheet(dataset.with_records(dataset.records[:1]))[0] * 255).round()
    red = (sheet[..., 0] > 240) & (sheet[..., 1] < 20)
    height, width = int(red.any(1).sum()), int(red.any(0).sum())
    assert (width, height) == (192, round(192 * 448 / 576))


def test_what_a_mask_leaves_out_is_tinted_and_the_title_counts_the_masks(tmp_path):
    Image.new("RGB", (64, 64), (0, 0, 250)).save(tmp_path / "a.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "a-masklabel.png")
    dataset = scan_folder(tmp_path)
    sheet = np.asarray(contact_sheet(dataset)[0] * 255).round().astype(int)
    blue = (sheet == (0, 0, 250)).all(2)
    tinted = (sheet[..., 0] > 100) & (sheet[..., 2] > sheet[..., 1] + 50)
    assert blue.any(0).nonzero()[0].max() < tinted.any(0).nonzero()[0].max()
    assert abs(int(blue.sum()) - int(tinted.sum())) < 192 * 8
    assert title(dataset) == "1 image · 1 masked · 0 skipped · 1 bucket"


def test_the_title_counts_images_problems_and_buckets(dataset, tmp_path):
    (tmp_path / "broken.png").touch()
    found = scan_folder(tmp_path)
    assert title(found) == "4 images · 1 skipped · 4 buckets"
    assert title(found.with_records(found.records[:1])) == "1 image · 1 skipped · 1 bucket"
    assert title(found, shown=2) == "4 images · 1 skipped · 4 buckets · first 2 shown"
    assert (
        Problem(path=tmp_path / "broken.png", reason="the file is empty (0 bytes); copy it again")
        in found.problems
    )


def test_the_sheet_stops_growing_at_the_limit(dataset):
    many = dataset.with_records(dataset.records * 25)
    assert contact_sheet(many, max_images=6).shape == contact_sheet(many.with_records(many.records[:6])).shape
    assert contact_sheet(many).shape[1] < 1100


def test_a_picture_that_is_gone_since_the_scan_is_named(dataset):
    dataset.records[1].path.unlink()
    with pytest.raises(DatasetError, match=r"1\.png: cannot be read"):
        contact_sheet(dataset)


def test_control_pictures_stand_before_their_picture_and_the_title_counts_them(tmp_path):
    Image.new("RGB", (64, 64), (250, 0, 0)).save(tmp_path / "a.png")
    Image.new("RGB", (64, 64), (0, 0, 250)).save(tmp_path / "a-control.png")
    Image.new("RGB", (32, 64), (0, 250, 0)).save(tmp_path / "a-control-1.png")
    dataset = scan_folder(tmp_path)
    sheet = np.asarray(contact_sheet(dataset)[0] * 255).round().astype(int)
    red, blue, green = ((sheet == [250 * (i == c) for i in range(3)]).all(2) for c in (0, 2, 1))
    assert blue.any(0).nonzero()[0].max() < red.any(0).nonzero()[0].min()
    assert blue.any(1).nonzero()[0].max() < green.any(1).nonzero()[0].min()
    assert title(dataset) == "1 image · 1 with control pictures · 0 skipped · 1 bucket"
