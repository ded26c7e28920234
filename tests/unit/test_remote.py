"""What scripts/remote.py says of bad input, and what it does with what a worker tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from in_graph_lora.trainer.errors import DatasetError, JobError, RemoteError
from in_graph_lora.trainer.remote.fetch import fetch_run, put_lora
from in_graph_lora.trainer.remote.follow import CANCELLED, FAILED, SUCCESS, Following, send_files
from in_graph_lora.trainer.remote.work import Work, prepared, read_workflow
from in_graph_lora.trainer.remote.worker import Worker
from in_graph_lora.trainer.runs.listing import Runs
from in_graph_lora.trainer.runs.placing import Places

from ..past_runs import write_run

INFO: dict[str, Any] = {
    "KSampler": {},
    "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["a.safetensors"]]}}},
    "LoadDataset": {"input": {"required": {"folder": ["STRING", {}]}}},
    "LoadImage": {"input": {"required": {"image": [["b.png"], {"image_upload": True}]}}},
    "TrainLoRA": {"input": {}},
}
RUN = "20261124-120000"


def graph(folder: str = "toys", **more: Any) -> dict[str, Any]:
    nodes = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
        "2": {"class_type": "LoadDataset", "inputs": {"folder": folder}},
        "3": {"class_type": "TrainLoRA", "inputs": {"dataset": ["2", 0], "existing_run": "new run"}},
    }
    return {**nodes, **more}


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    folder = tmp_path / "input" / "toys"
    (folder / "masks").mkdir(parents=True)
    for name in ("a.png", "masks/a.png", "a.txt", "notes.docx", ".hidden.png"):
        (folder / name).write_text(name)
    return folder


class Fake:
    """Answers as ComfyUI does, as far as a test sets it; `down`: as a proxy without a server behind it."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/object_info": INFO, "/in_graph_lora/version": {"version": "1.0"}}
        self.answers |= {"/queue": {}}
        self.histories: list[dict[str, Any]] = []
        """What becomes of each prompt that is sent; {} where it is forgotten."""
        self.sent: list[dict[str, Any]] = []
        self.refusal: dict[str, Any] = {}
        self.files: dict[str, Path] = {}
        self.down = 0
        self.kept: dict[tuple[str, str], bytes] = {}
        self.too_large = ""

    async def files_of(self, request: web.Request) -> web.Response:
        if request.path == "/view":
            own = self.kept.get((request.query["subfolder"], request.query["filename"]))
            return web.Response(status=404) if own is None else web.Response(body=own)
        form = await request.post()
        own = form["image"]
        assert isinstance(own, web.FileField)
        if own.filename == self.too_large:
            return web.Response(status=413)
        self.kept[str(form["subfolder"]), own.filename] = own.file.read()
        return web.json_response({"name": own.filename})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.down:
            self.down -= 1
            return web.Response(status=503)
        if request.path in ("/view", "/upload/image"):
            return await self.files_of(request)
        if request.path == "/ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            await socket.receive()
            return socket
        if request.path == "/prompt":
            if self.refusal:
                return web.json_response(self.refusal, status=400)
            self.sent.append(await request.json())
            return web.json_response({"node_errors": {}})
        if request.path.startswith("/history/"):
            ids = [one["prompt_id"] for one in self.sent]
            own = request.path.rpartition("/")[2]
            known = self.histories[ids.index(own)] if own in ids else {}
            return web.json_response({own: known} if known else {})
        if request.path.endswith("/file"):
            return web.FileResponse(self.files[request.query["name"]])
        if request.path in self.answers:
            return web.json_response(self.answers[request.path])
        return web.Response(status=404)


def with_worker(fake: Fake, work: Callable[[Worker], Awaitable[Any]], said: list[str] | None = None) -> Any:
    async def all_of_it() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", fake.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        say = said.append if said is not None else print
        try:
            async with Worker(f"127.0.0.1:{port}", say, patience=30) as worker:
                return await work(worker)
        finally:
            await runner.cleanup()

    return asyncio.run(all_of_it())


