"""Clips: what is read, which frame stands at a time, and what broken and hostile files become."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from in_graph_lora.trainer.data import clips
from in_graph_lora.trainer.data.clip import Clip, ClipOptions, Span
from in_graph_lora.trainer.data.clips import frames_at, inspect_clip, state
from in_graph_lora.trainer.data.pixels import opened, pixels
from in_graph_lora.trainer.data.records import ImageRecord
from in_graph_lora.trainer.data.report import title
from in_graph_lora.trainer.data.scan import folder_fingerprint, scan_folder
from in_graph_lora.trainer.data.views import View, views
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.pictures.contact_sheet import contact_sheet

from ..clips import CODECS, index_of, write_clip, write_frames


def shown(path: Path, times: list[float], fps: float) -> list[int]:
    return [index_of(image) for image in frames_at(path, times, fps)]


def record(path: Path, span: Span, **more: object) -> ImageRecord:
    found = inspect_clip(path)
    clip = Clip(frames=found.frames, fps=found.fps, spans=(span,))
    return ImageRecord(path=path, caption="c", size=found.size, digest=found.digest, clip=clip, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [*CODECS, ".gif"])
def test_every_container_gives_its_frames_in_time(tmp_path: Path, suffix: str) -> None:
    path = write_clip(tmp_path / f"a{suffix}", frames=80, fps=25)
    found = inspect_clip(path)
    assert (found.size, found.frames, found.fps) == ((64, 48), 80, 25)
    assert shown(path, [i / 25 for i in range(80)], 25) == list(range(80)), "each frame once"
    assert shown(path, [i / 25 for i in range(70, 75)], 25) == list(range(70, 75)), "reached by seeking"
    assert shown(path, [i / 12.5 for i in range(40)], 25) == list(range(0, 80, 2)), "half the rate"
    assert shown(path, [i / 50 for i in range(4)], 25) == [0, 0, 1, 1], "twice the rate shows frames twice"


def test_odd_frame_rates_do_not_drift(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "ntsc.mp4", frames=72, fps=Fraction(30000, 1001))
    fps = inspect_clip(path).fps
    assert fps == pytest.approx(29.97, abs=1e-3)
    assert shown(path, [i / 15 for i in range(36)], fps) == [round(i / 15 * fps) for i in range(36)]


def test_decoding_twice_gives_the_same_bytes_at_odd_sizes(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "odd.mp4", frames=6, size=(70, 50))
    view = View(size=(64, 64), box=(0, 0, 70, 50), span=Span(start=0, frames=5, fps=24))
    first, _ = pixels(record(path, view.span or Span(start=0, frames=1, fps=1)), view)
    assert first.shape == (5, 64, 64, 3)
    assert torch.equal(first, pixels(record(path, Span(start=0, frames=5, fps=24)), view)[0])


def test_a_clip_that_was_filmed_upright_is_turned(tmp_path: Path) -> None:
    upright, lying = write_clip(tmp_path / "a.mp4", frames=3), tmp_path / "b.mp4"
    with av.open(str(upright)) as source, av.open(str(lying), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                out.mux(packet)
    data = bytearray(lying.read_bytes())
    # The display matrix of the track header: identity → 90° clockwise.
    identity = b"".join(n.to_bytes(4, "big") for n in (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000))
    turned = b"".join(
        (n % 2**32).to_bytes(4, "big") for n in (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000)
    )
    at = data.index(identity, data.index(b"tkhd"))
    data[at : at + len(identity)] = turned
    lying.write_bytes(bytes(data))
    assert inspect_clip(lying).size == (48, 64)
    picture = np.asarray(next(frames_at(lying, [0.0], 24)), np.float32)
    assert picture[:20].mean() < picture[-20:].mean(), "the dark left half of the frame is on top"


def test_a_folder_of_frames_is_a_clip(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "walk.frames", 12)
    (tmp_path / "walk.txt").write_text("a walk")
    (only,) = scan_folder(tmp_path).records
    assert (only.caption, only.size) == ("a walk", (64, 48))
    assert only.clip == Clip(frames=12, fps=0.0)
    assert shown(folder, [i / 16 for i in range(12)], 16) == list(range(12)), "10.png after 9.png"
    before = inspect_clip(folder).digest
    write_frames(folder, 11)
    (folder / "11.png").unlink()
    assert inspect_clip(folder).digest != before


def test_folder_of_frames_that_cannot_be_used(tmp_path: Path) -> None:
    write_frames(tmp_path / "sizes.frames", 2)
    Image.new("RGB", (10, 10)).save(tmp_path / "sizes.frames" / "2.png")
    write_frames(tmp_path / "broken.frames", 2)
    (tmp_path / "broken.frames" / "1.png").write_bytes(b"no picture")
    (tmp_path / "empty.frames").mkdir()
    write_frames(tmp_path / "linked.frames", 1)
    secret = write_frames(tmp_path.parent / f"{tmp_path.name}-secret", 1) / "0.png"
    (tmp_path / "linked.frames" / "1.png").symlink_to(secret)
    write_frames(tmp_path / "good.frames", 2)
    dataset = scan_folder(tmp_path)
    assert [r.name for r in dataset.records] == ["good.frames"]
    assert sorted(map(str, dataset.problems)) == [
        "broken.frames: a frame cannot be used: 1.png: is no JPEG, PNG, WebP, AVIF, TIFF, BMP or"
        " GIF picture inside; convert it to PNG",
        "empty.frames: holds no frames; put JPEG, PNG or WebP pictures with numbers into it",
        "linked.frames: 1.png is a link that leads out of it; copy the file in instead",
        "sizes.frames: 2.png has 10x10 and the frames before 64x48; save all frames at one size",
    ]


def test_scan_takes_clips_and_pictures_together(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", frames=10)
    (tmp_path / "a.txt").write_text("a clip")
    Image.new("RGB", (32, 32)).save(tmp_path / "b.png")
    write_clip(tmp_path / "c.gif", frames=4)
    (tmp_path / "metadata.csv").write_text("file_name,weight\na.mp4,2\n")
    options = ClipOptions(frames=9, part="start")
    clip, picture, _ = scan_folder(tmp_path, clips=options).records
    assert clip.clip == Clip(frames=10, fps=24.0, options=options)
    assert (clip.caption, clip.weight) == ("a clip", 2.0)
    assert picture.clip is None
    gif = next(r for r in scan_folder(tmp_path, clips=options).records if r.name == "c.gif")
    assert gif.animated
    assert gif.clip is None, "a picture, its first frame, unless it is asked for as a clip"
    with_gif = scan_folder(tmp_path, clips=ClipOptions(gifs=True))
    assert [r.name for r in with_gif.records] == ["a.mp4", "b.png", "c.gif"]
    assert not with_gif.problems


def test_a_changed_clip_changes_the_fingerprint_of_the_folder(tmp_path: Path) -> None:
    clip, folder = write_clip(tmp_path / "a.mp4", 5), write_frames(tmp_path / "b.frames", 3)
    prints = {folder_fingerprint(tmp_path)}
    write_clip(clip, 6)
    prints.add(folder_fingerprint(tmp_path))
    os.utime(folder / "1.png", ns=(1, state(folder)[1] + 10**9))
    prints.add(folder_fingerprint(tmp_path))
    assert len(prints) == 3


def test_the_dataset_knows_its_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", 10)
    one, other = (scan_folder(tmp_path, clips=ClipOptions(frames=n)) for n in (5, 9))
    assert one.digest != other.digest
    assert title(one) == "1 image · 1 clip · 0 skipped · 1 bucket"
    assert contact_sheet(one).shape[0] == 1
    assert index_of(opened(one.records[0])[0]) == 0


def test_pixels_of_a_clip_are_those_of_its_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 30)
    span = Span(start=4 / 24, frames=5, fps=12)
    (view,) = views(record(path, span), resolution=64, step=16)
    out, _ = pixels(record(path, span), view)
    assert (view.frames, out.shape) == (5, (5, view.size[1], view.size[0], 3))
    greys = (out[:, :, -20:].mean((1, 2, 3)) * 255 - 8) / 3
    assert greys.round().tolist() == [4, 6, 8, 10, 12]


def test_frames_are_scaled_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held is the result and a frame or two, not the clip; and nothing behind the span is decoded."""
    path = write_clip(tmp_path / "long.mp4", frames=60)
    span = Span(start=0, frames=30, fps=24)
    alive = most = decoded = 0
    picture, decode = clips._picture, clips._decoded

    def counted(frame: object) -> Image.Image:
        nonlocal alive, most
        image = picture(frame)
        alive += 1
        most = max(most, alive)
        weakref.finalize(image, gone)
        return image

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def counting(*args: object) -> Iterator[object]:
        nonlocal decoded
        for frame in decode(*args):
            decoded += 1
            yield frame

    monkeypatch.setattr(clips, "_picture", counted)
    monkeypatch.setattr(clips, "_decoded", counting)
    pixels(record(path, span), View(size=(64, 48), box=(0, 0, 64, 48), span=span))
    assert most <= 2
    assert decoded == 1 + 31, "one to inspect, one to know that frame 29 is over"


