"""What the tests do with ComfyUI's page besides clicks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

# The page puts a workflow of its own on the canvas behind its spinner; one that is loaded before is lost.
READY = """() => window.app?.graph && app.extensionManager?.spinner === false
    && app.extensionManager.workflow.activeWorkflow && !!LiteGraph.registered_node_types.TrainLoRA"""
LOAD = "([workflow, name]) => app.loadGraphData(workflow, true, true, name)"
LOAD_API = "([prompt, name]) => app.loadApiJson(prompt, name)"
# The graph is there before its tab; a prompt that is queued in between is of the tab before.
IN_FRONT = """(name) => app.extensionManager.workflow.activeWorkflow?.path.split('/').at(-1).startsWith(name)
    && app.extensionManager.spinner === false"""


def open_workflow(page: Page, workflow: dict[str, Any], name: str) -> None:
    page.evaluate(LOAD, [workflow, name])
    page.wait_for_function(IN_FRONT, arg=name)


def open_prompt(page: Page, prompt: dict[str, Any], name: str) -> None:
    """A workflow of the form of ComfyUI's API."""
    page.evaluate(LOAD_API, [prompt, name])
    page.wait_for_function(IN_FRONT, arg=name)


def queue(page: Page) -> None:
    """What the Run button does; a dialog of ComfyUI may lie over the button."""
    page.evaluate("async () => { await app.queuePrompt(0); }")
