"""Latents and conditions wait on the CPU, a caption's once, and are gone when the run is over."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from in_graph_lora.trainer.config import ObjectiveConfig
from in_graph_lora.trainer.data.cache import SampleCache
from in_graph_lora.trainer.host import conditioning
from in_graph_lora.trainer.host.conditioning import HostTextEncoder
from in_graph_lora.trainer.host.encode import HostLatentEncoder

from ..tiny_models import TINY, FakeClip, build
from .loaded import train, write_pictures


def tensors(conds: dict[str, Any]) -> list[Tensor]:
    return [t for cond in conds.values() for t in tree_leaves(vars(cond)) if isinstance(t, Tensor)]


def test_what_the_encoders_give_on_a_card_is_kept_on_the_cpu() -> None:
    with FakeTensorMode():  # knows devices that are not there
        on_card = torch.empty(1, 4, 8, 8, device="cuda")
        encoder = HostLatentEncoder.__new__(HostLatentEncoder)
        encoder.vae = SimpleNamespace(encode=lambda pixels: on_card)  # type: ignore[assignment]
        encoder.model = SimpleNamespace(process_latent_in=lambda latent: latent * 2)  # type: ignore[assignment]
        assert encoder.encode([torch.empty(64, 64, 3)])[0].device.type == "cpu"
        kept = conditioning.own({"a": [on_card, (on_card, 3)], "b": on_card, "c": None})
        found = [t for t in tree_leaves(kept) if isinstance(t, Tensor)]
        assert len(found) == 3
        assert all(t.device.type == "cpu" for t in found)
        assert kept["a"][1][1] == 3


@pytest.mark.parametrize("name", TINY)
def test_every_tensor_of_a_condition_went_that_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, given = conditioning.own, []

    def watched(value: Any) -> Any:
        kept = own(value)
        given.append(kept)
        return kept

    monkeypatch.setattr(conditioning, "own", watched)
    patcher = build(TINY[name])
    texts = HostTextEncoder(FakeClip(TINY[name]), patcher)  # type: ignore[arg-type]
    with torch.inference_mode(False):
        conds = texts.encode("a caption", torch.zeros(TINY[name].latent))
    known = {id(t) for t in tree_leaves(given) if isinstance(t, Tensor)}
    found = tensors(conds)
    assert found
    assert all(id(t) in known and not t.is_inference() for t in found)


def test_a_caption_that_many_pictures_have_is_kept_once() -> None:
    patcher = build(TINY["flux1"])
    texts = HostTextEncoder(FakeClip(TINY["flux1"]), patcher)  # type: ignore[arg-type]
    with torch.inference_mode(False):
        latent = torch.zeros(TINY["flux1"].latent)
        one, other = (texts.encode("a caption", latent) for _ in range(2))
    assert one["c_crossattn"] is not other["c_crossattn"]
    assert one["c_crossattn"].cond.data_ptr() == other["c_crossattn"].cond.data_ptr()


def test_they_are_gone_when_the_run_is_over(loaded: Any, tmp_path: Any, monkeypatch: Any) -> None:
    alive: list[weakref.ref[Any]] = []
    build_all = SampleCache.build

    def watched(self: SampleCache, *args: Any, **kwargs: Any) -> Any:
        data = build_all(self, *args, **kwargs)
        alive.append(weakref.ref(self.texts))
        for stored in data.samples:
            sample = stored.load()
            for cached in (sample.latent, *tensors(sample.conditioning), *tensors(sample.empty)):
                assert cached.device.type == "cpu"
                alive.append(weakref.ref(cached))
        return data

    monkeypatch.setattr(SampleCache, "build", watched)
    folder = write_pictures(tmp_path / "pictures", [(64, 64)] * 2)
    train(loaded, folder, tmp_path / "output", steps=1, objective=ObjectiveConfig(caption_dropout=0.5))
    gc.collect()
    assert len(alive) > 4
    assert not any(r() is not None for r in alive)
