"""EditCaptions behind any source, and what of captions gets into a LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from in_graph_lora.nodes.caption_images import CaptionImages
from in_graph_lora.nodes.edit_captions import EditCaptions
from in_graph_lora.trainer.config import AdapterConfig, DataConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.host.training import train_on_loaded

from .loaded import write_pictures

NO_EDITS = {
    "prefix": "", "suffix": "", "replacements": "", "class_word": "", "trigger": "", "min_count": 1,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "private folder" / "pictures"
    folder.mkdir(parents=True)
    write_pictures(folder, [(64, 64)] * 2)
    for path, text in zip(sorted(folder.glob("*.png")), ("a grey dog", "a dog, sofa"), strict=True):
        path.with_suffix(".txt").write_text(text)
    return folder


def test_the_node_says_how_many_captions_changed_and_which_are_empty_now(folder):
    done = EditCaptions.execute(scan_folder(folder), **{**NO_EDITS, "replacements": "a grey dog =>"})
    names = sorted(p.name for p in folder.glob("*.png"))
    assert done.result[1] == ["", "a dog, sofa"]
    assert done.ui["text"][:2] == ["1 of 2 captions changed", f"left without a caption: {names[0]}"]


def test_the_same_graph_run_again_over_its_own_files_changes_nothing_more(folder):
    edits = {**NO_EDITS, "prefix": "{trigger},", "class_word": "dog", "trigger": "ohwx"}
    first = EditCaptions.execute(scan_folder(folder), **edits, write_sidecars="overwrite")
    assert first.result[1] == ["ohwx, a grey ohwx", "ohwx, a ohwx, sofa"]
    again = EditCaptions.execute(scan_folder(folder), **edits, write_sidecars="overwrite")
    assert again.result[1] == first.result[1]
    assert again.ui["text"][:2] == ["0 of 2 captions changed", "0 caption files written, 2 were so already"]
    assert sorted(p.read_text() for p in folder.glob("*.bak")) == ["a dog, sofa", "a grey dog"]


@pytest.mark.slow
def test_a_saved_lora_holds_captions_and_no_folder(loaded, folder, output, monkeypatch):
    monkeypatch.setattr(CaptionImages, "hidden", SimpleNamespace(unique_id="1"))
    options = {"trigger": "ohwx", "class_word": "dog", "on_existing": "overwrite"}
    told = CaptionImages.execute(
        scan_folder(folder, resolution=64), "filename", template="{trigger} {filename}", **options
    )
    dataset = EditCaptions.execute(told.result[0], **{**NO_EDITS, "suffix": ", {filename}"}).result[0]
    dataset = replace(dataset, resolution=64)
    config = TrainConfig(
        name="test",
        steps=1,
        adapter=AdapterConfig(rank=2),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        data=DataConfig(resolution=64),
    )
    with torch.inference_mode():
        result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, config, lambda _: None, new_run=True
        )
    with safe_open(result.path, framework="pt") as file:
        metadata = file.metadata()
    assert "ohwx" in metadata["ss_tag_frequency"]
    everything = " ".join([*metadata, *metadata.values()])
    for part in (str(folder), folder.name, folder.parent.name, str(Path.home())):
        assert part not in everything
