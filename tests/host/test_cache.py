"""What was encoded is kept on disk: found again, never stale, and a run survives whatever happens to it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_management as mm
import pytest
import torch
from PIL import Image

from in_graph_lora.trainer.config import (
    AdapterConfig,
    DataConfig,
    MemoryConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data import store as store_module
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.data.records import Dataset
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.data.store import Store, clear, usage
from in_graph_lora.trainer.errors import ConfigError, DatasetError, StorageError
from in_graph_lora.trainer.events import Notice, StepDone
from in_graph_lora.trainer.host import checked, paths, planning, training
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import MOST, HostLatentEncoder
from in_graph_lora.trainer.host.kept_conditions import pack, same, unpack
from in_graph_lora.trainer.host.kept_samples import LIMIT
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.runs.result import Result

from ..tiny_models import TINY, FakeClip, build
from .loaded import Loaded, output_folder, write_pictures

SIZES = [(64, 64), (64, 32), (64, 64), (32, 64), (64, 64)]
CAPTION_DROPOUT = ObjectiveConfig(caption_dropout=0.2)


class Stop(BaseException):
    """Like ComfyUI's interrupt."""


@dataclass
class Encoders:
    """Counts what VAE and CLIP are asked for."""

    pictures: int = 0
    texts: int = 0

    def reset(self) -> None:
        self.pictures = self.texts = 0

    @property
    def counted(self) -> tuple[int, int]:
        return self.pictures, self.texts


