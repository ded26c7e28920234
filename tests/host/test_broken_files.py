"""Broken LoRA files: one sentence when they are read, never a traceback in the sampler."""

from __future__ import annotations

import os
import shutil
from unittest.mock import patch

import comfy.lora
import comfy.sd
import pytest
import torch
from safetensors.torch import save_file

from in_graph_lora.nodes.apply_lora import ApplyLoRA
from in_graph_lora.trainer.adapters.lora_file import write_lora
from in_graph_lora.trainer.adapters.readers import read_start
from in_graph_lora.trainer.config import AdapterConfig, TrainConfig
from in_graph_lora.trainer.errors import LoraFileError
from in_graph_lora.trainer.host import checked, paths
from in_graph_lora.trainer.host import lora as host
from in_graph_lora.trainer.runs import checkpoints
from in_graph_lora.trainer.runs.folder import RunFolder
from in_graph_lora.trainer.runs.past import load_past_run
from in_graph_lora.trainer.runs.record import Record

from ..tiny_models import TINY, build
from .broken import LAYERS, RANK, Layer, broken, file, whole

pytestmark = pytest.mark.slow

WHOLE = [(layer, kind) for layer, at in LAYERS.items() for kind in whole(at)]
TUCKER_LOKR = ("conv", "tucker lokr")
"""ComfyUI logs an error of torch.kron's and leaves the layer as it is."""
BROKEN = {f"{layer}: {what}": (layer, made) for layer, at in LAYERS.items() for what, made in broken(at)}


@pytest.fixture(scope="module")
def models():
    return {family: build(TINY[family]) for family in {at.family for at in LAYERS.values()}}


@pytest.fixture(scope="module")
def known(models):
    """Family → what `read_start` is told of the model."""
    return {family: (host.aliases(m), host.layer_shapes(m)) for family, m in models.items()}


def patched_weights(patcher) -> dict[str, torch.Tensor]:
    weights = patcher.model.state_dict()
    with torch.inference_mode():
        return {
            key: comfy.lora.calculate_weight(patches, weights[key].clone(), key)
            for key, patches in patcher.patches.items()
        }


@pytest.mark.parametrize(("layer", "kind"), [case for case in WHOLE if case != TUCKER_LOKR])
def test_a_whole_file_of_every_kind_acts_as_in_stock_lora_loader(models, layer, kind):
    at = LAYERS[layer]
    model, made = models[at.family], file(at, whole(at)[kind])
    ours, _ = host.apply_lora(model, None, made, 0.7, 0.0)
    stock, _ = comfy.sd.load_lora_for_models(model, None, made, 0.7, 0.0)
    found, expected = patched_weights(ours), patched_weights(stock)
    assert found.keys() == expected.keys()
    before = model.model.state_dict()
    for key, weight in expected.items():
        assert torch.equal(found[key], weight)
        assert weight.shape != before[key].shape or not torch.equal(weight, before[key])


def test_a_tucker_lokr_acts_though_the_stock_loader_cannot_apply_it(models):
    at = LAYERS["conv"]
    roles = whole(at)["tucker lokr"]
    model = models[at.family]
    key = f"{at.name}.weight"
    before = model.model.state_dict()[key]
    ours, _ = host.apply_lora(model, None, file(at, roles), 0.7, 0.0)
    w2 = torch.einsum("ij...,ip,jr->pr...", roles["lokr_t2"], roles["lokr_w2_a"], roles["lokr_w2_b"])
    change = torch.einsum("ac,bdkl->abcdkl", roles["lokr_w1"], w2).reshape(at.shape)
    expected = before + 0.7 * roles["alpha"] / RANK * change
    torch.testing.assert_close(patched_weights(ours)[key], expected)
    stock, _ = comfy.sd.load_lora_for_models(model, None, file(at, roles), 0.7, 0.0)
    assert torch.equal(patched_weights(stock)[key], before)


def test_a_file_without_tensors_is_refused(models, known):
    assert "0 tensors" in refusal(lambda: host.apply_lora(models["sd15"], None, {}, 1.0, 1.0))
    assert "no tensors" in refusal(lambda: read_start({}, *known["sd15"]))


def test_the_table_of_broken_files_is_long_and_on_three_families():
    assert len(BROKEN) >= 170
    assert {LAYERS[layer].family for layer, _ in BROKEN.values()} == {"sd15", "z_image", "flux1"}


