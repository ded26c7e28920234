"""A real browser on the real server. Without Chromium these tests are skipped, and say so."""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from .page import READY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from workbench.dev.server import Server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "web: needs Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One a file: until it is closed Playwright leaves an event loop running, in the way of other tests."""
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no browser: playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield chromium
        chromium.close()


RENDERERS = ["classic", "nodes_2_0"]


@pytest.fixture(params=RENDERERS)
def canvas(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """A page of ComfyUI's, in the classic canvas and in Nodes 2.0."""
    with opened(browser, server, request.param) as page:
        yield page


@pytest.fixture(scope="module", params=RENDERERS)
def same_canvas(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """The same for tests that load a workflow and leave nothing else: opening a page takes seconds."""
    with opened(browser, server, request.param) as page:
        yield page


@contextmanager
def opened(browser: Browser, server: Server, renderer: str) -> Iterator[Page]:
    """With an empty-handed start. `page.complaints` collects what the console says about this extension."""
    enabled = renderer == "nodes_2_0"
    post(f"{server.url}/settings/Comfy.VueNodes.Enabled", str(enabled).lower())
    post(f"{server.url}/settings/Comfy.TutorialCompleted", "true")  # else the templates lie over the canvas
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    # The page asks for news and models elsewhere; tests depend on nothing outside this machine.
    context.route(lambda url: not url.startswith(server.url), lambda route: route.abort())
    page = context.new_page()
    page.complaints = complaints = []  # type: ignore[attr-defined]
    page.on("console", lambda message: complaints.extend(about_us(message)))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(server.url, wait_until="domcontentloaded")
    page.wait_for_function(READY, timeout=120_000)
    assert page.evaluate("LiteGraph.vueNodesMode") is enabled
    yield page
    context.close()


def about_us(message: Any) -> list[str]:
    text = f"{message.text} ({message.location.get('url', '')})"
    ours = "in-graph-lora" in text or "in_graph_lora" in text
    return [text] if ours and message.type in ("error", "warning") else []


def post(url: str, body: str) -> None:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=30):
        pass
