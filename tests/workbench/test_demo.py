"""The parts of the demo that need no server: the workflow converter, the pictures, the progress bar."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from workbench.client import Event
from workbench.demo.photos import ENOUGH, EXIF_ORIENTATION, PHOTOS, write_photos
from workbench.demo.run import PROGRESS, Terminal
from workbench.workflow import WorkflowError, override, to_prompt

INFO: dict[str, Any] = {
    "Old": {"input": {"required": {"mode": [["a", "b"]], "seed": ["INT", {"default": 0}]}}},
    "Upload": {"input": {"required": {"image": [["x.png"], {"image_upload": True}], "size": ["INT", {}]}}},
    "Dynamic": {
        "input": {
            "required": {
                "opt": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "sgd", "inputs": {"required": {"lr": ["FLOAT", {}]}}},
                            {"key": "none", "inputs": {}},
                        ]
                    },
                ],
                "last": ["STRING", {}],
            }
        }
    },
    "Grown": {"input": {"required": {"first": ["INT", {}]}, "optional": {"second": ["INT", {"default": 5}]}}},
}


def inputs_of(kind: str, *values: Any) -> dict[str, Any]:
    workflow = {"nodes": [{"id": 1, "type": kind, "widgets_values": list(values)}], "links": []}
    return to_prompt(workflow, INFO)["1"]["inputs"]


def test_value_behind_a_seed_is_dropped_with_and_without_a_control() -> None:
    assert inputs_of("Old", "a", 3, "fixed") == {"mode": "a", "seed": 3}
    assert inputs_of("Old", "a", 3) == {"mode": "a", "seed": 3}


def test_upload_button_of_a_picture_takes_no_input() -> None:
    assert inputs_of("Upload", "x.png", "image", 64) == {"image": "x.png", "size": 64}


def test_dynamic_combo_brings_the_inputs_of_its_choice() -> None:
    assert inputs_of("Dynamic", "sgd", 0.1, "z") == {"opt": "sgd", "opt.lr": 0.1, "last": "z"}
    assert inputs_of("Dynamic", "none", "z") == {"opt": "none", "last": "z"}


def test_input_that_is_newer_than_the_workflow_gets_its_default() -> None:
    assert inputs_of("Grown", 1) == {"first": 1, "second": 5}


def test_unknown_node_is_named() -> None:
    with pytest.raises(WorkflowError, match="no node type 'Missing'"):
        inputs_of("Missing")


def test_override_of_an_unknown_input_is_refused() -> None:
    prompt = {"1": {"class_type": "Grown", "inputs": {"first": 1}}}
    with pytest.raises(WorkflowError, match="Grown has no input thrid"):
        override(prompt, "Grown", thrid=3)


def test_demo_has_a_dozen_pictures_of_mixed_shapes_one_of_them_on_its_side(tmp_path: Path) -> None:
    folder = write_photos(tmp_path)
    pictures = []
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as picture:
            pictures.append(picture)
    assert len(pictures) >= ENOUGH
    assert len({picture.size for picture in pictures}) > 3
    assert any(p.width > p.height for p in pictures)
    assert any(p.width < p.height for p in pictures)
    assert sum(EXIF_ORIENTATION in picture.getexif() for picture in pictures) == 1
    assert all("photo" in path.read_text() for path in folder.glob("*.txt"))
    assert len(list(folder.glob("*.txt"))) == len(pictures)


def test_other_pictures_stand_in_and_too_few_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    templates = tmp_path / "comfyui_workflow_templates_x" / "templates"
    templates.mkdir(parents=True)
    for name in (PHOTOS[0].file, "new-1", "new-2"):
        Image.new("RGB", (40, 40)).save(templates / f"{name}.webp")
    folder = write_photos(tmp_path / "input", tmp_path)
    assert len(list(folder.glob("*.jpg"))) == 3
    said = capsys.readouterr().out
    assert "2 of them stand in" in said
    assert "Fewer than 12" in said


def test_terminal_shows_node_step_and_loss(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal({"5": {"class_type": "TrainLoRA", "inputs": {}}}, width=4)
    terminal.show(Event(PROGRESS, {"node_id": "5", "step": 1, "steps": 2, "loss": 0.25, "lr": 1}))
    terminal.show(Event("progress", {"node": "5", "value": 1, "max": 2}))
    assert capsys.readouterr().out == "TrainLoRA        ██░░ 1/2  loss 0.2500\n"


@pytest.mark.parametrize("module", ["demo.run", "bench.run", "bench.case", "miniature.learn", "weights"])
def test_an_import_leaves_the_module_path_alone(repo_root: Path, module: str) -> None:
    code = f"import sys; before = list(sys.path); import workbench.{module}; assert sys.path == before"
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