def _hostile(folder: Path) -> dict[str, str]:
    """Files that are no clips, each with a word of what is said of it."""
    good = write_clip(folder.parent / "good.mp4", 24)
    whole = good.read_bytes()
    for name, data in {
        "empty.mp4": b"",
        "text.mp4": b"this is no video at all",
        "noise.mkv": b"\x1a\x45\xdf\xa3" + bytes(range(256)) * 40,
        "noise.avi": b"RIFF\x10\x00\x00\x00AVI LIST" + bytes(range(256)) * 40,
        "noise.gif": b"GIF89a" + bytes(range(256)) * 4,
        "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "concat.mp4": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
        "half.mp4": whole[: len(whole) // 2],
        "head.mp4": whole[:64],
        "no_frames.mp4": whole.replace(b"avc1", b"xxxx"),
    }.items():
        (folder / name).write_bytes(data)
    with av.open(str(folder / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link.mp4").symlink_to(good)
    return {
        "empty.mp4": "empty",
        "text.mp4": "is not an mp4",
        "noise.mkv": "damaged",
        "noise.avi": "",
        "noise.gif": "",
        "playlist.mp4": "is not an mp4",
        "concat.mp4": "is not an mp4",
        "half.mp4": "of the 24 frames that it promises; copy it again",
        "head.mp4": "",
        "no_frames.mp4": "",
        "sound.mp4": "no video",
        "pipe.mp4": "regular file",
        "link.mp4": "leads out",
    }


def test_broken_and_hostile_clips_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    write_clip(folder / "ok.mp4", 5)
    expected = _hostile(folder)
    dataset = scan_folder(folder, clips=ClipOptions(gifs=True))
    assert [r.name for r in dataset.records] == ["ok.mp4"]
    told = {p.path.name: str(p) for p in dataset.problems}
    assert told.keys() >= expected.keys()
    for name, word in expected.items():
        assert word in told[name], told[name]
        assert "\n" not in told[name]
        assert "; " in told[name], f"no remedy: {told[name]}"


@pytest.mark.parametrize("seed", range(30))
def test_a_clip_with_bytes_overwritten_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    """No traceback of another kind, no hang."""
    path = write_clip(tmp_path / f"a{[*CODECS][seed % len(CODECS)]}", 12)
    random = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in random.integers(12, len(data), 40):
        data[at] = random.integers(256)
    path.write_bytes(bytes(data))
    try:
        found = inspect_clip(path)
        list(frames_at(path, [i / found.fps for i in range(found.frames)], found.fps))
    except DatasetError as error:
        refused = str(error)
        assert refused.startswith(path.name)  # noqa: PT017 - read or refused, either is right


def test_a_clip_that_ends_before_its_time_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", 24)
    with pytest.raises(DatasetError, match=r"a.mkv: cannot be decoded beyond 0.96 s; copy it again"):
        list(frames_at(path, [0.0, 3.0], 24))


def test_a_clip_that_vanished_or_changed_its_size_is_named(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 8)
    span = Span(start=0, frames=5, fps=24)
    one = record(path, span)
    (view,) = views(one, resolution=64, step=16)
    write_clip(path, 8, size=(32, 32))
    with pytest.raises(DatasetError, match=r"a.mp4: its frames change from 64x48 to 32x32"):
        pixels(one, view)
    path.unlink()
    with pytest.raises(DatasetError, match=r"a.mp4: cannot be read"):
        pixels(one, view)


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("MAX_BYTES", 100, r"has 0.0 GB \(limit 0.0\); cut it into scenes"),
        ("MAX_PIXELS", 100, r"has 64x48, 0 million pixels \(limit 0\); save it smaller"),
        ("MAX_COUNT", 10, r"has over 10 frames; cut it into scenes"),
    ],
)
def test_clips_over_a_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, told: str
) -> None:
    path = write_clip(tmp_path / "a.mp4", 24)
    monkeypatch.setattr(clips, limit, value)
    with pytest.raises(DatasetError, match=told):
        inspect_clip(path)


def test_a_frame_larger_than_the_header_says_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "a.mp4", 5, size=(128, 128))
    data = path.read_bytes()
    entry = data.index(b"avc1", data.index(b"stsd"))
    small = data[: entry + 28] + (16).to_bytes(2, "big") * 2 + data[entry + 32 :]
    path.write_bytes(small)
    monkeypatch.setattr(clips, "MAX_PIXELS", 64 * 64)
    with pytest.raises(DatasetError, match=r"a.mp4: "):
        inspect_clip(path)


def test_inspecting_again_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", 5)
    found = inspect_clip(path)
    monkeypatch.setattr(clips, "_inspect_file", None)
    assert inspect_clip(path) == found
    shutil.copystat(__file__, path)
    with pytest.raises(TypeError):
        inspect_clip(path)