def test_files_go_into_a_folder_named_by_their_content_and_the_graph_says_so(toys: Path) -> None:
    more = {"4": {"class_type": "LoadImage", "inputs": {"image": "toys/a.png"}}}
    own = prepared(graph(**more), INFO, [toys.parent])
    folder = own.graph["2"]["inputs"]["folder"]
    assert folder.startswith("in-graph-lora/")
    assert folder.endswith("/toys")
    assert {f"{u.subfolder}/{u.name}" for u in own.uploads} == {
        *(f"{folder}/{name}" for name in ("a.png", "a.txt", "masks/a.png")),
        own.graph["4"]["inputs"]["image"],
    }
    same = prepared(graph(str(toys)), INFO, [])
    assert same.graph["2"]["inputs"]["folder"] == folder
    (toys / "a.txt").write_text("another")
    assert prepared(graph(), INFO, [toys.parent]).graph["2"]["inputs"]["folder"] != folder
    (toys / "leak.txt").symlink_to("/etc/passwd")
    left = prepared(graph(), INFO, [toys.parent])
    assert all(u.name != "leak.txt" for u in left.uploads)
    assert "leak.txt" in left.notes[0]


def test_a_path_that_an_earlier_sending_wrote_stays_where_its_files_are(toys: Path) -> None:
    own = prepared(graph(), INFO, [toys.parent])
    again = prepared(own.graph, INFO, [toys.parent])
    assert (again.graph, again.uploads) == (own.graph, [])


def test_what_is_wrong_with_the_work_is_said_before_anything_is_sent(toys: Path) -> None:
    def refused(content: dict[str, Any], message: str, kind: type[Exception] = JobError) -> None:
        with pytest.raises(kind, match=message):
            prepared(content, INFO, [toys.parent])

    refused(graph("cats"), "folder cats is not on this machine", DatasetError)
    refused(graph("toys/a.txt"), "give the folder of the pictures", DatasetError)
    (toys.parent / "empty").mkdir()
    refused(graph("empty"), "holds no pictures", DatasetError)
    refused(graph(**{"4": {"class_type": "Odd", "inputs": {}}}), "has no node Odd")
    other = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "b.safetensors"}}}
    refused(graph(**other), r"b.safetensors \(CheckpointLoaderSimple, ckpt_name; it has a.safetensors\)")
    refused({"1": graph()["1"]}, "nothing to train")
    refused({"nodes": [{"id": 1}], "links": []}, "the workflow's file is damaged")

    path = toys / "workflow.json"
    for text, message in (("{", "is no workflow"), ("[]", "is no workflow"), ('{"graph": {}}', "is no job")):
        path.write_text(text)
        with pytest.raises(JobError, match=message):
            read_workflow(path)
    with pytest.raises(JobError, match="is not there"):
        read_workflow(toys / "gone.json")


def test_a_worker_that_cannot_train_is_named() -> None:
    def refused(fake: Fake, message: str) -> None:
        with pytest.raises(RemoteError, match=message):
            with_worker(fake, lambda worker: worker.definitions("1.0"))

    fake = Fake()
    fake.answers["/in_graph_lora/version"] = {"version": "2.0"}
    refused(fake, "has In-Graph LoRA 2.0 and this is 1.0")
    assert with_worker(fake, lambda worker: worker.definitions("")) == INFO
    del fake.answers["/in_graph_lora/version"]
    refused(fake, "has In-Graph LoRA older and this is 1.0")
    fake.answers["/object_info"] = {"KSampler": {}}
    refused(fake, "has no In-Graph LoRA; install")
    fake.answers["/object_info"] = {"hello": 1}
    refused(fake, "is no ComfyUI")
    del fake.answers["/object_info"]
    refused(fake, "answers HTTP 404")
    fake.down = 1
    refused(fake, "no ComfyUI answers")
    for url, message in (
        ("ftp://a", "is no address"),
        ("http://127.0.0.1:1", "no ComfyUI answers at http://127.0.0.1:1"),
    ):
        with pytest.raises(RemoteError, match=message):
            asyncio.run(_definitions(url))


async def _definitions(url: str) -> None:
    async with Worker(url, print) as worker:
        await worker.definitions("")


def test_only_what_is_not_there_whole_is_sent(toys: Path) -> None:
    (toys / '小猫 "1".txt').write_text("一只小猫", encoding="utf-8")
    work, fake = prepared(graph(), INFO, [toys.parent]), Fake()

    def send() -> int:
        return with_worker(fake, lambda worker: send_files(worker, work.uploads, lambda: False))

    assert send() == 4
    assert {(u.subfolder, u.name): u.path.read_bytes() for u in work.uploads} == fake.kept
    assert send() == 0
    torn = next(iter(fake.kept))
    fake.kept[torn] = b""
    assert send() == 1
    fake.kept.clear()
    fake.too_large = "a.png"
    with pytest.raises(RemoteError, match="a.png is larger than the worker takes"):
        send()


