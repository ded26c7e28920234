"""A workflow as the page saves it (UI format 0.4) made into the graph that the server runs (API format).

The page does this when a user presses Run. Subgraphs are not supported, and are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import JobError

Json = dict[str, Any]
Link = tuple[str, int]
"""Node id and output slot that an input gets its value from."""

NEVER, BYPASS = 2, 4
"""Modes of a node that takes no part."""
ONLY_ON_THE_PAGE = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
CONTROLS = {"fixed", "increment", "decrement", "randomize", "increment-wrap"}
"""Values of the extra widget that the page puts behind a seed."""
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload")


class WorkflowError(JobError):
    """The workflow cannot be made into a graph."""


def to_prompt(workflow: Json, object_info: Json) -> dict[str, Json]:
    """Maps links and widget values by the node definitions of the server (GET /object_info)."""
    if workflow.get("definitions", {}).get("subgraphs"):
        raise WorkflowError(
            "the workflow has subgraphs, which are not supported here; give what Export (API) writes"
        )
    graph = _Graph(workflow)
    prompt: dict[str, Json] = {}
    for node in workflow["nodes"]:
        if node["type"] in ONLY_ON_THE_PAGE or node.get("mode", 0) in (NEVER, BYPASS):
            continue
        definition = object_info.get(node["type"])
        if definition is None:
            raise WorkflowError(f"node {node['id']}: the server has no node type {node['type']!r}")
        inputs = {**_widget_values(node, definition), **graph.linked_inputs(node)}
        title = node.get("title") or definition.get("display_name") or node["type"]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


class _Graph:
    """Follows links to the node that makes the value, through reroutes and bypassed nodes."""

    def __init__(self, workflow: Json) -> None:
        self.nodes = {node["id"]: node for node in workflow["nodes"]}
        # A link is [id, from node, from slot, to node, to slot, type].
        self.links = {link[0]: link for link in workflow.get("links", [])}

    def linked_inputs(self, node: Json) -> dict[str, list[Any]]:
        linked = {}
        for slot in node.get("inputs", []):
            source = self._source(slot.get("link"))
            if source is not None:
                linked[slot["name"]] = list(source)
        return linked

    def _source(self, link_id: int | None) -> Link | None:
        link = self.links.get(link_id)
        if link is None:
            return None
        node, slot = self.nodes[link[1]], link[2]
        if node["type"] == "Reroute":
            return self._source(node["inputs"][0].get("link"))
        if node["type"] == "PrimitiveNode" or node.get("mode", 0) == NEVER:
            return None  # a primitive has written its value into the widget already
        if node.get("mode", 0) == BYPASS:
            return self._source(_passed_through(node, slot))
        return str(node["id"]), slot


def _passed_through(node: Json, slot: int) -> int | None:
    """A bypassed node hands on its input of the output's type, if it can the one in the same place."""
    wanted = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    same_place = inputs[slot : slot + 1]
    return next((i.get("link") for i in [*same_place, *inputs] if i["type"] == wanted), None)


def _widget_values(node: Json, definition: Json) -> Json:
    saved = node.get("widgets_values") or []
    if isinstance(saved, dict):
        return dict(saved)
    return dict(_read_widgets(definition["input"], list(saved), ""))


def _read_widgets(spec: Json, rest: list[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Takes the values, saved in the order of the inputs, and drops those of page-only widgets."""
    for name, (kind, options) in _inputs(spec):
        if not _is_widget(kind, options):
            continue
        if rest:
            value = rest.pop(0)
        elif "default" in options:
            value = options["default"]
        else:
            continue
        yield prefix + name, value
        if kind in ("INT", "COMBO") and rest and _has_control(name, options) and rest[0] in CONTROLS:
            rest.pop(0)
        if any(options.get(upload) for upload in UPLOADS) and rest and rest[0] == "image":
            rest.pop(0)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next((o["inputs"] for o in options["options"] if o["key"] == value), {})
            yield from _read_widgets(chosen, rest, f"{prefix}{name}.")


def _inputs(spec: Json) -> Iterator[tuple[str, tuple[str, Json]]]:
    for group in ("required", "optional"):
        for name, (kind, *more) in spec.get(group, {}).items():
            # The choices of a combo stand in the place of its type, in older definitions.
            yield name, ("COMBO" if isinstance(kind, list) else kind, more[0] if more else {})


def _is_widget(kind: str, options: Json) -> bool:
    return kind in WIDGET_TYPES | {"COMFY_DYNAMICCOMBO_V3"} and not options.get("forceInput")


def _has_control(name: str, options: Json) -> bool:
    return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))
