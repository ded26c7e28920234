"""A folder in which nothing is as it should be: every file gets a sentence, and nothing else happens."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin, features

from in_graph_lora.trainer.data.remarks import remarks
from in_graph_lora.trainer.data.report import report
from in_graph_lora.trainer.data.scan import check_folder, folder_fingerprint, scan_folder
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.pictures.contact_sheet import contact_sheet

pytestmark = pytest.mark.timeout(120)

MEMORY = 256 * 1024**2
"""No file here is a large picture; some say that they are, or unpack to a hundred megabytes."""
FORMATS = ["jpeg", "png", "webp", "gif", "bmp", "tiff", *(["avif"] if features.check("avif") else [])]


def photo(size=(64, 48), seed=0):
    return Image.fromarray(np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def encoded(kind, image=None, **options):
    out = BytesIO()
    (image or photo()).save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, depth=8, colour=2, pixels=None):
    """A PNG with any size in its header."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels if pixels is not None else b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body + chunk(b"IEND", b"")


def truncated() -> Iterator[tuple[str, bytes]]:
    for kind in FORMATS:
        data = encoded(kind)
        for share in (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.95):
            yield f"cut {share}.{kind}", data[: int(len(data) * share)]


def flipped() -> Iterator[tuple[str, bytes]]:
    draw = random.Random(0)
    for kind in FORMATS:
        for n in range(22):
            data = bytearray(encoded(kind))
            for _ in range(1 + 3 * n):
                data[draw.randrange(8, len(data))] = draw.randrange(256)
            yield f"flipped {n}.{kind}", bytes(data)


def foreign() -> Iterator[tuple[str, bytes]]:
    contents = {
        "text": b"hello",
        "html": b"<html><script>alert(1)</script>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1e9" height="1e9"/>',
        "pdf": b"%PDF-1.7\n1 0 obj\n",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n",
        "zip": b"PK\x03\x04" + b"\0" * 40,
        "elf": b"\x7fELF" + bytes(60),
        "script": b"#!/bin/sh\nrm -rf /\n",
        "xpm": b"/* XPM */\nstatic char *x[] = {",
        "heic": b"\0\0\0\x1cftypheic" + bytes(40),
        "zeros": bytes(4096),
        "noise": random.Random(1).randbytes(4096),
    }
    for what, data in contents.items():
        for suffix in ("png", "JPG", "webp", "tif", "gif"):
            yield f"{what}.{suffix}", data
    for suffix in (
        "png",
        "jpg",
        "jpeg",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "avif",
        "heic",
        "heif",
        "jxl",
        "jfif",
    ):
        yield f"nothing.{suffix}", b""
    for suffix in ("tga", "psd", "svg", "ico", "cr2"):
        yield f"unread.{suffix}", b"x"


