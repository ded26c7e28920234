"""Trains in children of a process that has loaded everything: as one, or as several that train together.

    python processes_worker.py COMFYUI BASE CHECKPOINT

Reads one JSON object a line from stdin, {"size": …, "port": …, "requests": […], "said": [a file for each]},
starts so many processes, and answers with a line when all have ended. They run the requested trainings one
after the other and write a line for each into their file: {"name": …, "losses": …} or {"name": …,
"error": …}. After the first that does not end in order they stop: they have parted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
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


comfyui, base, checkpoint = map(Path, sys.argv[1:4])
_module("tests_conftest", HERE.parent / "conftest.py")  # registers our packages
from workbench.dev import host  # noqa: E402

host.import_comfyui(comfyui, base)
loaded_module = _module("loaded", HERE / "loaded.py")

import comfy.model_management as mm  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

from in_graph_lora.trainer.config import TrainConfig  # noqa: E402
from in_graph_lora.trainer.data.scan import scan_folder  # noqa: E402
from in_graph_lora.trainer.events import StepDone  # noqa: E402
from in_graph_lora.trainer.host.training import train_on_loaded  # noqa: E402
from in_graph_lora.trainer.processes import ALONE, Processes, join  # noqa: E402


def run(loaded: Any, request: dict[str, Any], processes: Processes) -> dict[str, Any]:
    """request: `config`, and `pictures` and `output` of each process. `stop`, `interrupt`, `kill`: [process,
    step] after which it asks for the end, is interrupted, or dies."""
    folder_paths.output_directory = request["output"][processes.rank % len(request["output"])]
    dataset = scan_folder(Path(request["pictures"][processes.rank % len(request["pictures"])]), resolution=64)
    steps = []

    def reached(what: str) -> bool:
        rank, step = request.get(what, (None, None))
        return rank == processes.rank and step in steps

    def emit(event: Any) -> None:
        if isinstance(event, StepDone):
            steps.append(event.step)
            if reached("interrupt"):
                mm.interrupt_current_processing()
            if reached("kill"):
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        with torch.inference_mode():
            result = train_on_loaded(
                *(
                    loaded.model,
                    loaded.clip,
                    loaded.vae,
                    dataset,
                    TrainConfig.from_dict(request["config"]),
                    emit,
                ),
                stop_requested=lambda: reached("stop"),
            )
    except mm.InterruptProcessingException:
        return {"error": "interrupted", "steps": steps}
    except Exception as error:  # noqa: BLE001 - the test looks at what it was
        return {"error": type(error).__name__, "message": str(error), "steps": steps}
    sums = {name: float(t.double().sum()) for name, t in result.lora.items()}
    paths = {"path": str(result.path), "run": str(result.run)}
    return {"losses": result.losses, "stopped": result.stopped, "steps": steps, "sums": sums, **paths}


def child(loaded: Any, work: dict[str, Any], rank: int) -> None:
    with Path(work["said"][rank]).open("w", buffering=1) as said:
        processes = ALONE
        if work["size"] > 1:
            place = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": work["port"],
            }
            sizes = {"WORLD_SIZE": work["size"], "LOCAL_WORLD_SIZE": work["size"]}
            os.environ.update({name: str(value) for name, value in (place | sizes).items()})
            processes = join()
        with processes.together():
            for request in work["requests"]:
                told = {"name": request["name"], **run(loaded, request, processes)}
                said.write(json.dumps(told) + "\n")
                if "error" in told:
                    return
            processes.wait()


def main() -> None:
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    loaded = loaded_module.load(checkpoint)
    with torch.inference_mode():
        captions = [f"a photo of aawxbc figurine {i}" for i in range(5)]
        for text in [*captions, "another caption", "a figurine", ""]:
            loaded.clip.encode_from_tokens_scheduled(loaded.clip.tokenize(text))
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    for line in sys.stdin:
        work, children = json.loads(line), []
        for rank in range(work["size"]):
            children.append(os.fork())
            if children[-1] == 0:
                try:
                    child(loaded, work, rank)
                finally:
                    os._exit(0)  # not what the parent would do at its end
        out.write(json.dumps([os.waitpid(pid, 0)[1] for pid in children]) + "\n")


if __name__ == "__main__":
    main()
