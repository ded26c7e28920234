"""The report of docs/evidence.md: the checkpoints of the demo's run, judged by the miniature's own CLIP.

    python -m workbench.miniature.report --comfyui FOLDER

Run `python dev.py demo` before: its newest run below .base is taken. Some minutes on one core. Prints the
report's folder.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from ..dev import base, host
from ..dev.base import BASE

COUNT = 2
"""Pictures of each prompt."""


class Quiet:
    def update(self, done: int, total: int, preview: Any = None) -> None:
        print(f"\r{done}/{total}", end="", flush=True)

    def text(self, text: str) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the demo's run and write its report.")
    parser.add_argument("--comfyui", type=Path, required=True, help="the folder of ComfyUI")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    host.import_comfyui(args.comfyui.resolve(), base.prepare(BASE))
    host.register_pack()
    from in_graph_lora.trainer.data.scan import scan_folder
    from in_graph_lora.trainer.evidence.shots import shots
    from in_graph_lora.trainer.host import paths
    from in_graph_lora.trainer.host.evidence import Question, evaluate
    from in_graph_lora.trainer.host.evidence_files import chosen_loras, write
    from in_graph_lora.trainer.host.sample import SampleSettings

    from ..demo.shows import MINIATURE, MINIATURE_PICTURES
    from . import looking, sampling, spoiled, subject, trial_sets

    run = paths.runs().folder(next(name for name in paths.runs().names() if subject.NAME in name))
    prompts = {kind: [text for text, _, _ in own] for kind, own in spoiled.asked().items()}
    question = Question(
        shots=shots(prompts, seed=1, count=COUNT),  # type: ignore[arg-type]
        negative="",
        sampling=SampleSettings(
            steps=sampling.STEPS,
            cfg=sampling.CFG,
            sampler_name=sampling.SAMPLER,
            scheduler=sampling.SCHEDULER,
            width=128,
            height=128,
        ),
        loras=chosen_loras(None, run, 4, []),
        strengths=[1.0],
        dataset=scan_folder(BASE / "input" / MINIATURE_PICTURES / "subject", resolution=128),
        references=trial_sets.references(),
        trigger=subject.NAME,
    )
    loaded = spoiled.remembering(sampling.load_checkpoint(BASE / "models" / "checkpoints" / MINIATURE))
    import torch

    with torch.inference_mode():
        result = evaluate(*loaded, looking.SeerJudge(), question, Quiet())
        _, _, picture = write(result, run)
    print(f"\n{picture.parent}")


if __name__ == "__main__":
    main()
