"""Streamed blocks of real networks: the same gradients, and the model as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from in_graph_lora.trainer.config import AdapterConfig, DataConfig, MemoryConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.errors import ModelError
from in_graph_lora.trainer.host import model as host_model
from in_graph_lora.trainer.host.training import plan_on_loaded, train_on_loaded
from in_graph_lora.trainer.memory import offloading, streaming
from in_graph_lora.trainer.memory.checkpointing import checkpointed
from in_graph_lora.trainer.memory.compiling import compiled
from in_graph_lora.trainer.memory.offloading import Copies
from in_graph_lora.trainer.memory.streaming import Ring, streamed

from ..tiny_models import TINY
from .family_case import Case, adapted, one_of_each, relative
from .loaded import identities, weight_hash, write_pictures

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("output")]

KINDS = ("lora", "locon", "rslora", "dora", "loha", "lokr", "oft", "full")


class Poisoned(streaming._Copies):
    """What was in a buffer is no number before the next block comes."""

    def copy(self, leaves: Any, slot: Tensor, since: Any) -> Any:
        slot.fill_(255)
        return super().copy(leaves, slot, since)


class PoisonedRing(Ring):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._copies = Poisoned()


def gradients(c: Case, share: float, **config: Any) -> tuple[Tensor, float]:
    """(of all adapter weights, the loss that a pass without gradients finds)"""
    with adapted(c, "all linear", streamed=share, **config) as (denoiser, adapter), ExitStack() as stack:
        ring = stack.enter_context(streamed(denoiser.away, denoiser.device, PoisonedRing))
        stack.enter_context(checkpointed(denoiser.blocks, 1))
        found = c.gradients(denoiser, adapter)
        found = c.gradients(denoiser, adapter)
        with torch.no_grad():
            loss = float(c.loss(denoiser))
        assert (ring is None) == (share == 0)
        assert ring is None or len(ring.blocks) == -(-share * len(denoiser.blocks) // 1)
        return found, loss


@pytest.mark.parametrize("name", TINY)
def test_gradients_of_streamed_blocks_are_those_of_resident_ones_bit_for_bit(name: str) -> None:
    c = Case(name)
    before = weight_hash(c.patcher.model), identities(c.patcher.model)
    right, loss = gradients(c, 0.0)
    for share in (0.5, 1.0):
        found, streamed_loss = gradients(c, share)
        assert torch.equal(found, right)
        assert streamed_loss == loss
    assert (weight_hash(c.patcher.model), identities(c.patcher.model)) == before


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_adapter_stays_on_the_device_and_gets_the_same_gradients(kind: str) -> None:
    c = Case("flux1", dtype=torch.bfloat16)
    assert torch.equal(gradients(c, 1.0, kind=kind)[0], gradients(c, 0.0, kind=kind)[0])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", ["flux1", "sd15"])
def test_compiled_blocks_can_be_streamed_and_are_compiled_once(name: str) -> None:
    c = Case(name)
    right, _ = gradients(c, 1.0)
    torch.compiler.reset()
    with adapted(c, "all linear", streamed=1.0) as (denoiser, adapter), ExitStack() as stack:
        stack.enter_context(compiled(one_of_each(denoiser.blocks), backend="aot_eager"))
        stack.enter_context(streamed(denoiser.away, denoiser.device, PoisonedRing))
        stack.enter_context(checkpointed(denoiser.blocks, 1))
        graphs = []
        for _ in range(3):
            assert relative(c.gradients(denoiser, adapter), right) < 1e-5
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] == graphs[2], "what comes to the device anew is no new module to the compiler"


def test_a_network_without_blocks_cannot_be_streamed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    c = Case("sd15")
    monkeypatch.setattr(host_model, "blocks", lambda net, names: [])
    with pytest.raises(ModelError, match=r"has no blocks.*set streamed to 0"), adapted(c, streamed=0.5):
        pass


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("pictures"), [(64, 64)] * 2)


@contextmanager
def failing_at(fetch: int) -> Iterator[None]:
    fetches = 0
    copy = streaming._Copies.copy

    def counted(*args: Any) -> Any:
        nonlocal fetches
        fetches += 1
        if fetches == fetch:
            raise OSError("the model's file is gone")
        return copy(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming._Copies, "copy", counted)
        yield


CONFIG = TrainConfig(
    name="streamed",
    steps=3,
    adapter=AdapterConfig(rank=2),
    optimizer=OptimizerConfig(learning_rate=1e-3),
    data=DataConfig(resolution=64, batch_size=2),
    memory=MemoryConfig(fit="manual", checkpointing=1),
)


def test_a_streamed_training_gives_the_lora_of_a_resident_one_also_after_an_error_and_offloaded(
    loaded: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = scan_folder(pictures, resolution=64)
    before = weight_hash(loaded.model.model), identities(loaded.model.model)

    def trained(config: TrainConfig, new_run: bool) -> dict[str, Tensor]:
        with torch.inference_mode():
            models = loaded.model, loaded.clip, loaded.vae
            return dict(train_on_loaded(*models, dataset, config, lambda event: None, new_run=new_run).lora)

    resident = trained(CONFIG, True)
    away = replace(CONFIG, name="away", memory=MemoryConfig(fit="manual", streamed=0.7))
    with torch.inference_mode():  # what is tried out for the plan comes to the device too, and is known then
        plan_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, away, lambda event: None)
    with failing_at(25), pytest.raises(OSError, match="the model's file is gone"):
        trained(away, True)
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before
    found = trained(away, False)
    assert found.keys() == resident.keys()
    assert all(torch.equal(found[key], resident[key]) for key in resident)
    monkeypatch.setattr(offloading, "SMALL", 0)
    left = Counter()
    leave = Copies.leave
    monkeypatch.setattr(Copies, "leave", lambda *args: left.update(n=1) or leave(*args))
    lean = MemoryConfig(fit="manual", streamed=0.7, offload_activations=True)
    found = trained(replace(CONFIG, name="lean", memory=lean), True)
    assert left["n"] > 0
    assert all(torch.equal(found[key], resident[key]) for key in resident)
    assert (weight_hash(loaded.model.model), identities(loaded.model.model)) == before