@dataclass
class Run:
    result: Result | None = None
    notices: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    @property
    def lora(self) -> dict[str, bytes]:
        assert self.result is not None
        return {k: t.numpy().tobytes() for k, t in self.result.lora.items()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", SIZES)


@pytest.fixture
def encoders(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Encoders:
    counts = Encoders()
    vae_encode, clip_encode = type(loaded.vae).encode, loaded.clip.encode_from_tokens_scheduled

    def encode(self: Any, pixels: Any) -> Any:
        counts.pictures += 1
        return vae_encode(self, pixels)

    def encode_text(*args: Any, **kwargs: Any) -> Any:
        counts.texts += 1
        return clip_encode(*args, **kwargs)

    monkeypatch.setattr(type(loaded.vae), "encode", encode)
    monkeypatch.setattr(loaded.clip, "encode_from_tokens_scheduled", encode_text)
    return counts


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sample comes from disk each time that it is shown."""
    monkeypatch.setattr(store_module, "IN_MEMORY", 0)


def config(**more: Any) -> TrainConfig:
    sections = {
        "adapter": AdapterConfig(rank=2),
        "objective": CAPTION_DROPOUT,
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
        "data": DataConfig(resolution=64, batch_size=2),
        "save": SaveConfig(every=0),
        "validation": ValidationConfig(held_out=1, every=3),
    }
    return TrainConfig(**{"name": "test", "steps": 3, **sections, **more})


def run(
    loaded: Loaded,
    pictures: Path | Dataset,
    output: Path,
    *,
    settings: TrainConfig | None = None,
    at_step: dict[int, Callable[[], Any]] | None = None,
    new_run: bool = True,
    said: Run | None = None,
    planned: bool = False,
) -> Run:
    """at_step: done after these steps. planned: with a step tried out before."""
    told = said or Run()
    dataset = pictures if isinstance(pictures, Dataset) else scan_folder(pictures, resolution=64)

    def emit(event: Any) -> None:
        if isinstance(event, Notice):
            told.notices.append(event.message)
        if isinstance(event, StepDone):
            told.steps.append(event.step)
            (at_step or {}).get(event.step, lambda: None)()

    with torch.inference_mode(), output_folder(output), pytest.MonkeyPatch.context() as patch:
        if not planned:
            patch.setattr(training, "plan_run", lambda *a, **k: (None, MemoryConfig(fit="manual")))
        told.result = train_on_loaded(
            loaded.model, loaded.clip, loaded.vae, dataset, settings or config(), emit, new_run=new_run
        )
    return told


def cache_of(output: Path) -> Path:
    return output / "in-graph-lora" / "cache"


def entries(output: Path) -> list[Path]:
    return sorted(cache_of(output).glob("??/*.safetensors"))


def encode_only(loaded: Loaded, dataset: Dataset, output: Path, check: Callable[[], None]) -> None:
    """A run up to its first step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mm, "throw_exception_if_processing_interrupted", check)
        patch.setattr(training, "train_lora", lambda *a, **k: None)
        run(loaded, dataset, output)


def test_a_repeated_run_encodes_nothing_and_gives_the_same(loaded, pictures, tmp_path, encoders) -> None:
    first = run(loaded, pictures, tmp_path, planned=True)
    assert encoders.counted == (5, 6)  # each picture; each caption and the empty one
    encoders.reset()
    planning._measured.clear()
    again = run(loaded, pictures, tmp_path, planned=True)
    assert encoders.counted == (0, 0)
    assert again.lora == first.lora


def test_a_resumed_run_encodes_nothing(loaded, pictures, tmp_path, encoders) -> None:
    def stop() -> None:
        raise Stop

    with pytest.raises(Stop):
        run(loaded, pictures, tmp_path, at_step={2: stop})
    encoders.reset()
    resumed = run(loaded, pictures, tmp_path, new_run=False)
    assert encoders.counted == (0, 0)
    assert resumed.steps == [3]


def test_only_what_was_edited_is_encoded_again(loaded, pictures, tmp_path, encoders) -> None:
    def encoded() -> tuple[int, int]:
        encoders.reset()
        encode_only(loaded, scan_folder(pictures, resolution=64), tmp_path, lambda: None)
        return encoders.counted

    assert encoded() == (5, 6)
    (pictures / "1.txt").write_text("another caption")
    assert encoded() == (0, 1)
    Image.new("RGB", (64, 64), "red").save(pictures / "2.png")
    assert encoded() == (1, 0)  # the shape is the same, and so are the conditions
    Image.new("L", (64, 64), 128).save(pictures / "2-masklabel.png")
    assert encoded() == (1, 0)
    assert encoded() == (0, 0)


def test_another_size_guidance_or_syntax_is_another_entry(loaded, pictures, tmp_path, encoders) -> None:
    dataset = scan_folder(pictures, resolution=64)
    encode_only(loaded, dataset, tmp_path, lambda: None)
    encoders.reset()
    encode_only(loaded, replace(dataset, resolution=128), tmp_path, lambda: None)
    assert encoders.pictures == 5
    encoders.reset()
    encode_only(loaded, dataset, tmp_path, lambda: None)
    assert encoders.counted == (0, 0)


@pytest.mark.parametrize("which", ["vae", "clip"])
def test_another_vae_or_text_encoder_takes_nothing_of_the_first(
    loaded, pictures, tmp_path, encoders, which
) -> None:
    dataset = scan_folder(pictures, resolution=64)
    encode_only(loaded, dataset, tmp_path, lambda: None)
    encoders.reset()
    patcher = loaded.vae.patcher if which == "vae" else loaded.clip.patcher
    weights = [p for p in patcher.model.parameters() if p.ndim > 1]
    with torch.inference_mode():
        before = [weight.clone() for weight in weights]
        torch._foreach_add_(weights, 0.01)
        try:
            encode_only(loaded, dataset, tmp_path, lambda: None)
        finally:
            torch._foreach_copy_(weights, before)
    assert encoders.counted == ((5, 0) if which == "vae" else (0, 6))
    encoders.reset()
    encode_only(loaded, dataset, tmp_path, lambda: None)
    assert encoders.counted == (0, 0)


def test_what_is_not_known_to_be_the_same_is_not_taken(
    loaded, pictures, tmp_path, encoders, monkeypatch
) -> None:
    fingerprint = checked.vae_fingerprint
    monkeypatch.setattr(checked, "vae_fingerprint", lambda vae: (fingerprint(vae)[0], ["a wrapper"]))
    dataset = scan_folder(pictures, resolution=64)
    for _ in range(2):
        encoders.reset()
        encode_only(loaded, dataset, tmp_path, lambda: None)
        assert encoders.pictures == 5


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_torn_and_altered_files_are_encoded_anew(loaded, pictures, tmp_path, encoders) -> None:
    first = run(loaded, pictures, tmp_path)
    there = entries(tmp_path)
    for i, path in enumerate(there):
        if i % 2:
            flip(path)
        else:
            path.write_bytes(path.read_bytes()[: 40 + i])
    again = run(loaded, pictures, tmp_path)
    assert again.lora == first.lora
    assert entries(tmp_path) == there
    whole = Store(cache_of(tmp_path), print)
    assert all(whole.get(path.stem) is not None for path in there)


def test_an_entry_that_is_altered_during_the_run_is_encoded_anew(
    loaded, pictures, tmp_path, encoders, no_memory
) -> None:
    straight = run(loaded, pictures, tmp_path / "a")
    harmed = run(
        loaded, pictures, tmp_path / "b", at_step={1: lambda: [flip(p) for p in entries(tmp_path / "b")]}
    )
    assert any("encoded again" in n for n in harmed.notices)
    assert harmed.lora == straight.lora


def test_a_cache_that_vanishes_during_the_run_is_made_again(
    loaded, pictures, tmp_path, encoders, no_memory
) -> None:
    straight = run(loaded, pictures, tmp_path / "a")
    encoders.reset()
    gone = run(loaded, pictures, tmp_path / "b", at_step={2: lambda: shutil.rmtree(cache_of(tmp_path / "b"))})
    assert encoders.pictures == 10
    assert gone.lora == straight.lora
    assert gone.steps[-1] == 3


def test_a_cache_that_vanishes_all_the_time_ends_the_run_with_its_work_saved(
    loaded, pictures, tmp_path, no_memory, monkeypatch
) -> None:
    get = Store.get

    def lost(self: Store, key: str, **how: Any) -> Any:
        clear(cache_of(tmp_path))
        return get(self, key)

    def begin_to_lose() -> None:
        monkeypatch.setattr(Store, "get", lost)

    told = Run()
    with pytest.raises(StorageError, match="loses what step"):
        run(
            loaded,
            pictures,
            tmp_path,
            at_step={1: begin_to_lose},
            said=told,
            settings=config(validation=ValidationConfig(), steps=5),
        )
    assert list(tmp_path.glob("in-graph-lora/test/*/checkpoints/step_*.safetensors"))


def test_a_cache_that_cannot_be_written_leaves_the_run_in_memory(
    loaded, pictures, tmp_path, encoders
) -> None:
    straight = run(loaded, pictures, tmp_path / "a")
    cache_of(tmp_path / "b").parent.mkdir(parents=True)
    cache_of(tmp_path / "b").write_text("a file in its place")
    without = run(loaded, pictures, tmp_path / "b")
    assert sum("stays in memory" in n for n in without.notices) == 1
    assert without.lora == straight.lora


def test_the_size_limit_never_breaks_the_run_that_fills_the_cache(
    loaded, pictures, tmp_path, encoders, no_memory, monkeypatch
) -> None:
    straight = run(loaded, pictures, tmp_path / "a")
    monkeypatch.setenv(LIMIT, "0.0001")  # 100 kB
    small = run(loaded, pictures, tmp_path / "b")
    assert sum("needs more than" in n for n in small.notices) == 1
    assert not any("encoded again" in n for n in small.notices)
    assert small.lora == straight.lora
    monkeypatch.setenv(LIMIT, "0")
    run(loaded, pictures, tmp_path / "c")
    assert usage(cache_of(tmp_path / "c")) == (0, 0)
    monkeypatch.setenv(LIMIT, "much")
    with pytest.raises(ConfigError, match=LIMIT):
        run(loaded, pictures, tmp_path / "c")


def test_interrupted_encoding_goes_on_where_it_was(loaded, pictures, tmp_path, encoders) -> None:
    dataset = scan_folder(pictures, resolution=64)

    def after_three() -> None:
        if len(entries(tmp_path)) == 3:
            raise Stop

    with pytest.raises(Stop):
        encode_only(loaded, dataset, tmp_path, after_three)
    assert len(entries(tmp_path)) == 3
    encoders.reset()
    encode_only(loaded, dataset, tmp_path, lambda: None)
    assert encoders.pictures == 2


def test_a_picture_that_changes_while_it_is_used_is_not_kept_under_the_old_name(
    loaded, pictures, tmp_path, encoders
) -> None:
    dataset = scan_folder(pictures, resolution=64)
    Image.new("RGB", (64, 64), "blue").save(pictures / "3.png")
    with pytest.raises(DatasetError, match=r"3\.png has changed"):
        encode_only(loaded, dataset, tmp_path, lambda: None)
    assert len(entries(tmp_path)) == 3


def _in_child(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_encoding_leaves_only_whole_entries(loaded, pictures, tmp_path, encoders) -> None:
    dataset = scan_folder(pictures, resolution=64)

    def slowly() -> None:
        time.sleep(0.05)

    pid = _in_child(lambda: encode_only(loaded, dataset, tmp_path, slowly))
    while len(entries(tmp_path)) < 2:
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    there = len(entries(tmp_path))
    assert 2 <= there < 11
    encode_only(loaded, dataset, tmp_path, lambda: None)
    assert encoders.pictures == max(0, 5 - there)
    assert not list(cache_of(tmp_path).rglob("*.part"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_train_on_one_cache(loaded, pictures, tmp_path, no_memory) -> None:
    def train(name: str) -> Run:
        return run(loaded, pictures, tmp_path, settings=config(name=name))

    pid = _in_child(lambda: train("other"))
    ours = train("ours")
    assert os.waitpid(pid, 0)[1] == 0
    assert not any("again" in n for n in ours.notices)
    loras = [p.read_bytes()[-500:] for p in sorted(tmp_path.glob("loras/*.safetensors"))]
    assert len(loras) == 2
    assert loras[0] == loras[1]


def test_shuffled_captions_resume_bit_for_bit(loaded, pictures, tmp_path, encoders) -> None:
    for i in range(5):
        (pictures / f"{i}.txt").write_text(f"aawxbc, picture {i}, red, table, photo, night")
    settings = config(
        objective=ObjectiveConfig(tag_shuffle=True, tag_dropout=0.3, caption_variants=3, caption_dropout=0.2)
    )
    dataset = scan_folder(pictures, resolution=64)
    dataset = dataset.with_records(replace(r, captions=("another one, short",)) for r in dataset.records)

    def stop() -> None:
        raise Stop

    straight = run(loaded, dataset, tmp_path / "a", settings=settings)
    with pytest.raises(Stop):
        run(loaded, dataset, tmp_path / "b", settings=settings, at_step={1: stop})
    resumed = run(loaded, dataset, tmp_path / "b", settings=settings, new_run=False)
    assert resumed.steps == [2, 3]
    assert resumed.lora == straight.lora
    assert run(loaded, dataset, tmp_path / "c").lora != straight.lora


@pytest.mark.parametrize("name", TINY)
def test_conditions_of_every_family_come_back_from_disk_as_they_were(name: str, tmp_path: Path) -> None:
    patcher = build(TINY[name])
    texts = encoder(name, patcher)
    with torch.inference_mode(False):
        latent = torch.randn(TINY[name].latent, generator=torch.Generator().manual_seed(1))
        condition, traces = texts.traced("a caption", latent)
        entry = pack(condition)
        assert entry is not None
        Store(tmp_path, print).put("0" * 32, entry)
        found = Store(tmp_path, print).get("0" * 32)
        assert found is not None
        back = unpack(found)
    assert same(condition, back)
    assert [type(c) for c in back.values()] == [type(c) for c in condition.values()]
    for key, cond in condition.items():
        assert cond.can_concat(back[key])
    assert traces == frozenset()


def test_conditions_through_the_network_follow_its_weights(tmp_path: Path, monkeypatch) -> None:
    patcher = build(TINY["sd15"])
    extra_conds, net = patcher.model.extra_conds, patcher.model.diffusion_model

    def through_network(**kwargs: Any) -> Any:
        out = extra_conds(**kwargs)
        time = net.time_embed(torch.zeros(1, net.time_embed[0].in_features))
        return {**out, "y": comfy.conds.CONDRegular(time)}

    monkeypatch.setattr(patcher.model, "extra_conds", through_network)

    def entries_after(network: str) -> int:
        texts = encoder("sd15", patcher, identity="clip", network_identity=network)
        cache_with(texts, Store(tmp_path, print)).condition("a caption", torch.zeros(TINY["sd15"].latent))
        return usage(tmp_path)[0]

    with torch.inference_mode(False):
        assert [entries_after(network) for network in ("a", "a", "b", "a")] == [1, 1, 2, 2]


def encoder(name: str, patcher: Any, **identities: str) -> HostTextEncoder:
    return HostTextEncoder(FakeClip(TINY[name]), patcher, **identities)  # type: ignore[arg-type]


def cache_with(texts: HostTextEncoder, store: Store, emit: Any = print) -> SampleCache:
    latents: Any = None
    return SampleCache(
        latents=latents, texts=texts, step=64, emit=emit, check_interrupt=lambda: None, store=store
    )


def test_a_condition_that_shows_the_latent_belongs_to_it_alone(monkeypatch, tmp_path) -> None:
    patcher = build(TINY["sd15"])
    extra_conds = patcher.model.extra_conds

    def with_latent(**kwargs: Any) -> Any:
        return {**extra_conds(**kwargs), "c_concat": comfy.conds.CONDNoiseShape(kwargs["latent_image"])}

    monkeypatch.setattr(patcher.model, "extra_conds", with_latent)
    texts = encoder("sd15", patcher)
    with torch.inference_mode(False):
        _, traces = texts.traced("a caption", torch.ones(TINY["sd15"].latent))
    assert traces == {"latent"}


def test_a_condition_of_an_unknown_kind_stays_in_memory_and_is_said(monkeypatch, tmp_path) -> None:
    class Odd(comfy.conds.CONDRegular):
        pass

    patcher = build(TINY["sd15"])
    extra_conds = patcher.model.extra_conds
    odd = lambda **kwargs: {**extra_conds(**kwargs), "odd": Odd(torch.zeros(1, 2))}  # noqa: E731
    monkeypatch.setattr(patcher.model, "extra_conds", odd)
    notices: list[Notice] = []
    cache = cache_with(encoder("sd15", patcher), Store(tmp_path, print), notices.append)
    with torch.inference_mode(False):
        for caption in ("a", "b"):
            found = cache.condition(caption, torch.zeros(TINY["sd15"].latent))
            assert type(found["odd"]) is Odd
    assert len(notices) == 1
    assert usage(tmp_path) == (0, 0)


def test_the_cache_lies_below_the_output_folder(tmp_path: Path) -> None:
    with output_folder(tmp_path):
        assert paths.cache_directory() == cache_of(tmp_path)


@torch.no_grad()
def test_pictures_that_are_encoded_together_are_those_that_are_encoded_alone(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = HostLatentEncoder(loaded.vae, loaded.model)
    given = [torch.rand(64, 32, 3) for _ in range(3)]
    alone = [encoder.encode([one])[0] for one in given]
    for one, other in zip(encoder.encode(given), alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], rtol=1e-4, atol=1e-5)
    assert encoder.at_once(given[0]) == 1, "on the CPU"
    monkeypatch.setattr(mm, "is_device_cpu", lambda device: False)
    need = loaded.vae.memory_used_encode((1, 3, 64, 32), loaded.vae.vae_dtype)
    for free, most in ((0, 1), (6.5 * need, 3), (1000 * need, MOST)):
        monkeypatch.setattr(mm, "get_free_memory", lambda device, free=free: free)
        assert encoder.at_once(given[0]) == most
