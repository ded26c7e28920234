"""The routes of runs and of the cache against requests that no page of ours sends: refused, unchanged."""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from workbench.dev import base as base_tools
from workbench.dev import server as server_tools
from workbench.dev.steps import LOGS

from ..past_runs import write_run

RUN = "20261124-120000"
RUNS = "/in_graph_lora/runs"
FOLDERS = "/in_graph_lora/folders"
CACHE = "/in_graph_lora/cache"
ENTRY = "ab" * 16
"""Name of an entry of the cache."""
Request = tuple[str, str, dict[str, str], bytes | None]
FOREIGN = (
    {"Sec-Fetch-Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
)


@pytest.fixture(scope="module", params=["plain", "multi-user and cors"])
def target(request, server, comfyui, tmp_path_factory, tiny_checkpoint) -> Iterator[server_tools.Server]:
    """The shared server, and one with the two flags that loosen it."""
    if request.param == "plain":
        yield server
        return
    folder = base_tools.prepare(tmp_path_factory.mktemp("loosened"))
    more = ["--multi-user", "--enable-cors-header", "*"]
    log = LOGS / "test-server-loosened.log"
    with server_tools.start(Path(sys.executable), comfyui, folder, log=log, more=more) as running:
        yield running


def names() -> list[str]:
    """What is put where an id belongs, each already written for a URL."""
    climbs = [
        "..",
        "../..",
        "../../loras",
        "../../../input",
        f"toy/../toy/{RUN}",
        "./toy",
        "~",
        "C:\\",
        "\\\\host\\share",
    ]
    odd = [
        "\0",
        "toy\0",
        "toy\n",
        "%00",
        "%2e%2e",
        "a" * 2000,
        "💥" * 50,
        "<script>",
        "{name}",
        "*",
        "?",
        " ",
        "toy ",
        "TOY",
    ]
    absolute = ["/etc/passwd", "/tmp", "//etc//passwd", "file:///etc/passwd", f"/in-graph-lora/toy/{RUN}"]
    parts = [
        *climbs,
        *odd,
        *absolute,
        "class-images",
        "graph-images",
        ".",
        "con",
        "run.json",
        "toy.deleted",
        f".{RUN}",
    ]
    once = [quote(p, safe="") for p in parts]
    return [*once, *(quote(p, safe="") for p in once)]


def requests() -> list[Request]:
    ids = names()
    out: list[Request] = []
    for method in ("GET", "DELETE"):
        out += [(method, f"{RUNS}/{name}/{RUN}", {}, None) for name in ids]
        out += [(method, f"{RUNS}/toy/{name}", {}, None) for name in ids]
        out += [(method, f"/api{RUNS}/{name}/{name}", {}, None) for name in ids]
        out += [(method, f"{RUNS}/toy/{RUN}", headers, None) for headers in FOREIGN]
        out += [(method, f"/api{RUNS}/toy/{RUN}", headers, None) for headers in FOREIGN]
        out += [
            (method, f"{RUNS}/toy/{RUN}/{more}", {}, None)
            for more in ("..", "checkpoints", "run.json", "%2e%2e")
        ]
    others = ("/in_graph_lora/jobs", "/in_graph_lora/version")
    out += [("GET", path, headers, None) for path in others for headers in FOREIGN]
    out += [(m, path, {}, b"{}") for path in others for m in ("POST", "PUT", "DELETE", "PATCH")]
    for more in ("files", "file?name=run.json"):
        out += [("GET", f"{RUNS}/{name}/{RUN}/{more}", {}, None) for name in ids]
        out += [("GET", f"{RUNS}/toy/{name}/{more}", {}, None) for name in ids]
        out += [("GET", f"{RUNS}/toy/{RUN}/{more}", headers, None) for headers in FOREIGN]
        out += [(m, f"{RUNS}/toy/{RUN}/{more}", {}, b"{}") for m in ("POST", "PUT", "DELETE", "PATCH")]
    inside = ["checkpoints/%2e%2e/%2e%2e/leak", "leak.json", "checkpoints/leak.json", "training.pid"]
    files = [name for name in ids if name != "run.json"]
    out += [("GET", f"{RUNS}/toy/{RUN}/file?name={name}", {}, None) for name in [*files, *inside]]
    out += [("GET", RUNS, headers, None) for headers in FOREIGN]
    out += [("GET", path, headers, None) for path in (FOLDERS, f"/api{FOLDERS}") for headers in FOREIGN]
    out += [("GET", f"{FOLDERS}/{name}", {}, None) for name in ids]
    out += [(m, FOLDERS, {}, b"{}") for m in ("POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")]
    counts = ["-1", "1.5", "x", "", "9" * 400, "٣", "1e3", "null", "0x10", "[]", "%00", "1;2", "２"]
    out += [
        ("GET", f"{RUNS}?{key}={quote(v)}", {}, None)
        for key in ("offset", "limit", "with_lora")
        for v in counts
    ]
    out += [("GET", f"{RUNS}?limit={n}", {}, None) for n in (0, 101, 10**9)]
    bodies = [b"{}", b"{", b"null", b'{"run": "../.."}', b"\xff" * 100, b"[" * 10_000, b"x" * 100_000]
    json_type = {"Content-Type": "application/json"}
    out += [("DELETE", f"{RUNS}/toy/{RUN}", json_type, body) for body in bodies]
    for path in (CACHE, f"/api{CACHE}"):
        out += [(method, path, headers, None) for method in ("GET", "DELETE") for headers in FOREIGN]
        out += [("DELETE", path, json_type, body) for body in bodies]
        out += [("DELETE", f"{path}/{name}", {}, None) for name in (ENTRY, "..", "%2e%2e", ENTRY[:2], "")]
        out += [(method, path, {}, b"{}") for method in ("POST", "PUT", "PATCH", "TRACE", "PROPFIND")]
    for method in ("POST", "PUT", "PATCH", "TRACE", "PROPFIND"):
        out += [(method, path, {}, b"{}") for path in (RUNS, f"{RUNS}/toy/{RUN}", f"{RUNS}/../toy/{RUN}")]
    out += [
        ("DELETE", path, {}, None)
        for path in (RUNS, f"{RUNS}/", f"{RUNS}/toy", f"{RUNS}/toy/", f"{RUNS}//{RUN}")
    ]
    return out


def send(url: str, method: str, path: str, headers: dict[str, str], body: bytes | None) -> int:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
        assert b"Traceback" not in text
        return answer.status
    finally:
        connection.close()


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of the output and input folders, with size and time."""
    found = itertools.chain((folder / "output").rglob("*"), (folder / "input").rglob("*"))
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in found if not p.is_dir()}


def write_entry(output: Path) -> Path:
    """In the cache; what is in it is not looked at before it is used."""
    path = output / "in-graph-lora" / "cache" / ENTRY[:2] / f"{ENTRY}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 1000)
    return path


def test_500_hostile_requests_are_refused_without_a_traceback_or_a_change(target):
    runs = target.base / "output" / "in-graph-lora"
    for left in runs.glob("toy/*"):
        pytest.fail(f"{left} is of another test")
    write_run(runs)
    (runs / "toy" / RUN / "leak.json").symlink_to(target.base / "output")
    (runs / "toy" / RUN / "checkpoints" / "leak.json").symlink_to(__file__)
    (runs / "toy" / RUN / "training.pid").write_text("999999999")  # of a process that was killed
    entry = write_entry(target.base / "output")
    log_before = len(target.log.read_text(errors="replace"))
    before = state(target.base)
    sent = requests()
    assert len(sent) >= 500
    answers = [(request, send(target.url, *request)) for request in sent]
    assert [(r, status) for r, status in answers if not 400 <= status < 500] == []
    assert state(target.base) == before
    said = target.log.read_text(errors="replace")[log_before:]
    assert "Traceback" not in said
    assert {403, 404, 400, 405} <= Counter(status for _, status in answers).keys()

    # The same requests as our page sends them are answered, so the ids above were refused for what they were.
    assert send(target.url, "GET", f"{RUNS}/toy/{RUN}", {"Sec-Fetch-Site": "same-origin"}, None) == 200
    assert send(target.url, "GET", f"{RUNS}/toy/{RUN}/file?name=run.json", {}, None) == 200
    assert send(target.url, "GET", RUNS, {"Origin": target.url}, None) == 200
    assert send(target.url, "DELETE", f"{RUNS}/toy/{RUN}", {"Origin": target.url}, None) == 200
    assert entry.exists()
    assert send(target.url, "GET", CACHE, {"Sec-Fetch-Site": "same-origin"}, None) == 200
    gone = {p for p in before if p not in state(target.base)}
    assert gone
    assert all(str(runs / "toy" / RUN) in path for path in gone)


def test_the_list_of_folders_holds_the_input_folder_and_nothing_that_a_client_names(target, tmp_path):
    (tmp_path / "secret").mkdir()
    base = target.base / "input"
    (base / "chosen" / "10_toy").mkdir(parents=True, exist_ok=True)
    (base / "chosen" / "10_toy" / "a.png").touch()
    (base / "leak").symlink_to(tmp_path, target_is_directory=True)
    try:
        with urllib.request.urlopen(target.url + FOLDERS, timeout=30) as answer:
            whole = json.load(answer)
        found = {folder["name"]: folder["pictures"] for folder in whole["folders"]}
        assert found["chosen"] == 0
        assert found["chosen/10_toy"] == 1
        assert not any("leak" in name or "secret" in name or ".." in name for name in found)
        for name in ("..", "/", "../output", str(tmp_path), "%2e%2e"):
            asked = f"{target.url}{FOLDERS}?under={quote(name)}&folder={quote(name)}&root={quote(name)}"
            with urllib.request.urlopen(asked, timeout=30) as answer:
                assert json.load(answer) == whole
    finally:
        (base / "leak").unlink()


def test_a_run_is_listed_described_and_deleted(server, client):
    runs = server.base / "output" / "in-graph-lora"
    write_run(runs, "玩具 1", every=10)
    try:
        listed = client.get(f"{RUNS}?limit=100")
        assert listed["bytes"] > 0
        (said,) = [run for run in listed["runs"] if run["id"] == f"玩具 1/{RUN}"]
        assert said["step"] == 40
        path = f"{RUNS}/{quote('玩具 1')}/{RUN}"
        detail = client.get(path)
        assert detail["widgets"]["nodes"]["TrainLoRA"]["rank"] == 4
        picture = {
            "filename": said["picture"],
            "subfolder": f"in-graph-lora/玩具 1/{RUN}/previews",
            "type": "output",
        }
        assert client.image(picture).startswith(b"\x89PNG")
        listed = client.object_info("LoadRun")["LoadRun"]["input"]["required"]["run"]
        assert f"玩具 1/{RUN}" in json.dumps(listed, ensure_ascii=False)
    finally:
        request = urllib.request.Request(f"{server.url}{RUNS}/{quote('玩具 1')}/{RUN}", method="DELETE")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert json.loads(answer.read()) == {"deleted": f"玩具 1/{RUN}"}
    assert not (runs / "玩具 1").exists()


def test_the_cache_is_told_and_cleared_and_nothing_beside_it(server, client):
    entry = write_entry(server.base / "output")
    beside = entry.with_name("mine.txt")
    beside.write_text("of the user")
    try:
        told = client.get(CACHE)
        assert told["entries"] >= 1
        assert told["bytes"] >= 1000
        request = urllib.request.Request(f"{server.url}{CACHE}", method="DELETE")
        with urllib.request.urlopen(request, timeout=30) as answer:
            said = json.loads(answer.read())
        assert said == {"deleted": told["entries"], "bytes": told["bytes"], "left": 0}
        assert client.get(CACHE) == {"entries": 0, "bytes": 0}
        assert not entry.exists()
        assert beside.exists()
    finally:
        beside.unlink()
