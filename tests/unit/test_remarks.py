"""What is said of pictures that can be trained, and the report of a dataset."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from in_graph_lora.trainer.data.framing import Framing
from in_graph_lora.trainer.data.joining import join, without_refused
from in_graph_lora.trainer.data.records import Dataset, ImageRecord, Problem
from in_graph_lora.trainer.data.remarks import near_duplicates, remarks
from in_graph_lora.trainer.data.report import TokenCount, buckets, overview, report
from in_graph_lora.trainer.data.scan import scan_folder
from in_graph_lora.trainer.data.traits import Traits, traits_of
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.pictures.dataset_report import dataset_picture


def photo(seed=0, size=(512, 384)):
    """Structure at all sizes, with amplitudes that fall as those of photographs do (1/f)."""
    rng = np.random.RandomState(seed)
    fx, fy = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]))
    spectrum = np.fft.fft2(rng.randn(size[1], size[0], 3), axes=(0, 1))
    shaped = np.fft.ifft2(spectrum / np.hypot(fx, fy).clip(1 / max(size))[..., None], axes=(0, 1)).real
    shaped = (shaped - shaped.mean()) / shaped.std() * 50 + 128
    return Image.fromarray(shaped.clip(0, 255).astype(np.uint8))


def record(name="a.png", size=(512, 512), digest=None, role="instance", **more):
    return ImageRecord(path=Path(name), caption="x", size=size, digest=digest or name, role=role, **more)


def looks(value, contrast=50.0, sharpness=500.0):
    return Traits(look=value, sharpness=sharpness, contrast=contrast)


def test_the_same_file_twice_is_said(tmp_path):
    photo().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert remarks(scan_folder(tmp_path, resolution=256)) == ["1 picture is there twice: b.png is a.png"]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((300, 225), Image.Resampling.LANCZOS),
        lambda image: image.point(lambda v: min(255, v + 12)),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: image,
    ],
)
def test_a_picture_saved_again_smaller_lighter_or_softer_is_found(tmp_path, change):
    photo().save(tmp_path / "a.png")
    photo(1).save(tmp_path / "b.png")
    change(photo()).save(tmp_path / "c.jpg", quality=70)
    pairs = [(a.name, b.name) for a, b in near_duplicates(scan_folder(tmp_path).records)]
    assert pairs == [("a.png", "c.jpg")]


def test_pictures_that_are_not_alike_are_not_taken_for_each_other():
    records = [record(f"{i}.png", traits=traits_of(photo(i, (128, 96)))) for i in range(150)]
    assert list(near_duplicates(records)) == []


def test_hashes_within_four_bits_are_found_wherever_the_bits_are_and_no_further():
    base = 0x0123456789ABCDEF
    for bits in ((0, 1, 2, 3), (0, 13, 26, 39), (60, 61, 62, 63), (12, 25, 38, 51)):
        near = base
        for bit in bits:
            near ^= 1 << bit
        far = near ^ (1 << 30)
        records = [
            record("a", traits=looks(base)),
            record("b", traits=looks(near)),
            record("c", traits=looks(far)),
        ]
        assert [b.name for _, b in near_duplicates(records[:2])] == ["b"]
        assert [b.name for _, b in near_duplicates([records[0], records[2]])] == []


def test_flat_pictures_are_neither_alike_nor_blurred():
    records = (
        record("a.png", traits=looks(0, contrast=1, sharpness=0)),
        record("b.png", traits=looks(0, 1, 0)),
    )
    assert remarks(Dataset(records=records)) == []


def test_ten_thousand_pictures_are_compared_within_seconds():
    rng = np.random.RandomState(0)
    looked = rng.randint(0, 2**63, 10_000, dtype=np.int64).tolist()
    records = [record(f"{i}.png", traits=looks(look)) for i, look in enumerate(looked)]
    start = time.process_time()
    assert list(near_duplicates(records)) == []
    assert time.process_time() - start < 4


@pytest.mark.parametrize("size", [(512, 384), (1024, 768)])
def test_a_blurred_picture_is_named_and_a_sharp_one_is_not(tmp_path, size):
    photo(0, size).save(tmp_path / "sharp.png")
    photo(1, size).filter(ImageFilter.GaussianBlur(max(size) / 512 * 4)).save(tmp_path / "soft.png")
    (told,) = remarks(scan_folder(tmp_path, resolution=256))
    assert told.startswith("1 picture looks blurred (sharpness below 15): soft.png (")


def test_animations_and_enlarged_pictures_are_named(tmp_path):
    photo(0, (640, 480)).save(tmp_path / "a.gif", save_all=True, append_images=[photo(1, (640, 480))])
    photo(2, (200, 150)).save(tmp_path / "b.png")
    assert remarks(scan_folder(tmp_path)) == [
        "1 file has several frames; the first is used: a.gif",
        "1 picture is too small for the resolution and enlarged: b.png (3.0 times); Image Framing can train"
        " them at their own size, or refuse them",
    ]
    assert remarks(scan_folder(tmp_path, framing=Framing(upscaling="own_size"))) == [
        "1 file has several frames; the first is used: a.gif"
    ]


def test_refused_pictures_become_problems_and_refusing_all_is_an_error():
    framing = Framing(upscaling="refuse")
    small, large = record("a.png", (200, 200), framing=framing), record("b.png", (600, 600), framing=framing)
    kept = without_refused(Dataset(records=(small, large)))
    assert [r.name for r in kept.records] == ["b.png"]
    assert str(kept.problems[0]).startswith("a.png: has 200x200, fewer pixels than the resolution asks for")
    assert kept.shown == 1
    with pytest.raises(DatasetError, match="all 1 pictures have fewer pixels"):
        without_refused(Dataset(records=(small,)))


def test_joined_datasets_keep_their_resolutions_repeats_weights_and_problems():
    bad = Problem(path=Path("x.png"), reason="is damaged")
    a = Dataset(records=(record("a", repeats=2),), resolution=512, trigger="ohwx")
    b = Dataset(
        records=(record("b", weight=0.5), record("c", role="class")), resolution=1024, problems=(bad,)
    )
    c = Dataset(
        records=(record("d", framing=Framing(resolutions=(256, 768))),), resolution=1024, trigger="ohwx"
    )
    d = join([a, b, c], weights=[1, 0.5, 2], repeats=[1, 10, 1])
    assert [(r.name, r.repeats, r.weight, r.framing.resolutions, r.role) for r in d.records] == [
        ("a", 2, 1, (), "instance"),
        ("b", 10, 0.25, (1024,), "instance"),
        ("c", 10, 0.5, (1024,), "class"),
        ("d", 1, 2, (256, 768), "instance"),
    ]
    assert (d.resolution, d.trigger, d.problems) == (512, "ohwx", (bad,))
    assert d.shown == 2 + 10 + 2
    assert join([a]) == a
    with pytest.raises(DatasetError, match="weights: 2 numbers for 3 datasets"):
        join([a, b, c], weights=[1, 2])


@pytest.fixture
def dataset(tmp_path):
    for i in range(8):
        photo(i, (400, 300) if i % 2 else (300, 400)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a dog, number {i}, <b>bold</b>" + " word" * 30 * (i == 3))
    (tmp_path / "broken.png").touch()
    found = scan_folder(tmp_path, resolution=256, framing=Framing(flip=True))
    records = [replace(r, role="class" if i == 7 else r.role) for i, r in enumerate(found.records)]
    return found.with_records(records)


def test_the_report_counts_roles_buckets_captions_and_problems(dataset):
    text = report(dataset)
    assert "| instance | 7 | 14 | 0 | 0 |" in text
    assert "| class | 1 | 2 | 0 | 0 |" in text
    assert "| 192x320 | 8 | 4 | 20% |" in text
    assert "a dog (8)" in text
    assert "9 words on average, at most 35 (3.png)" in text
    assert "skipped: broken.png: the file is empty (0 bytes); copy it again" in text
    assert "<b>" not in text.replace("\\<b\\>", "")
    assert [(size, len(members)) for size, members in buckets(dataset)] == [((192, 320), 8), ((320, 192), 8)]


def test_the_overview_counts_roles_and_names_every_bucket_and_problem(dataset):
    lines = overview(dataset).splitlines()
    assert lines[0] == "8 images · 7 of the subject, 1 of the class · 1 skipped · 2 buckets"
    assert "| trained at | of the subject | of the class | cut, on average |" in lines
    assert "| 192x320 | 8 | 0 | 20% |" in lines
    assert "| 320x192 | 6 | 2 | 20% |" in lines
    assert "| broken.png | skipped | the file is empty (0 bytes); copy it again |" in lines
    small = replace(dataset, resolution=512)
    assert any(
        line.startswith("⚠ 8 pictures are too small for the resolution")
        for line in overview(small).splitlines()
    )
    assert "⚠ 8 pictures are too small" not in overview(dataset)


def test_names_and_reasons_are_no_table_and_no_markup(dataset, tmp_path):
    odd = Problem(path=tmp_path / "a|b<i>_*.png", reason="x | y\nz")
    (row,) = [
        line for line in overview(replace(dataset, problems=(odd,))).splitlines() if "skipped |" in line
    ]
    assert row == "| a\\|b\\<i\\>\\_\\*.png | skipped | x \\| y z |"


def test_with_a_text_encoder_tokens_over_its_limit_are_named(dataset):
    text = report(dataset, TokenCount(tokens=len, limit=75))
    assert "longer than the 75 tokens that are read at once: 1: 3.png" in text
    assert "read at once" not in report(dataset, TokenCount(tokens=len, limit=0))


def test_the_report_as_a_picture_shows_each_bucket_and_survives_lost_files(dataset):
    whole = dataset_picture(dataset)
    assert whole.shape[0] == 1
    assert whole.shape[3] == 3
    assert float(whole.max()) <= 1
    for r in dataset.records[::2]:
        r.path.unlink()
    lost = dataset_picture(dataset)
    assert lost.shape == whole.shape
    assert not bool((lost == whole).all())
