"""Tags by WD taggers: real files, run by onnxruntime."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data.captioners import CaptionRequest
from in_graph_lora.trainer.data.tagger import TagCaptioner, prepared, read_tags
from in_graph_lora.trainer.errors import ModelError

from ..tiny_captioners import SIDE, tagger

SCORES = [0.99, 0.9, 0.5, 0.36, 0.9, 0.99, 0.0]


def tags(folder: Path, request=None) -> TagCaptioner:
    return TagCaptioner(folder, request or CaptionRequest(batch=2), on_gpu=False, check=lambda: None)


@pytest.fixture
def wd(tmp_path) -> Path:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return tagger(tmp_path / "wd", SCORES)


def test_a_tagger_names_characters_then_what_is_seen_the_surest_first(wd):
    black, blue = (Image.new("RGB", (9, 9), colour) for colour in ("black", "blue"))
    assert tags(wd).caption([black, blue], 0) == [
        "hatsune miku, 1girl, long hair, ^_^",
        "hatsune miku, red sofa, 1girl, long hair, ^_^",
    ]


def test_thresholds_hold_for_their_own_category(wd):
    black = [Image.new("RGB", (9, 9))]
    assert tags(wd, CaptionRequest(threshold=0.6)).caption(black, 0) == ["hatsune miku, 1girl"]
    assert tags(wd, CaptionRequest(threshold=0.6, character_threshold=1.0)).caption(black, 0) == ["1girl"]


def test_a_tagger_for_a_fixed_number_of_pictures_takes_fewer(tmp_path, wd):
    fixed = tags(tagger(tmp_path / "fixed", SCORES, batch=4), CaptionRequest(batch=1))
    assert fixed.batch == 4
    black = Image.new("RGB", (9, 9))
    assert fixed.caption([black] * 3, 0) == tags(wd).caption([black] * 3, 0)


def test_a_table_of_another_model_is_refused(wd):
    table = wd / "selected_tags.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]))
    with pytest.raises(ModelError, match=r"gives \['batch', 7\], and selected_tags.csv has 6 rows"):
        tags(wd)
    table.write_text("a,b\n1,2\n")
    with pytest.raises(ModelError, match="is not a tagger's table"):
        read_tags(table)


def test_a_model_that_is_no_onnx_file_is_refused(wd):
    (wd / "model.onnx").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"model\.onnx cannot be read"):
        tags(wd)


def test_without_onnxruntime_the_command_to_install_it_is_said(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelError, match="python -m pip install onnxruntime"):
        tags(tmp_path)


def test_a_picture_lies_on_a_white_square_with_blue_first():
    pixels = prepared(Image.new("RGB", (SIDE, 4), (10, 20, 30)), SIDE)
    assert pixels.shape == (SIDE, SIDE, 3)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[SIDE // 2, SIDE // 2].tolist() == [30, 20, 10]
