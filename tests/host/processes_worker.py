"""One process of several that train: runs the trainings of a JSON file one after the other.

    RANK=… WORLD_SIZE=… MASTER_ADDR=… MASTER_PORT=… python processes_worker.py COMFYUI BASE CHECKPOINT REQUESTS

Writes a line for each, `{"name": …, "losses": …}` or `{"name": …, "error": …, "message": …}`, and ends after
the first that does not end in order: then the processes have parted.
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


comfyui, base, checkpoint, requests = map(Path, sys.argv[1:5])
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
from in_graph_lora.trainer.processes import Processes, join  # noqa: E402


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
    told = {"losses": result.losses, "stopped": result.stopped, "path": str(result.path), "sums": sums}
    return {**told, "steps": steps}


def main() -> None:
    torch.set_num_threads(1)
    loaded = loaded_module.load(checkpoint)
    processes = join()
    with processes.together():
        for request in json.loads(requests.read_text()):
            said = run(loaded, request, processes)
            print(json.dumps({"name": request["name"], **said}), flush=True)
            if "error" in said:
                break
        else:
            processes.wait()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
