"""docs/families.md is written from the rows and from the tiny models that are tested."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from in_graph_lora.trainer.families import FAMILIES, UNLISTED, Family, family_of
from in_graph_lora.trainer.host.noise import noise_process

from ..tiny_models import TINY, build, config_class

PAGE = "docs/families.md"

INTRODUCTION = """\
# Model families

What is in this table is tested on a tiny network of ComfyUI's own class, on the CPU, in float32:

- the target of the loss is the output from which the stock model computes the clean latent;
- the gradients of all LoRA weights equal those of an oracle to 1e-5, without and with gradient checkpointing;
- an untrained LoRA leaves the output bit-identical;
- the model comes back as the same objects with the same bytes.

A row holds for all variants that ComfyUI derives from the family's configuration (Schnell, inpainting,
SSD-1B, Wan 2.2 …).

**Objective** is what the network predicts: `eps` the noise, `v` the velocity of a diffusion process, `flow`
the velocity from picture to noise, `affine` another output from which the clean picture follows linearly. It
is read from the model on the canvas, so a v-prediction checkpoint or a model behind a ModelSampling node
trains by its own.

**In place** says how the family's blocks write their residuals, which training has to make out-of-place: `-`
not at all, `+=` at next to no cost, `calls` at some microseconds for each operation of a block.

**Frames a second** is what clips are trained at in families of video models; `-` trains still pictures only.

A family that is not listed trains too: the objective comes from its `model_sampling`, the blocks are found
among its modules, and writes in place are made out-of-place in all of them. The node says so.

| Family | ComfyUI's configuration | Objective | In place | Frames a second | Names in LoRA files |
|---|---|---|---|---|---|
"""

NAMES = {"diffusers": "kohya, diffusers' modules", "module": "kohya", "dotted": "`diffusion_model.…`"}


def objectives(family: Family) -> str:
    tested = [t for t in TINY.values() if family_of(config_class(t.config)) is family]
    assert tested, f"{family.title} has no tiny model"
    found = {noise_process(build(t).model.model_sampling).prediction for t in tested}
    return ", ".join(p for p in ("eps", "v", "flow", "affine") if p in found)


def row(family: Family) -> str:
    writes = "calls" if family.in_place_calls else "+=" if family.in_place else "-"
    if family.in_place_calls is None:
        writes = "calls"
    config = f"`{family.config}`" if family.config else "any"
    objective = objectives(family) if family is not UNLISTED else "as the model says"
    fps = "-" if family.fps is None else family.fps or "the clip's own"
    return f"| {family.title} | {config} | {objective} | {writes} | {fps} | {NAMES[family.file_names]} |\n"


def page() -> str:
    return INTRODUCTION + "".join(row(family) for family in (*FAMILIES, UNLISTED))


def test_the_page_says_what_the_rows_say(repo_root: Path) -> None:
    path = repo_root / PAGE
    if os.environ.get("IGL_WRITE_DOCS"):
        path.write_text(page(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == page(), "write it anew: IGL_WRITE_DOCS=1 python dev.py test"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_each_row_names_a_configuration_of_comfyui(family: Family) -> None:
    assert config_class(family.config).__module__ == "comfy.supported_models"
