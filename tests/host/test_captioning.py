"""Captions by the CLIP on the canvas and by folders, through ComfyUI's real classes with few weights."""

from __future__ import annotations

import gc
import io
import os
import string
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.boogu
import comfy.text_encoders.joyimage
import comfy.text_encoders.krea2
import comfy.text_encoders.lt
import comfy.text_encoders.lumina2
import comfy.text_encoders.mage_flow
import comfy.text_encoders.qwen3vl
import comfy.text_encoders.qwen35
import comfy.text_encoders.qwen_image
import folder_paths
import numpy as np
import pytest
import torch
from PIL import Image

from in_graph_lora.nodes.caption_images import CaptionImages
from in_graph_lora.trainer.data.captioners import CaptionRequest
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host.captioning import (
    ClipCaptioner,
    _tokens,
    clip_captioner,
    folder_captioner,
    folder_identity,
    model_folder,
)

from ..tiny_captioners import blip, tagger
from ..tiny_models import randomise

pytestmark = pytest.mark.slow

encoders = comfy.text_encoders
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2}
SEEING = {
    "Qwen3-VL 4B": (encoders.qwen3vl.te(model_type="qwen3vl_4b"), encoders.qwen3vl.tokenizer("qwen3vl_4b")),
    "Qwen3-VL 8B": (encoders.qwen3vl.te(model_type="qwen3vl_8b"), encoders.qwen3vl.tokenizer("qwen3vl_8b")),
    "Qwen3.5": (encoders.qwen35.te(model_type="qwen35_2b"), encoders.qwen35.tokenizer("qwen35_2b")),
    "Krea 2": (encoders.krea2.te(), encoders.krea2.Krea2Tokenizer),
    "Boogu": (encoders.boogu.te(), encoders.boogu.BooguTokenizer),
    "JoyImage": (encoders.joyimage.te(), encoders.joyimage.JoyImageTokenizer),
    "Mage-Flow": (encoders.mage_flow.te(), encoders.mage_flow.MageFlowTokenizer),
}


def made(model: Any, tokenizer: Any, data: Any = (), **sizes: dict[str, Any]) -> comfy.sd.CLIP:
    options = {"dtype": torch.float32, **{f"{name}_model_config": dict(own) for name, own in sizes.items()}}
    target = comfy.supported_models_base.ClipTarget(tokenizer, model)
    clip = comfy.sd.CLIP(target, tokenizer_data=dict(data), model_options=options)
    randomise(clip.cond_stage_model, 0)
    return clip


def gemma3(vision: bool = True) -> comfy.sd.CLIP:
    """With a vocabulary of its own: Gemma's comes with its weights."""
    import sentencepiece

    pieces = io.BytesIO()
    words = [f"{a}{b} " for a in string.ascii_lowercase for b in string.ascii_lowercase]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=pieces, vocab_size=200, model_type="bpe", minloglevel=2
    )
    name = "gemma3_4b_vision" if vision else "gemma3_4b"
    sizes = {name: {**TEXT, "num_hidden_layers": 3, "vocab_size": 200}}
    encoder = encoders.lumina2.te(model_type=name)
    return made(encoder, encoders.lumina2.NTokenizer, {"spiece_model": pieces.getvalue()}, **sizes)