def huge() -> Iterator[tuple[str, bytes]]:
    for width, height in (
        (2**31 - 1, 2**31 - 1),
        (100_000, 100_000),
        (200_000_000, 1),
        (20_000, 7_000),
        (0, 5),
    ):
        yield f"size {width}.png", png(width, height)
    yield "bomb.png", encoded("png", Image.new("1", (12_000, 11_000)))
    yield "canvas.gif", b"GIF89a" + struct.pack("<HH", 65535, 65535) + encoded("gif")[10:]
    jpeg = bytearray(encoded("jpeg"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    yield "size.jpg", bytes(jpeg)
    bmp = bytearray(encoded("bmp"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    yield "size.bmp", bytes(bmp)
    bmp[18:26] = struct.pack("<ii", 64, -(2**31))
    yield "negative.bmp", bytes(bmp)
    bomb = zlib.compress(bytes(100_000_000), 1)
    yield "text bomb.png", png(8, 8, chunk(b"zTXt", b"k\0\0" + bomb))
    yield "profile bomb.png", png(8, 8, chunk(b"iCCP", b"k\0\0" + bomb))


def exif_of(orientation) -> bytes:
    """An EXIF block whose orientation has any type."""
    return b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12" + orientation + b"\0\0\0\0"


def odd_but_fine() -> Iterator[tuple[str, bytes]]:
    """What opens, however odd it is."""
    for n, orientation in enumerate(
        (
            b"\0\x03\0\0\0\x01\xff\xff\0\0",
            b"\0\x02\0\0\0\x04left",
            b"\0\x05\0\0\0\x01\0\0\0\0",
            b"\0\x03\xff\xff\xff\xff\0\0\0\0",
            b"\xff\xff\0\0\0\x01\0\x06\0\0",
        )
    ):
        yield f"exif {n}.jpg", encoded("jpeg", exif=exif_of(orientation))
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        yield (
            f"mode {mode.replace(';', '')}.png",
            encoded("png", photo().convert("L" if "I" in mode else mode)),
        )
    for mode in ("CMYK", "LAB", "YCbCr", "F"):
        yield f"mode {mode}.tif", encoded("tiff", photo().convert("RGB" if mode == "LAB" else mode))
    yield "png named.jpg", encoded("png")
    yield "gif named.webp", encoded("gif")
    yield "frames.gif", encoded("gif", save_all=True, append_images=[photo(seed=i) for i in range(60)])
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "\x1b[31m" + "x" * 50_000)
    yield "many chunks.png", png(8, 8, *[chunk(b"tEXt", b"k\0v")] * 20_000, pixels=bytes(1000))
    yield "more pixels than said.png", png(8, 8, pixels=bytes(30_000_000))
    yield "text.png", encoded("png", pnginfo=info)
    yield "line.png", encoded("png", Image.new("RGB", (3000, 1)))
    yield "dot.png", encoded("png", Image.new("RGB", (1, 1)))
    for name in (
        "new\nline.png",
        "🐈‍⬛.png",
        "‮gnp.exe.png",
        "a..png.png",
        "a" * 251 + ".png",
        "%00.png",
        "{trigger}.png",
    ):
        yield name, encoded("png")


BAD = (truncated, flipped, foreign, huge)
TEXTS = {
    "png named.txt": b"caf\xe9 ",
    "dot.txt": b"\xff\xfe\x00\xd8",
    "line.txt": b"\0" * 100,
    "text.txt": b"x" * 1_100_000,
    "frames.txt": b"{" * 3000,
    "no picture.txt": b"alone",
    "no picture either.caption": b"alone",
    "metadata.csv": b'file_name,text\nline.png,"open quote\n' + b"x" * 200_000,
    "metadata.jsonl": "\n".join(
        [
            "{broken",
            "[" * 100_000,
            json.dumps({"file_name": "../../etc/passwd", "text": "x"}),
            json.dumps({"file_name": "dot.png", "text": "x", "weight": -1, "focus": [1, 2]}),
            json.dumps({"file_name": "gone.png", "text": "\ud800"}),
            json.dumps({"file_name": ["a"], "text": {}}),
            "null",
        ]
    ).encode(),
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str]]:
    """(folder, names of files that may not be used, names of those that must be)."""
    root = tmp_path_factory.mktemp("hostile")
    bad = {name: data for make in BAD for name, data in make()}
    fine = dict(odd_but_fine())
    for name, data in {**bad, **fine, **TEXTS}.items():
        (root / name).write_bytes(data)
    outside = tmp_path_factory.mktemp("outside") / "private.png"
    outside.write_bytes(encoded("png"))
    links = {"out.png": outside, "broken.png": root / "nowhere", "loop.png": root / "loop.png"}
    for name, target in links.items():
        (root / name).symlink_to(target)
    (root / "up").symlink_to(root.parent, target_is_directory=True)
    (root / "folder.jpg").mkdir()
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "mode L.txt")
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(root)  # a socket's path may have 107 bytes
        try:
            s.bind("socket.png")
        finally:
            os.chdir(here)
    raw = os.fsencode(root) + b"/\xff\xfe.png"
    with open(raw, "wb") as f:
        f.write(encoded("png"))
    return root, {*bad, *links, "pipe.png", "socket.png"}, {*fine, os.fsdecode(b"\xff\xfe.png")}


class Peak:
    """The most memory that this process takes meanwhile, beyond what it took before."""

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = self.most - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.most = max(self.most, self._process.memory_info().rss)


def test_three_hundred_hostile_files_each_get_a_sentence_and_take_bounded_memory(hostile):
    root, bad, fine = hostile
    assert len(bad) >= 300 > len(fine)
    check_folder(root)
    start = time.monotonic()
    with Peak() as peak:
        found = scan_folder(root)
    assert peak.bytes < MEMORY
    assert time.monotonic() - start < 60
    used = {r.path.name for r in found.records}
    reasons: defaultdict[str, str] = defaultdict(str)
    for problem in found.problems:
        reasons[problem.path.name] += problem.reason
    assert fine <= used
    # What random damage leaves readable is used: pixels that changed are no damage that can be seen.
    assert used - fine <= {name for name in bad if name.startswith(("flipped", "cut"))}
    assert bad - used <= set(reasons)
    for problem in found.problems:
        said = str(problem)
        assert "Traceback" not in said
        assert "\n" not in problem.reason, said
        assert 10 < len(problem.reason) < 400, said
    assert {"png named.txt", "dot.txt", "text.txt", "mode L.txt"} <= set(reasons)
    assert "metadata.csv" in reasons
    assert "line 1 lacks a file name or a text, line 2 lacks" in reasons["metadata.jsonl"]
    assert "no picture.txt" in reasons[root.name]
    assert "leads out of the folder" in reasons["out.png"]
    everything = "\n".join(
        [folder_fingerprint(root), report(found), *remarks(found), str(contact_sheet(found).shape)]
    )
    assert "Traceback" not in everything


def test_a_second_scan_of_a_hostile_folder_says_the_same(hostile):
    root, _, _ = hostile
    first, second = scan_folder(root), scan_folder(root)
    assert first.digest == second.digest
    assert first.problems == second.problems


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(encoded("png", photo((30, 30)))),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    ],
)
def test_a_folder_that_changes_during_the_scan_is_read_as_far_as_it_is_there(tmp_path, change):
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(encoded("png", photo(seed=i)))
        (tmp_path / f"{i}.txt").write_text("x")

    def meddle(done, total):
        if done == 2:
            change(tmp_path / "39.png")
            (tmp_path / "38.txt").unlink()

    found = scan_folder(tmp_path, on_file=meddle)
    assert {r.path.name for r in found.records} >= {f"{i}.png" for i in range(39)}
    assert len(found.records) + len([p for p in found.problems if p.path.suffix == ".png"]) == 40
    assert "38.txt" in {p.path.name for p in found.problems}


def test_a_folder_that_vanishes_during_the_scan_is_one_sentence(tmp_path):
    root = tmp_path / "gone"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(encoded("png", photo(seed=i)))

    def vanish(done, total):
        if done == 0:
            time.sleep(0.1)
            for path in root.iterdir():
                path.unlink()
            root.rmdir()

    # What the threads decoded before is there; with less luck nothing is.
    with suppress(DatasetError):
        assert len(scan_folder(root, on_file=vanish)) <= 3
    with pytest.raises(DatasetError, match="there is no such folder"):
        scan_folder(root)


def test_two_files_of_one_stem_are_named(tmp_path):
    for name in ("a.png", "a.jpg", "b.png", "b.webp"):
        photo().save(tmp_path / name)
    (tmp_path / "a.txt").write_text("one caption")
    found = scan_folder(tmp_path)
    assert [r.caption for r in found.records] == ["one caption", "one caption", "", ""]
    (problem,) = found.problems
    assert str(problem) == (
        "a.png: has the caption and the mask of a.jpg, whose name differs only in the ending;"
        " rename one of them"
    )
    assert not problem.skipped
