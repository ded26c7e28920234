"""The routes of captions in a real server: what a page of ours sends is done, all else is refused."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from workbench.client import Client, Prompt

from .test_hostile import FOREIGN, names, send, state

pytestmark = pytest.mark.slow
ROUTE = "/in_graph_lora/captions"
JSON = {"Content-Type": "application/json"}


def make_folder(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (96, 64), (i % 256, 90, i // 2 % 256)).save(folder / f"{i:03}.jpg")
        (folder / f"{i:03}.txt").write_text(f"ohwx, dog, number {i}\n")
    return folder


def graph(folder: str) -> Prompt:
    """A dataset, its report and its contact sheet."""
    inputs = {"folder": folder, "resolution": 64, "repeats": 1}
    return {
        "1": {"class_type": "LoadDataset", "inputs": inputs},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 1]}},
        "3": {"class_type": "EditCaptions", "inputs": {
            "dataset": ["1", 0], "prefix": "", "suffix": "", "replacements": "", "class_word": "",
            "trigger": "", "min_count": 1, "write_sidecars": "no"}},
    }  # fmt: skip


@pytest.fixture
def loaded(server, client: Client) -> tuple[Path, str]:
    """A folder, and the id of its dataset."""
    folder = make_folder(server.base / "input" / "edited-by-page")
    done = client.run(graph(folder.name))
    assert done.status == "success", done.error
    return folder, done.outputs["1"]["captions"][0]


def post(server: Any, name: str, body: object, headers: dict[str, str] = JSON) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    connection.request("POST", f"{ROUTE}/{name}", json.dumps(body), headers)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text)


def test_saved_captions_are_those_of_the_next_run(server, client: Client, loaded):
    folder, name = loaded
    pictures = client.get(f"{ROUTE}/{name}")["pictures"]
    assert pictures[1] == {"name": "001.jpg", "caption": "ohwx, dog, number 1"}
    edits = [{"number": 1, "was": pictures[1]["caption"], "caption": "ohwx, 猫"}]
    assert post(server, name, edits) == (200, {"saved": [1], "refused": []})
    assert (folder / "001.txt").read_text(encoding="utf-8") == "ohwx, 猫\n"
    assert (folder / "001.txt.bak").read_text() == "ohwx, dog, number 1\n"

    done = client.run(graph(folder.name))
    assert done.status == "success", done.error
    assert any("ohwx, 猫" in line for line in done.outputs["3"]["text"])


def test_hostile_requests_are_refused_without_a_traceback_or_a_change(server, loaded):
    _, name = loaded
    edit = {"number": 0, "was": "ohwx, dog, number 0", "caption": "taken over"}
    good = json.dumps([edit]).encode()
    path = f"{ROUTE}/{name}"
    ids = names()
    sent = [(m, f"{ROUTE}/{n}", h, b) for n in ids for m, h, b in (("GET", {}, None), ("POST", JSON, good))]
    sent += [
        ("GET", f"{path}/{n}/thumbnail", {}, None)
        for n in [*ids, "-1", "3", "1e1", "0x1", "9" * 400, quote("٣")]
    ]
    sent += [("POST", path, {**JSON, **foreign}, good) for foreign in FOREIGN]
    sent += [("GET", p, foreign, None) for p in (path, f"{path}/0/thumbnail") for foreign in FOREIGN]
    bad: list[Any] = [
        None, {}, 1, "x", [1], [[]], [{}], [edit, {**edit, "path": "/etc/passwd"}], [{**edit, "number": "0"}],
        [{**edit, "number": -1}], [{**edit, "number": 10**30}], [{**edit, "number": True}],
        [{**edit, "number": "../../x"}], [{**edit, "caption": 3}], [{**edit, "was": None}],
        [{**edit, "caption": "x" * 30_000}], [edit] * 30_000,
    ]  # fmt: skip
    sent += [("POST", path, JSON, json.dumps(body).encode()) for body in bad]
    sent += [
        ("POST", path, JSON, body) for body in (b"", b"{", b"\xff" * 9, b"[" * 100_000, b" " * (9 * 2**20))
    ]
    sent += [
        ("POST", path, {"Content-Type": kind}, good) for kind in ("text/plain", "multipart/form-data", "")
    ]
    sent += [(method, path, JSON, good) for method in ("PUT", "PATCH", "DELETE", "PROPFIND", "TRACE")]
    sent += [(method, f"{path}/0/thumbnail", JSON, good) for method in ("POST", "DELETE")]
    log_before = len(server.log.read_text(errors="replace"))
    before = state(server.base)
    answers = [(request[:3], send(server.url, *request)) for request in sent]
    assert [(r, status) for r, status in answers if not 400 <= status < 500] == []
    assert {400, 403, 404, 405, 413, 415} <= Counter(status for _, status in answers).keys()
    assert state(server.base) == before
    assert "Traceback" not in server.log.read_text(errors="replace")[log_before:]

    # As our page sends them they are answered.
    assert send(server.url, "GET", f"{path}/0/thumbnail", {"Sec-Fetch-Site": "same-origin"}, None) == 200
    assert send(server.url, "POST", path, {**JSON, "Origin": server.url}, good) == 200