def trained(fake: Fake, said: list[str], *, stop: bool = False) -> Any:
    work = Work(graph(), [])
    return with_worker(
        fake, lambda w: Following(w, work, lambda *_: None, said.append, lambda: stop).train(), said
    )


def test_the_end_of_a_graph_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"run": [{"run_dir": f"C:\\out\\toy\\{RUN}"}]}
    fake, said = Fake(), []
    fake.histories = [{"outputs": {"3": run}, "status": {"completed": True, "messages": []}}]
    end = trained(fake, said)
    assert (end.state, end.runs) == (SUCCESS, [f"toy/{RUN}"])

    messages = [["execution_error", {"node_type": "TrainLoRA", "exception_message": "no memory\n"}]]
    fake = Fake()
    fake.histories = [{"outputs": {}, "status": {"completed": False, "messages": messages}}]
    end = trained(fake, said)
    assert (end.state, end.error) == (FAILED, "TrainLoRA: no memory")

    fake = Fake()
    fake.histories = [{}]
    assert trained(fake, said, stop=True).state == CANCELLED, "it had not begun"

    fake = Fake()
    input_config = [["a.safetensors"]]
    about = {"input_name": "ckpt_name", "received_value": "b.safetensors", "input_config": input_config}
    error = {"type": "value_not_in_list", "message": "Value not in list", "extra_info": about}
    fake.refusal = {"node_errors": {"1": {"class_type": "CheckpointLoaderSimple", "errors": [error]}}}
    with pytest.raises(RemoteError, match=r"has no 'b.safetensors' \(ckpt_name; it has a.safetensors\)"):
        trained(fake, said)


def test_a_graph_that_was_forgotten_is_sent_again_and_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("in_graph_lora.trainer.remote.worker.PAUSE", 0.01)
    fake, said = Fake(), []
    fake.histories = [{}, {"outputs": {}, "status": {"completed": True}}]
    fake.down = 2
    assert trained(fake, said).state == SUCCESS
    assert len(fake.sent) == 2
    assert fake.sent[1]["prompt"]["3"]["inputs"]["existing_run"] == "new run", "no run had begun"
    assert "trying again" in said[0]
    assert said[1] == "connected again"
    fake = Fake()
    fake.histories = [{}] * 9
    with pytest.raises(RemoteError, match="ended 3 times without a new step"):
        trained(fake, said)


def test_a_run_is_fetched_once_its_lora_takes_a_free_name_and_no_path_leads_out(tmp_path: Path) -> None:
    origin = write_run(tmp_path / "there")
    fake = Fake()
    fake.files = Runs(tmp_path / "there").files(f"toy/{RUN}")
    listed = [
        {"name": name, "bytes": path.stat().st_size, "changed": path.stat().st_mtime}
        for name, path in fake.files.items()
    ]
    fake.answers[f"/in_graph_lora/runs/toy/{RUN}/files"] = {"files": listed}
    here = tmp_path / "here"
    places = Places(loras=here / "loras", embeddings=here / "embeddings")
    (here / "loras").mkdir(parents=True)
    (here / "loras" / "toy.safetensors").write_bytes(b"of the user")

    for _ in range(2):
        folder = with_worker(fake, lambda worker: fetch_run(worker, f"toy/{RUN}", here / "runs"))
        assert folder.path == here / "runs" / "toy" / RUN
        lora = put_lora(folder, places)
    assert lora == here / "loras" / "toy_2.safetensors"
    assert sorted(p.name for p in lora.parent.iterdir()) == ["toy.safetensors", "toy_2.safetensors"]
    assert json.loads((folder.path / "run.json").read_text())["finished"]["lora"] == "toy_2.safetensors"
    for name, path in fake.files.items():
        if name != "run.json":
            assert (folder.path / name).read_bytes() == path.read_bytes()

    (here / "runs" / "toy" / RUN / "run.json").write_text('{"key": "another run"}')
    beside = with_worker(fake, lambda worker: fetch_run(worker, f"toy/{RUN}", here / "runs"))
    assert beside.path.name == f"{RUN}-2"

    for name in ("../out.txt", "/etc/out", "a\\..\\b", "C:evil", "checkpoints/../../x", ".hidden", ""):
        listed[0] = {**listed[0], "name": name}
        with pytest.raises(RemoteError, match="outside of its run"):
            with_worker(fake, lambda worker: fetch_run(worker, f"toy/{RUN}", here / "runs"))
    with pytest.raises(RemoteError, match="no folder's name"):
        with_worker(fake, lambda worker: fetch_run(worker, "../x", here / "runs"))
    assert not (origin.path / "training.pid").exists()
