"""Text and lines on our pictures, with the system's fonts and without any."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageFont

from in_graph_lora.trainer.pictures import drawing, loss_curve
from in_graph_lora.trainer.pictures.contact_sheet import contact_sheet
from in_graph_lora.trainer.pictures.drawing import Writer, writer
from in_graph_lora.trainer.pictures.grid import labelled_grid

SIZES = (11, 13, 18)


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A system without any font: Pillow's own is left."""
    monkeypatch.setattr(drawing, "FONTS", ("no-such-font.ttf",))
    writer.cache_clear()
    yield
    writer.cache_clear()


@pytest.fixture
def no_freetype(no_fonts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow without FreeType: a bitmap font of one size that raises on anything but Latin-1."""
    bitmap = ImageFont.load_default_imagefont()
    monkeypatch.setattr(ImageFont, "load_default", lambda size=None: bitmap)


def drawn(text: str, size: int) -> Image.Image:
    image = Image.new("RGB", (600, 40), "white")
    Writer(size).draw(image, (4, 4), text)
    return image


def ink_columns(text: str, size: int) -> np.ndarray:
    """Which columns of pixels have ink."""
    return (np.asarray(drawn(text, size).convert("L")) < 200).any(axis=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_sign_times_is_no_empty_box_without_fonts(no_fonts: None, size: int) -> None:
    assert ImageChops.difference(drawn("LoRA × 1", size), drawn("LoRA x 1", size)).getbbox() is None
    assert ImageChops.difference(drawn("LoRA × 1", size), drawn("LoRA ￿ 1", size)).getbbox()


@pytest.mark.parametrize("size", SIZES)
def test_words_stay_apart_without_fonts(no_fonts: None, size: int) -> None:
    columns = ink_columns("fox jumps over the lazy dog", size)
    inked = np.flatnonzero(columns)
    gaps = np.diff(inked)
    assert sorted(gaps)[-5] >= max(3, size // 4), "five gaps between six words"


def test_signs_that_a_font_lacks_become_the_nearest_that_it_has(no_fonts: None) -> None:
    assert Writer(13)._writable("× — é 中 ·") == "x - e ? ·"


def test_any_text_is_drawn_without_freetype(no_freetype: None) -> None:
    assert ink_columns("LoRA × 1 — 中文", 13).any()


@pytest.mark.parametrize("fonts", ["no_fonts", "no_freetype"])
def test_every_picture_is_drawn_without_fonts(fonts, dataset_of_one, request) -> None:
    request.getfixturevalue(fonts)
    cells = [Image.new("RGB", (128, 128))] * 2
    labelled_grid(["without LoRA", "LoRA × 1"], [("seed 3 · 一张照片", cells)])
    loss_curve.loss_curve([0.5, 0.4, float("nan"), 0.3])
    assert contact_sheet(dataset_of_one).shape[0] == 1


@pytest.fixture
def dataset_of_one(tmp_path: Path):
    from in_graph_lora.trainer.data.scan import scan_folder

    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("一张照片 × 1", encoding="utf-8")
    return scan_folder(tmp_path)


def test_a_line_is_cut_where_its_width_ends() -> None:
    line = writer(13).cut("one two three four five six seven", 80)
    assert line.endswith("...")
    assert writer(13).width(line) <= 80


def test_a_long_caption_takes_two_lines_at_the_most() -> None:
    lines = writer(14).wrapped("a word " * 200, 300, 2)
    assert len(lines) == 2
    assert all(writer(14).width(line) <= 300 for line in lines)


def test_the_loss_curve_has_smooth_edges() -> None:
    image = loss_curve.loss_curve([0.5 - 0.001 * i for i in range(300)])
    plot = np.asarray(image.convert("L"))[40:320, 60:620]
    ink, raw, grid, paper = 0x24, 0xC3, 0xEB, 255
    between = [v for v in np.unique(plot) if min(abs(int(v) - c) for c in (ink, raw, grid, paper)) > 6]
    assert len(between) >= 3, "a slanted line has pixels that it covers in part"


def test_node_and_picture_smooth_alike(repo_root: Path) -> None:
    page = (repo_root / "web" / "loss_chart.mjs").read_text()
    (weight,) = re.findall(r"function smoothed\(.*weight = ([0-9.]+)\)", page)
    assert float(weight) == loss_curve.SMOOTHING
