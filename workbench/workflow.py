"""Workflows as the page saves them, for demo and tests. The pack itself makes the graph."""

from __future__ import annotations

import sys
from typing import Any

from .dev.host import register_pack

if "in_graph_lora" not in sys.modules:  # the demo needs nothing else of the pack
    register_pack()

from in_graph_lora.trainer.remote.workflow import Json, WorkflowError, to_prompt

__all__ = ["Json", "WorkflowError", "override", "to_prompt"]


def override(prompt: dict[str, Json], class_type: str, **inputs: Any) -> None:
    """Sets inputs of all nodes of one type. A name that a node lacks is an error: it would be ignored."""
    nodes = [node for node in prompt.values() if node["class_type"] == class_type]
    if not nodes:
        raise WorkflowError(f"the workflow has no {class_type} node")
    for node in nodes:
        unknown = inputs.keys() - node["inputs"].keys()
        if unknown:
            raise WorkflowError(f"{class_type} has no input {', '.join(sorted(unknown))}")
        node["inputs"].update(inputs)
