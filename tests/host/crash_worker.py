"""Trains in children of a process that has loaded everything, so that a test can kill many of them.

    python crash_worker.py COMFYUI BASE CHECKPOINT PICTURES

Reads one JSON object a line from stdin, a request, and starts a child for each. Answers with one line when
the child has started, {"pid": …}, and one when it has ended, {"status": …}. What the child has to say goes
line by line into the request's `log`, which is whole up to the moment of a kill.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def _module(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


comfyui, base, checkpoint, pictures = map(Path, sys.argv[1:5])
_module("tests_conftest", HERE.parent / "conftest.py")  # registers our packages
from workbench.dev import host  # noqa: E402

host.import_comfyui(comfyui, base)
loaded_module = _module("loaded", HERE / "loaded.py")

import folder_paths  # noqa: E402
import torch  # noqa: E402

from in_graph_lora.trainer.config import (  # noqa: E402
    AdapterConfig,
    DataConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from in_graph_lora.trainer.data.scan import scan_folder  # noqa: E402
from in_graph_lora.trainer.events import CheckpointSaved, Notice, StepDone  # noqa: E402
from in_graph_lora.trainer.host.training import train_on_loaded  # noqa: E402

NOBODY = 65534


def config(steps: int, **more: Any) -> TrainConfig:
    """Everything that writes files, at intervals that meet and that do not."""
    sections = {
        "adapter": AdapterConfig(rank=2, dropout=0.2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, ema_decay=0.9, warmup_steps=1),
        "data": DataConfig(resolution=64, batch_size=2),
        "save": SaveConfig(every=1, keep=2),
        "preview": PreviewConfig(prompts=("a figurine",), every=4, steps=1, cfg=1.0),
        "validation": ValidationConfig(held_out=1, every=2, keep_best=True),
    }
    return TrainConfig(**{"name": "test", "steps": steps, **sections, **more})


class Fault:
    """What a request wants to go wrong, from a step on; step 0 is the start of the run."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self(0)

    def __call__(self, step: int, after: str = "step") -> None:
        if (step, after) != (self.request.get("fault_at", 0), self.request.get("after", "step")):
            return
        if limit := self.request.get("largest_file"):  # a write beyond it fails, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if folder := self.request.get("fill"):  # until nothing more fits
            _fill(Path(folder) / "filler", self.request["leave"])
        if self.request.get("as_nobody") and os.geteuid() == 0:  # root may write anywhere
            os.seteuid(NOBODY)


def _fill(path: Path, leave: int) -> None:
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(b"\0" * max(0, free - leave))


def child(loaded: Any, request: dict[str, Any]) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def tell(**said: Any) -> None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit[1], limit[1]))
        os.write(log, (json.dumps(said) + "\n").encode())
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    folder_paths.output_directory = request["output"]
    before = loaded_module.weight_hash(loaded.model.model) if request.get("hash") else ""
    wanted = config(request["steps"])
    if request.get("prior"):
        wanted = replace(wanted, prior=PriorConfig(**request["prior"]))
    dataset = scan_folder(pictures, resolution=64)
    fault = Fault(request)

    def emit(event: Any) -> None:
        if isinstance(event, StepDone):
            tell(step=event.step)
            fault(event.step)
        elif isinstance(event, CheckpointSaved):
            tell(saved=event.step)
            fault(event.step, "saved")
        elif isinstance(event, Notice):
            tell(notice=event.message)

    try:
        with torch.inference_mode():
            result = train_on_loaded(loaded.model, loaded.clip, loaded.vae, dataset, wanted, emit)
        tell(lora=str(result.path), losses=result.losses)
    except Exception as error:  # noqa: BLE001 - the test looks at what it was
        tell(error=type(error).__name__, message=str(error))
    if before:
        tell(weights_unchanged=before == loaded_module.weight_hash(loaded.model.model))


def main() -> None:
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    loaded = loaded_module.load(checkpoint)
    with torch.inference_mode():
        captions = [path.read_text() for path in sorted(pictures.glob("*.txt"))]
        for text in [*captions, "a figurine", ""]:
            loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))
    if importlib.util.find_spec("tensorboard"):
        importlib.import_module("torch.utils.tensorboard")  # once for all children
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            try:
                child(loaded, request)
            finally:
                os._exit(0)  # not what the parent would do at its end
        print(json.dumps({"pid": pid}), file=out)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": status}), file=out)


if __name__ == "__main__":
    main()