@pytest.fixture(scope="module")
def small_vision():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("qwen3vl_4b", "qwen3vl_8b"):
            own = {k: v for k, v in VISION.items() if k != "num_heads"} | {"deepstack_visual_indexes": [0, 1]}
            patch.setitem(encoders.qwen3vl.QWEN3VL_VISION, name, own)
        patch.setitem(encoders.qwen3vl.QWEN3VL_VISION_COMMON, "num_heads", 2)
        qwen35 = {"vision": VISION, "num_hidden_layers": 4, "linear_num_key_heads": 2}
        qwen35 |= {"linear_num_value_heads": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
        patch.setitem(
            encoders.qwen35.QWEN35_MODELS,
            "qwen35_2b",
            {**encoders.qwen35.QWEN35_MODELS["qwen35_2b"], **qwen35},
        )
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = encoders.llama.Gemma3_4B_Vision_Config
        patch.setattr(config, "vision_config", {**config.vision_config, **small, "image_size": 224})
        yield


@pytest.fixture(scope="module", params=[*SEEING, "Gemma 3"])
def seeing(request, small_vision) -> comfy.sd.CLIP:
    if request.param == "Gemma 3":
        return gemma3()
    if request.param == "Qwen3.5":
        return made(*SEEING[request.param], qwen35_2b={"hidden_size": 32, "intermediate_size": 64})
    return made(*SEEING[request.param], qwen3vl_4b=TEXT, qwen3vl_8b=TEXT)


@pytest.fixture(scope="module")
def qwen(small_vision) -> comfy.sd.CLIP:
    return made(*SEEING["Qwen3-VL 4B"], qwen3vl_4b=TEXT)


def pictures(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 4, 4, 3), dtype=np.uint8)
    return [Image.fromarray(p).resize((64, 64), Image.Resampling.NEAREST) for p in pixels]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pictures(3)):
        picture.save(folder / f"{i}.png")
    return folder


def test_a_text_encoder_that_sees_captions_each_picture_in_its_own_words(seeing):
    with torch.inference_mode():
        captioner = ClipCaptioner(seeing, CaptionRequest(prompt="a", max_length=4))
        said = captioner.caption(pictures(4), 0)
        assert captioner.caption(pictures(4), 1) == said, "nothing is drawn without a temperature"
    assert all(said)
    assert len(set(said)) > 1


def test_the_words_are_those_of_cores_generate_text(qwen):
    picture = pictures(1)[0]
    image = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).unsqueeze(0)
    with torch.inference_mode():
        tokens = qwen.tokenize("what is it?", image=image, skip_template=False, min_length=1, thinking=False)
        stock = qwen.decode(qwen.generate(tokens, do_sample=False, max_length=4))
        ours = ClipCaptioner(qwen, CaptionRequest(prompt="what is it?", max_length=4)).caption([picture], 0)
    assert ours == [stock]


def test_a_temperature_draws_by_the_seed_alone(qwen):
    with torch.inference_mode():
        captioner = ClipCaptioner(qwen, CaptionRequest(max_length=6, temperature=1.5))
        drawn = [captioner.caption(pictures(1), seed) for seed in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


def test_every_family_is_asked_and_lets_the_model_answer(seeing):
    captioner = ClipCaptioner(seeing, CaptionRequest(prompt="what is it?"))
    tokens = _tokens(captioner._reader, "what is it?", torch.zeros(1, 64, 64, 3), **captioner._template)
    ids = [token[0] for part in tokens.values() for chunk in part for token in chunk]
    assert sum(isinstance(i, dict) for i in ids) == 1
    if "gemma3_4b" in tokens:
        return  # its marks are no tokens of the small vocabulary
    text = seeing.decode([i for i in ids if not isinstance(i, dict)], skip_special_tokens=False)
    assert "what is it?" in text
    assert "alter or modify" not in text
    assert text.rpartition("<|im_start|>")[2].startswith("assistant\n")


def test_an_embedding_in_a_prompt_is_not_loaded(qwen, tmp_path, monkeypatch):
    import comfy.sd1_clip as sd1

    monkeypatch.setattr(qwen.tokenizer.qwen3vl_4b, "embedding_directory", str(tmp_path))
    monkeypatch.setattr(sd1, "load_embed", lambda *_: pytest.fail("a file was looked for"))
    captioner = ClipCaptioner(qwen, CaptionRequest(prompt="what is embedding:foo ?", max_length=1))
    with torch.inference_mode():
        captioner.caption(pictures(1), 0)


SD1 = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}


def test_a_text_encoder_that_writes_nothing_is_named_with_what_to_do():
    clip = made(comfy.sd1_clip.SD1ClipModel, comfy.sd1_clip.SD1Tokenizer, clip_l=SD1)
    with pytest.raises(ModelError, match="SD1ClipModel writes no text; connect one that sees.*Qwen3-VL"):
        clip_captioner(clip, CaptionRequest())