def refusal(read) -> str:
    with pytest.raises(LoraFileError) as refused:
        read()
    message = str(refused.value)
    assert "\n" not in message
    assert message.split("; ")[-1], "a remedy follows"
    return message


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_is_refused_in_one_sentence_by_apply_and_by_start(models, known, what):
    layer, made = BROKEN[what]
    at = LAYERS[layer]
    assert at.name in refusal(lambda: host.apply_lora(models[at.family], None, made, 1.0, 1.0))
    assert at.name in refusal(lambda: read_start(made, *known[at.family]))


@pytest.fixture
def lora_folder(host_base):
    """A folder that ComfyUI lists LoRA files of; what a test puts there is taken away again."""
    folder = host_base / "models" / "loras" / "broken"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


NO_FILES = {
    "link to nothing": lambda path: path.symlink_to(path.with_name("gone")),
    "pipe": lambda path: os.mkfifo(path),
    "text": lambda path: path.write_text("not a tensor in sight"),
    "half a pair": lambda path: save_file(
        {f"{LAYERS['linear'].name}.lora_A.weight": torch.ones(2, 64)}, path
    ),
    "no tensors": lambda path: save_file({}, path),
}


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need other rights")
@pytest.mark.parametrize("what", NO_FILES)
def test_the_nodes_refuse_what_is_no_lora_under_a_listed_name(models, lora_folder, what):
    NO_FILES[what](lora_folder / f"{what}.safetensors")
    name = f"broken/{what}.safetensors"
    refusal(
        lambda: ApplyLoRA.execute(model=models["sd15"], strength_model=1, strength_clip=1, lora_name=name)
    )
    config = TrainConfig(adapter=AdapterConfig(start_from=name))
    refusal(lambda: checked.starting_lora(models["sd15"], config, lambda event: None))


def test_a_name_that_became_a_folder_is_refused(models, lora_folder):
    """ComfyUI's list may be older than the folder."""
    path = lora_folder / "x.safetensors"
    path.write_text("soon gone")
    assert "broken/x.safetensors" in paths.lora_names()
    path.unlink()
    path.mkdir()
    with patch.object(paths, "lora_names", lambda: ["broken/x.safetensors"]):
        assert "is no file" in refusal(lambda: paths.lora_path("broken/x.safetensors"))


def test_load_run_refuses_a_broken_checkpoint(tmp_path):
    folder = RunFolder.create(tmp_path, TrainConfig(), Record(key="k", dataset="d"))
    path = checkpoints.lora_path(folder.checkpoints, 3)
    write_lora({"a.lora_A.weight": torch.ones(2, 4), "a.lora_B.weight": torch.ones(4, 2)}, path, {})
    assert load_past_run(folder, 3).step == 3
    write_lora({"a.lora_A.weight": torch.ones(2, 4)}, path, {})
    assert "no lora_B" in refusal(lambda: load_past_run(folder, 3))


class TestTextEncoder:
    NAME = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    WHOLE = {"lora_A": torch.ones(2, 768), "lora_B": torch.ones(768, 2), "alpha": torch.tensor(1.0)}
    BROKEN = {
        "half a pair": {"lora_B": torch.ones(768, 2)},
        "another width": {**WHOLE, "lora_A": torch.ones(2, 1024)},
        "NaN": {**WHOLE, "lora_A": torch.full((2, 768), torch.nan)},
        "a second kind": {**WHOLE, "oft_blocks": torch.ones(192, 4, 4)},
    }

    def layer(self) -> Layer:
        return Layer("sd15", self.NAME, (768, 768), bias=True)

    def test_a_whole_lora_acts_as_in_stock_lora_loader(self, loaded):
        made = file(self.layer(), self.WHOLE)
        _, ours = host.apply_lora(loaded.model, loaded.clip, made, 1.0, 0.5)
        _, stock = comfy.sd.load_lora_for_models(loaded.model, loaded.clip, made, 1.0, 0.5)
        found, expected = patched_weights(ours.patcher), patched_weights(stock.patcher)
        assert len(expected) == 1
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())

    @pytest.mark.parametrize("what", BROKEN)
    def test_a_broken_lora_is_refused_in_one_sentence(self, loaded, what):
        made = file(self.layer(), self.BROKEN[what])
        assert self.NAME in refusal(lambda: host.apply_lora(loaded.model, loaded.clip, made, 1.0, 1.0))
