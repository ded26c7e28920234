"""The plan of a training, as it is read on the canvas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..live.test_planning import planning
from ..live.test_training import pictures  # noqa: F401 - a fixture
from .page import open_prompt, queue

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.web, pytest.mark.slow]

SHOWN = "() => document.body.innerText.includes('activations and gradients')"


@pytest.mark.usefixtures("tiny_checkpoint")
def test_plan_training_shows_its_plan_on_the_node(canvas: Page, pictures: str, client) -> None:  # noqa: F811
    open_prompt(canvas, planning(pictures), "plan")
    queue(canvas)
    canvas.wait_for_function(SHOWN, timeout=120_000)
    assert canvas.locator(".in-graph-lora-text td", has_text="24 GB").count() == 1
    assert canvas.complaints == []  # type: ignore[attr-defined]