def test_a_text_encoder_that_does_not_look_is_named_with_what_to_do():
    image = encoders.qwen_image
    with pytest.MonkeyPatch.context() as patch:
        # Its eyes have one size, which no test has room for; it is never asked to look.
        patch.setattr(encoders.llama.qwen_vl, "Qwen2VLVisionTransformer", lambda **_: torch.nn.Identity())
        clip = made(image.QwenImageTEModel, image.QwenImageTokenizer, qwen25_7b=TEXT)
    with pytest.raises(ModelError, match="QwenImageTEModel does not see pictures; connect one that sees"):
        clip_captioner(clip, CaptionRequest())


def test_a_text_encoder_whose_file_has_no_eyes_is_named_with_what_to_do():
    with pytest.raises(ModelError, match="does not see pictures; connect one that sees"):
        clip_captioner(gemma3(vision=False), CaptionRequest())


def test_the_identity_of_a_clip_is_that_of_its_weights(qwen, small_vision):
    again = made(*SEEING["Qwen3-VL 4B"], qwen3vl_4b=TEXT)
    first, second = (clip_captioner(clip, CaptionRequest())[0] for clip in (qwen, again))
    assert first
    assert first == second
    with torch.no_grad():
        next(again.cond_stage_model.parameters()).add_(1)
    assert clip_captioner(again, CaptionRequest())[0] != first


# --- folders ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm(host_base: Path, tmp_path_factory) -> Path:
    folder = Path(folder_paths.models_dir) / "LLM"
    blip(folder / "tiny-blip")
    return folder


def test_a_folder_is_found_by_its_name_in_comfyuis_folders_or_by_its_path(llm, tmp_path):
    assert model_folder(" tiny-blip ") == llm / "tiny-blip"
    assert model_folder("LLM/tiny-blip") == llm / "tiny-blip"
    assert model_folder(f'"{llm / "tiny-blip"}"') == llm / "tiny-blip"
    other = Path(folder_paths.get_folder_paths("text_encoders")[0]) / "other"
    other.mkdir(parents=True, exist_ok=True)
    (other / "config.json").write_text("{}")
    assert model_folder("other") == other


@pytest.mark.parametrize("name", ["", "  ", "no such", "../LLM/../../x", "LLM", "\0", "~nobody/x"])
def test_any_other_name_is_one_sentence(llm, name):
    with pytest.raises(ModelError, match="model_folder: "):
        model_folder(name)


def test_a_relative_name_never_leads_out_of_the_models(llm, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="there is no folder"):
        model_folder(os.path.relpath(tmp_path, llm))


def test_a_folder_is_another_when_a_file_in_it_changes(llm):
    before = folder_identity(llm / "tiny-blip")
    assert folder_identity(llm / "tiny-blip") == before
    os.utime(llm / "tiny-blip" / "config.json", ns=(1, 1))
    assert folder_identity(llm / "tiny-blip") != before


def test_a_folder_of_transformers_is_given_room_and_leaves_nothing_behind(llm, monkeypatch):
    asked: list[float] = []
    monkeypatch.setattr(mm, "free_memory", lambda size, device: asked.append(size))
    _, start = folder_captioner("tiny-blip", CaptionRequest(max_length=3))
    with torch.inference_mode(), start() as captioner:
        assert len(captioner.caption(pictures(1), 0)) == 1
        model = weakref.ref(captioner._model)
    gc.collect()
    assert model() is None
    assert asked == [1.3 * (llm / "tiny-blip" / "model.safetensors").stat().st_size]


# --- the node --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_a_node(monkeypatch):
    monkeypatch.setattr(CaptionImages, "hidden", SimpleNamespace(unique_id="1"))


def captions_of(dataset: Any, **inputs: Any) -> tuple[list[str], list[str]]:
    """(captions, texts on the node)"""
    defaults = {"method": "template", "trigger": "", "class_word": "", "template": "", "on_existing": "keep"}
    with torch.inference_mode():
        done = CaptionImages.execute(dataset, **{**defaults, **inputs})
    return done.result[1], done.ui["text"]


