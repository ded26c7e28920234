"""Vectors for a word: only they are trained, and ComfyUI's own loader gives what was trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import torch
from comfy.text_encoders.hunyuan_video import HunyuanVideoTokenizer
from PIL import Image
from safetensors import safe_open

from in_graph_lora.nodes.textual_inversion import TextualInversion
from in_graph_lora.nodes.training_inputs import train_config
from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    EmbeddingConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.embedding import BUNDLED
from in_graph_lora.trainer.errors import ConfigError, DatasetError, LoraFileError, ModelError
from in_graph_lora.trainer.events import Notice, PreviewSaved, RunStarted, StepDone
from in_graph_lora.trainer.host import paths
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.embedding import _tokenizes_vectors, initial_vectors
from in_graph_lora.trainer.host.held_out import HeldOut
from in_graph_lora.trainer.host.lora import apply_lora
from in_graph_lora.trainer.host.sample import encode_prompt
from in_graph_lora.trainer.host.text_model import borrowed_clip
from in_graph_lora.trainer.host.training import plan_on_loaded, train_on_loaded

from .loaded import Loaded, identities, output_folder, weight_hash, write_pictures

pytestmark = pytest.mark.slow

WORD = "aawxbc"
ALONE = EmbeddingConfig(placeholder=WORD, initial_word="toy", vectors=2, learning_rate=1e-2)
JOINT = replace(ALONE, with_lora=True)
SETTINGS: dict[str, Any] = {
    "name": "mine",
    "steps": 5,
    "adapter": AdapterConfig(rank=2, dropout=0.2),
    "objective": ObjectiveConfig(caption_dropout=0.3),
    "optimizer": OptimizerConfig(learning_rate=1e-3, ema_decay=0.9, warmup_steps=1),
    "data": DataConfig(resolution=64, batch_size=2),
    "save": SaveConfig(every=2),
}


class Stop(BaseException):
    """Like ComfyUI's interrupt."""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64), (128, 32), (64, 64)])


@pytest.fixture(scope="module")
def canvas(loaded: Loaded) -> Loaded:
    """With the embeddings of the output folder, as a loader node gives a CLIP."""
    clip = loaded.clip.clone()
    clip.tokenizer = type(clip.tokenizer)(embedding_directory=[])
    return Loaded(loaded.model, clip, loaded.vae)


def run(canvas: Loaded, pictures: Path, output: Path, *, stop_at: int = 0, keep_at: int = 0, **more: Any):
    """(result, events). stop_at: Cancel after that step. keep_at: "stop and keep"."""
    events: list[Any] = []
    config = TrainConfig(**{**SETTINGS, **more})

    def emit(event: Any) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == stop_at:
            raise Stop

    def stop_requested() -> bool:
        return bool(keep_at) and any(isinstance(e, StepDone) and e.step == keep_at for e in events)

    with torch.inference_mode(), output_folder(output):
        canvas.clip.tokenizer.clip_l.embedding_directory = [str(paths.embedding_directory())]
        result = train_on_loaded(
            canvas.model, canvas.clip, canvas.vae, scan_folder(pictures, resolution=64), config, emit,
            stop_requested=stop_requested,
        )  # fmt: skip
    return result, events


@pytest.fixture(scope="module", params=[ALONE, JOINT], ids=["alone", "with a LoRA"])
def done(request: Any, canvas: Loaded, pictures: Path, tmp_path_factory: Any) -> SimpleNamespace:
    """A run with a preview, and what it was before."""
    output = tmp_path_factory.mktemp("output")
    model, text = canvas.model.model, canvas.clip.cond_stage_model
    before = weight_hash(model), weight_hash(text), identities(text)
    preview = PreviewConfig(prompts=(f"a photo of {WORD}", "a dog"), every=100, steps=1, cfg=1.0)
    result, events = run(canvas, pictures, output, embedding=request.param, preview=preview)
    return SimpleNamespace(
        config=request.param, output=output, before=before, result=result, events=events, preview=preview
    )


