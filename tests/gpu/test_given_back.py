"""However a run on the GPU ends, the model is bit for bit what it was, and the next run works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import pytest
import torch

from in_graph_lora.trainer.config import AdapterConfig, DataConfig, MemoryConfig, OptimizerConfig, TrainConfig
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.events import Event, StepDone
from in_graph_lora.trainer.host.model import HostDenoiser
from in_graph_lora.trainer.host.training import train_on_loaded
from in_graph_lora.trainer.runs.result import Result

from ..host.loaded import Loaded, output_folder, weight_hash

pytestmark = pytest.mark.gpu

STEPS, ENDS_AT = 4, 2


def manual(**settings: Any) -> MemoryConfig:
    """These settings and no others, whatever would fit."""
    return MemoryConfig(fit="manual", **settings)


memories = pytest.mark.parametrize(
    "memory",
    [manual(), manual(checkpointing=1), manual(streamed=0.5), manual(streamed=1)],
    ids=["resident", "checkpointed", "half streamed", "all streamed"],
)


class Stop(BaseException):
    """Like ComfyUI's interrupt."""


def run(
    loaded: Loaded,
    pictures: Path,
    output: Path,
    memory: MemoryConfig,
    at_step: Callable[[int], None] = lambda step: None,
    *,
    new_run: bool = True,
    **config: Any,
) -> Result:
    """What TrainLoRA does. at_step: called after each step; may raise."""
    settings = {
        "adapter": AdapterConfig(rank=2),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "data": DataConfig(resolution=64, batch_size=2),
        "steps": STEPS,
        **config,
    }

    def emit(event: Event) -> None:
        if isinstance(event, StepDone):
            at_step(event.step)

    with torch.inference_mode(), output_folder(output):
        return train_on_loaded(
            *(loaded.model, loaded.clip, loaded.vae, scan_folder(pictures, resolution=64)),
            *(TrainConfig(name="gpu", memory=memory, **settings), emit),
            new_run=new_run,
        )


@contextmanager
def starved(device: torch.device) -> Iterator[Callable[[int], None]]:
    """A function that takes what is left of the GPU's memory after a step; the next step gets none.

    In a rehearsal the next step finds an error of the same type.
    """
    hog: list[torch.Tensor] = []
    patch = pytest.MonkeyPatch()

    def take(step: int) -> None:
        if step != ENDS_AT:
            return
        if device.type == "cuda":
            torch.cuda.empty_cache()
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total, device)
            size = 2**24
            while size > 2**10:  # what the allocator holds free within its blocks
                try:
                    hog.append(torch.empty(size, dtype=torch.uint8, device=device))
                except torch.OutOfMemoryError:
                    size //= 2
        else:

            def full(*args: Any, **kwargs: Any) -> None:
                raise torch.OutOfMemoryError("rehearsed")

            patch.setattr(HostDenoiser, "predict", full)

    try:
        yield take
    finally:
        hog.clear()
        patch.undo()
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            torch.cuda.empty_cache()


def fingerprint(loaded: Loaded) -> tuple[Any, ...]:
    modules = (loaded.model.model, loaded.clip.cond_stage_model, loaded.vae.first_stage_model)
    flags = mm.in_training, [m.training for m in loaded.model.model.modules()]
    trained = [p.requires_grad for p in loaded.model.model.parameters()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in loaded.model.model.modules()]
    names = [sorted(k for k in vars(m) if k == "forward") for m in loaded.model.model.modules()]
    return [weight_hash(m) for m in modules], flags, trained, hooks, names


@memories
def test_after_a_whole_run(loaded, pictures, tmp_path, device, memory):
    before = fingerprint(loaded)
    assert run(loaded, pictures, tmp_path, memory).path.exists()
    assert fingerprint(loaded) == before


@memories
@pytest.mark.parametrize("kind", [Stop, OSError], ids=["stopped", "error"])
def test_after_a_stop_and_after_an_error_and_it_goes_on(loaded, pictures, tmp_path, device, memory, kind):
    before = fingerprint(loaded)
    whole = run(loaded, pictures, tmp_path / "straight", memory)

    def end(step: int) -> None:
        if step == ENDS_AT:
            raise kind

    with pytest.raises(kind):
        run(loaded, pictures, tmp_path / "ended", memory, end)
    assert fingerprint(loaded) == before
    again = run(loaded, pictures, tmp_path / "ended", memory, new_run=False)
    assert fingerprint(loaded) == before
    assert nearly(again, whole)


@memories
def test_after_a_real_out_of_memory_and_it_goes_on(loaded, pictures, tmp_path, device, memory):
    before = fingerprint(loaded)
    whole = run(loaded, pictures, tmp_path / "straight", memory)
    with (
        starved(device) as take,
        pytest.raises(torch.OutOfMemoryError, match="the model on the canvas is unchanged"),
    ):
        run(loaded, pictures, tmp_path / "ended", memory, take)
    assert fingerprint(loaded) == before
    again = run(loaded, pictures, tmp_path / "ended", memory, new_run=False)
    assert fingerprint(loaded) == before
    assert nearly(again, whole)


def nearly(a: Result, b: Result, most: float = 1e-5) -> bool:
    """All tensors of two LoRAs are within `most` of each other, relative."""
    assert a.lora.keys() == b.lora.keys()
    mine, theirs = (torch.cat([x.lora[k].float().flatten() for k in sorted(a.lora)]) for x in (a, b))
    return float((mine - theirs).norm() / theirs.norm()) < most