def test_the_node_captions_with_a_clip_and_uses_what_it_wrote_again(qwen, folder, output, monkeypatch):
    data = scan_folder(folder)
    inputs = {"method": "clip", "clip": qwen, "max_length": 4, "trigger": "ohwx", "template": "{trigger}"}
    first, _ = captions_of(data, **inputs)
    assert all(caption.startswith("ohwx, ") for caption in first)
    assert len(list((output / "in-graph-lora" / "captions").rglob("*.json"))) == 3
    monkeypatch.setattr(ClipCaptioner, "caption", lambda *_: pytest.fail("asked again"))
    assert captions_of(data, **inputs)[0] == first


def test_an_interrupt_keeps_the_captions_that_are_written(qwen, folder, output, monkeypatch):
    data = scan_folder(folder)
    inputs = {"method": "clip", "clip": qwen, "max_length": 2}
    calls: list[int] = []

    def pressed():
        calls.append(1)
        if len(calls) == 4:  # once a picture before it is looked at, once after
            raise mm.InterruptProcessingException

    monkeypatch.setattr("in_graph_lora.trainer.host.captioning.check_interrupt", pressed)
    monkeypatch.setattr("in_graph_lora.nodes.caption_images.check_interrupt", pressed)
    with pytest.raises(mm.InterruptProcessingException):
        captions_of(data, **inputs)
    assert len(list((output / "in-graph-lora" / "captions").rglob("*.json"))) == 2
    monkeypatch.undo()


def test_pictures_with_a_caption_are_not_looked_at_unless_asked(llm, folder, output):
    (folder / "0.txt").write_text("by hand")
    data = scan_folder(folder)
    inputs = {"method": "model_folder", "model_folder": "tiny-blip", "max_length": 3}
    said, _ = captions_of(data, **inputs)
    assert said[0] == "by hand"
    assert len(list((output / "in-graph-lora" / "captions").rglob("*.json"))) == 2
    assert captions_of(data, **inputs, on_existing="overwrite")[0][0] != "by hand"


def test_a_tagger_writes_tags_and_caption_files_when_asked(tmp_path, folder, output):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    wd = tagger(tmp_path / "wd", [0.0, 0.9, 0.0, 0.0, 0.9, 0.0, -9.0])
    inputs = {"method": "model_folder", "model_folder": str(wd), "trigger": "ohwx", "template": "{trigger}"}
    said, _ = captions_of(scan_folder(folder), **inputs)
    assert said == ["ohwx, hatsune miku, 1girl"] * 3
    assert not list(folder.glob("*.txt"))
    (folder / "1.txt").write_text("by hand")
    inputs |= {"on_existing": "overwrite"}
    _, texts = captions_of(scan_folder(folder), **inputs, write_sidecars="new")
    assert texts[:2] == [
        "2 caption files written, 0 were so already",
        "not overwritten: 1.txt; choose write_sidecars overwrite to replace them",
    ]
    captions_of(scan_folder(folder), **inputs, write_sidecars="overwrite")
    assert [p.read_text() for p in sorted(folder.glob("*.txt"))] == ["ohwx, hatsune miku, 1girl\n"] * 3
    assert (folder / "1.txt.bak").read_text() == "by hand"


def test_the_method_clip_without_a_clip_says_what_to_connect(folder):
    with pytest.raises(ModelError, match="clip: is not connected.*Qwen3-VL"):
        captions_of(scan_folder(folder), method="clip")


def test_the_node_runs_again_when_the_model_in_the_folder_changes(llm):
    inputs = {"method": "model_folder", "model_folder": "tiny-blip"}
    before = CaptionImages.fingerprint_inputs(**inputs)
    assert before
    os.utime(llm / "tiny-blip" / "config.json", ns=(5, 5))
    assert CaptionImages.fingerprint_inputs(**inputs) != before
    assert CaptionImages.fingerprint_inputs(method="model_folder", model_folder=None) == ""
    assert CaptionImages.fingerprint_inputs(method="template", model_folder="tiny-blip") == ""