def own_file(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118 - not a dict


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def condition_of(clip: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return encode_prompt(clip, text)[0][0]


def test_nothing_but_the_vectors_and_the_lora_has_changed(done, canvas):
    model, text = canvas.model.model, canvas.clip.cond_stage_model
    assert (weight_hash(model), weight_hash(text), identities(text)) == done.before
    start = initial_vectors(canvas.clip, "toy", 2)["clip_l"]
    assert torch.equal(start[0], text.clip_l.transformer.get_input_embeddings().weight[5988])
    trained = done.result.lora[f"{BUNDLED}{WORD}.clip_l"]
    assert (trained != start).all()
    started = next(e for e in done.events if isinstance(e, RunStarted))
    assert (started.layers > 0) == done.config.with_lora
    if not done.config.with_lora:
        assert started.parameters == 2 * 768
        assert done.result.lora.keys() == {f"{BUNDLED}{WORD}.clip_l"}


def test_the_file_is_an_embedding_of_comfyuis_that_says_what_made_it(done):
    path = done.output / "embeddings" / "mine.safetensors"
    tensors, about = own_file(path)
    assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {"clip_l": ((2, 768), torch.float32)}
    assert done.result.embedding == path
    assert about["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert about["modelspec.trigger_phrase"] == WORD
    assert json.loads(about["in_graph_lora.config"])["embedding"]["initial_word"] == "toy"
    assert about["ss_steps"] == "5"
    assert not [key for key in about if key.startswith("ss_network")]
    loras = [p.name for p in (done.output / "loras").glob("*")]
    assert loras == (["mine.safetensors"] if done.config.with_lora else [])
    assert done.result.path == (done.output / "loras" / "mine.safetensors" if loras else path)


@pytest.mark.parametrize("caption", ["a photo of {} figurine", "{}, and (more)", "{}", "on a box, {}."])
def test_its_file_gives_the_conditioning_of_the_training_bit_for_bit(done, canvas, caption):
    """ComfyUI's tokenizer divides at spaces, so that a comma may follow the name and a dot may not."""
    vectors = done.result.lora[f"{BUNDLED}{WORD}.clip_l"]
    texts = HostTextEncoder(canvas.clip, canvas.model)
    with torch.inference_mode(False), borrowed_clip(texts) as text:
        made = text.embed(WORD, "toy", 2)
        made["clip_l"].data = vectors.clone()
        trained = text.condition(caption.format(WORD), torch.zeros(4, 8, 8))["c_crossattn"].cond
    assert trained.requires_grad
    stock_prompt = caption.format("embedding:mine").replace("mine.", "mine .").replace("(more)", r"\(more\)")
    stock = condition_of(canvas.clip, stock_prompt)
    assert torch.equal(trained.detach(), stock)
    assert not torch.equal(stock, condition_of(canvas.clip, caption.format("toy")))


def test_a_clip_with_the_result_reads_the_word_and_the_one_before_does_not(done, canvas):
    with torch.inference_mode():
        model, clip = apply_lora(canvas.model, canvas.clip, done.result.lora, 1.0, 1.0)
        _, off = apply_lora(canvas.model, canvas.clip, done.result.lora, 1.0, 0.0)
    assert clip.patcher is not canvas.clip.patcher
    plain = condition_of(canvas.clip, f"a photo of {WORD}, (big:1.3)")
    vectors = condition_of(canvas.clip, "a photo of embedding:mine, (big:1.3)")
    assert not torch.equal(plain, vectors)
    for text in (WORD, WORD.upper(), f"embedding:{WORD}"):
        assert torch.equal(condition_of(clip, f"a photo of {text}, (big:1.3)"), vectors)
    assert torch.equal(condition_of(clip, f"{WORD}s"), condition_of(canvas.clip, f"{WORD}s"))
    assert torch.equal(condition_of(clip, "embedding:mine"), condition_of(canvas.clip, "embedding:mine"))
    assert torch.equal(condition_of(off, f"a {WORD}"), condition_of(canvas.clip, f"a {WORD}"))
    assert bool(model.patches) == done.config.with_lora
    other = {f"{BUNDLED}<it>.clip_l": torch.ones(1, 768)}
    with torch.inference_mode():
        _, both = apply_lora(model, clip, other, 1.0, 1.0)
    assert torch.equal(condition_of(both, f"a photo of {WORD}, (big:1.3)"), vectors)
    assert not torch.equal(condition_of(both, "<it>"), condition_of(clip, "<it>"))


def test_without_a_clip_the_user_is_told(done, canvas):
    said: list[str] = []
    apply_lora(canvas.model, None, done.result.lora, 1.0, 1.0, notify=said.append)
    assert "connect clip" in said[0]
    with pytest.raises(LoraFileError, match="is no embedding"):
        apply_lora(canvas.model, canvas.clip, {f"{BUNDLED}x.clip_l": torch.tensor([1.0])}, 1.0, 1.0)


def test_previews_and_the_held_out_loss_use_the_vectors(done, canvas, pictures):
    first, last = [e for e in done.events if isinstance(e, PreviewSaved)]
    changed = []
    for before, after in zip(first.paths, last.paths, strict=True):
        with Image.open(before) as a, Image.open(after) as b:
            changed.append(a.tobytes() != b.tobytes())
    assert changed == [True, done.config.with_lora]
    with output_folder(done.output):
        held_out = HeldOut(
            canvas.model, canvas.clip, canvas.vae, scan_folder(pictures, resolution=64).hold_out(1)
        )
        assert not torch.equal(held_out.levels(None, 1.0), held_out.levels(lambda: done.result.lora, 1.0))


def test_a_finished_run_is_loaded_and_a_lost_file_written_again(done, canvas, pictures):
    settings = {"embedding": done.config, "preview": done.preview}
    again, events = run(canvas, pictures, done.output, **settings)
    assert not [e for e in events if isinstance(e, StepDone)]
    assert (again.path, again.embedding) == (done.result.path, done.result.embedding)
    assert same(again.lora, done.result.lora)
    kept = done.result.embedding.read_bytes()
    done.result.embedding.write_bytes(b"something else")
    beside, _ = run(canvas, pictures, done.output, **settings)
    assert beside.embedding.name == beside.path.name == "mine_2.safetensors"
    assert same(own_file(beside.embedding)[0], {"clip_l": done.result.lora[f"{BUNDLED}{WORD}.clip_l"]})
    done.result.embedding.write_bytes(kept)


def test_stopped_after_3_and_resumed_equals_5_straight(done, canvas, pictures, tmp_path):
    with pytest.raises(Stop):
        run(canvas, pictures, tmp_path, embedding=done.config, stop_at=3)
    resumed, events = run(canvas, pictures, tmp_path, embedding=done.config)
    assert [e.step for e in events if isinstance(e, StepDone)] == [4, 5]
    assert same(resumed.lora, done.result.lora)
    assert resumed.losses == done.result.losses


def test_stop_and_keep_leaves_an_embedding_and_goes_on(done, canvas, pictures, tmp_path):
    kept, _ = run(canvas, pictures, tmp_path, embedding=done.config, keep_at=2)
    assert kept.stopped
    assert kept.embedding.is_file()
    whole, _ = run(canvas, pictures, tmp_path, embedding=done.config)
    assert same(whole.lora, done.result.lora)
    assert whole.embedding.name == "mine_2.safetensors", "nothing is written over what was kept"


def test_a_training_goes_on_from_the_lora_of_a_pair(done, canvas, pictures, tmp_path, monkeypatch):
    if not done.config.with_lora:
        pytest.skip("there is no LoRA")
    monkeypatch.setattr(paths, "lora_path", lambda name: done.result.path)
    adapter = AdapterConfig(rank=2, start_from="mine.safetensors")
    _, events = run(canvas, pictures, tmp_path, adapter=adapter, steps=1)
    assert any("goes on from its LoRA alone" in e.message for e in events if isinstance(e, Notice))


def test_an_embedding_is_planned_with_a_caption_that_has_it(canvas, pictures, tmp_path):
    config = TrainConfig(**{**SETTINGS, "embedding": replace(ALONE, placeholder="0")})
    with torch.inference_mode(), output_folder(tmp_path):
        plan = plan_on_loaded(
            canvas.model, canvas.clip, canvas.vae, scan_folder(pictures, resolution=64), config, print
        )
    assert plan.measured.adapters == 2 * 768 * 4


def test_captions_without_the_word_are_told_and_teach_nothing(canvas, pictures, tmp_path):
    """The word of the first picture's caption alone; the second batch's gradient is 0."""
    _, events = run(
        canvas, pictures, tmp_path, embedding=replace(ALONE, placeholder="0"), data=DataConfig(resolution=64),
        objective=ObjectiveConfig(), steps=3,
    )  # fmt: skip
    assert any(
        "2 captions lack the placeholder (1.png, 2.png)" in e.message for e in events if isinstance(e, Notice)
    )
    norms = sorted(e.grad_norm for e in events if isinstance(e, StepDone))
    assert norms[:2] == [0.0, 0.0] != norms[2:]


def test_a_placeholder_that_no_caption_has_is_refused(canvas, pictures, tmp_path):
    with pytest.raises(DatasetError, match="no caption has the placeholder 'ohwx'"):
        run(canvas, pictures, tmp_path, embedding=replace(ALONE, placeholder="ohwx"))


def test_a_text_encoder_that_takes_no_embeddings_is_refused(canvas, loaded, pictures, tmp_path):
    bare = Loaded(canvas.model, loaded.clip.clone(), canvas.vae)
    bare.clip.tokenizer = type(loaded.clip.tokenizer)(embedding_directory=None)
    config = TrainConfig(**{**SETTINGS, "embedding": ALONE})
    with pytest.raises(ModelError, match="ComfyUI gives the text encoder SD1ClipModel no embeddings"):
        train_on_loaded(bare.model, bare.clip, bare.vae, scan_folder(pictures, resolution=64), config, print)
    both = bare.clip.clone()
    both.tokenizer = HunyuanVideoTokenizer(embedding_directory=[])
    assert not _tokenizes_vectors(both, ["clip_l", "llama"]), "ComfyUI's own tokenizer fails with them"
    with pytest.raises(ConfigError, match="has no token in clip_l"):
        initial_vectors(canvas.clip, "", 1)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (lambda: replace(ALONE, placeholder="my cat"), "choose one word"),
        (lambda: replace(ALONE, initial_word=" "), "initial_word is empty"),
        (lambda: TrainConfig(name="my cat", embedding=ALONE), "cannot stand behind embedding:"),
        (lambda: TrainConfig(embedding=replace(ALONE, placeholder="")), "no trigger word"),
        (lambda: TrainConfig(embedding=ALONE, adapter=AdapterConfig(start_from="x")), "start_from"),
        (
            lambda: TrainConfig(embedding=ALONE, optimizer=OptimizerConfig(text_encoder_lr=1.0)),
            "text_encoder_lr",
        ),
        (
            lambda: TrainConfig(embedding=ALONE, prior=PriorConfig(method="class_images")),
            "Prior Preservation",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(config, words):
    with pytest.raises(ConfigError, match=words):
        config()


def test_the_node_makes_the_settings_and_an_empty_placeholder_is_the_trigger_word(pictures):
    (made,) = TextualInversion.execute(
        placeholder="", initial_word="toy", vectors=2, learning_rate=1e-2, with_lora=True
    ).args
    dataset = replace(scan_folder(pictures, resolution=64), trigger=WORD)
    widgets = {"steps": 5, "learning_rate": 1e-4, "rank": 4, "alpha": 0.0, "batch_size": 1, "train_seed": 0}
    assert train_config(dataset, **widgets, name="mine", embedding=made).embedding == JOINT
    assert not train_config(dataset, **widgets, name="mine").encodes_each_step


def test_prompts_find_what_is_in_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "embeddings", ([], {".safetensors"}))
    with output_folder(tmp_path):
        paths.offer_embeddings()
        paths.offer_embeddings()
        assert folder_paths.get_filename_list("embeddings") == []
        paths.embedding_directory().mkdir()
        (paths.embedding_directory() / "mine.safetensors").touch()
        assert folder_paths.get_filename_list("embeddings") == ["mine.safetensors"]
    assert folder_paths.get_folder_paths("embeddings") == [str(tmp_path / "embeddings")]
