from __future__ import annotations

import errno
import os
import random
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps, features

from in_graph_lora.trainer.data import formats, images
from in_graph_lora.trainer.data.images import (
    cover_box,
    examine,
    fit,
    inspect_image,
    on_colour,
    open_image,
    save_tensor,
)
from in_graph_lora.trainer.errors import DatasetError, StorageError


def photo(width=96, height=64, seed=0):
    """A smooth picture without symmetry, so that JPEG keeps it and no turn goes unnoticed."""
    rng = np.random.RandomState(seed)
    small = Image.fromarray(rng.randint(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def difference(a, b):
    return np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int)).mean()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_exif_orientation_gives_the_upright_picture(tmp_path, orientation, suffix):
    upright = photo()
    # How a camera held that way stores the pixels: the inverse of what a viewer has to do.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif.tobytes(), quality=95)

    assert difference(open_image(path), upright) < 3
    assert inspect_image(path)[0] == upright.size
    with Image.open(path) as raw:
        assert difference(ImageOps.exif_transpose(raw).convert("RGB"), open_image(path)) == 0


def test_an_exif_orientation_out_of_range_leaves_the_picture_as_stored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 42
    photo().save(tmp_path / "a.png", exif=exif.tobytes())
    assert difference(open_image(tmp_path / "a.png"), photo()) == 0


def test_transparency_lies_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 4, 8))
    image.paste((0, 0, 0, 128), (6, 0, 8, 8))
    image.save(tmp_path / "rgba.png")
    image.convert("LA").save(tmp_path / "la.png")
    for name, left in (("rgba.png", (255, 0, 0)), ("la.png", (76, 76, 76))):
        opened = open_image(tmp_path / name)
        assert opened.mode == "RGB"
        assert opened.getpixel((0, 0)) == left
        assert opened.getpixel((5, 0)) == (255, 255, 255)
        assert opened.getpixel((7, 0)) == (127, 127, 127)


def test_a_transparent_palette_colour_lies_on_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    opened = open_image(tmp_path / "p.png")
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (200, 100, 50)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "grey16.png")
    pixels = np.asarray(open_image(tmp_path / "grey16.png"))
    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "RGB"])
def test_every_png_mode_becomes_rgb(tmp_path, mode):
    photo().convert(mode).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert opened.size == (96, 64)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGB"])
def test_every_jpeg_mode_becomes_rgb_of_the_same_look(tmp_path, mode):
    photo().convert(mode).save(tmp_path / "a.jpg", quality=95)
    expected = photo().convert("L").convert("RGB") if mode == "L" else photo()
    assert difference(open_image(tmp_path / "a.jpg"), expected) < 4


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    for read in (open_image, inspect_image):
        with pytest.raises(DatasetError, match=rf"^a\.{suffix}: "):
            read(path)


def test_a_truncated_file_is_refused_although_another_pack_made_pillow_tolerant(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "a.jpg"
    photo(600, 600).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DatasetError, match="damaged or truncated"):
        open_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_random_damage_never_escapes_as_another_error(tmp_path):
    rng = random.Random(0)
    for suffix in ("jpg", "png", "webp"):
        buffer = BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        photo(40, 30).save(buffer, {"jpg": "JPEG"}.get(suffix, suffix.upper()), exif=exif.tobytes())
        for i in range(60):
            data = bytearray(buffer.getvalue())
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path = tmp_path / f"{i}.{suffix}"
            path.write_bytes(data)
            # What can still be decoded is fine; whatever else happens must be a DatasetError.
            with suppress(DatasetError):
                assert open_image(path).mode == "RGB"


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match=r"a\.png: the file is empty \(0 bytes\); copy it again"):
        inspect_image(tmp_path / "a.png")


def test_text_and_formats_that_are_not_read_are_refused_whatever_their_name(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    photo().save(tmp_path / "a.eps")
    photo().save(tmp_path / "b.tga")
    (tmp_path / "a.eps").rename(tmp_path / "eps.png")
    (tmp_path / "b.tga").rename(tmp_path / "tga.png")
    for name in ("text.jpg", "eps.png", "tga.png"):
        with pytest.raises(
            DatasetError, match="is no JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF picture inside"
        ):
            open_image(tmp_path / name)


LOSSY = {"avif": 8, "jpg": 4, "webp": 6, "gif": 12}


@pytest.mark.parametrize("suffix", ["jpg", "jfif", "png", "webp", "bmp", "tif", "gif", "avif"])
def test_every_format_gives_the_picture_whatever_the_file_is_called(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a.{suffix}"
    photo().save(path, "JPEG" if suffix == "jfif" else None)
    path = path.rename(tmp_path / "a.png")
    assert difference(open_image(path), photo()) < LOSSY.get(suffix, 4 if suffix == "jfif" else 0.01)
    assert not examine(path).animated


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_every_compression_of_tiff_is_read(tmp_path, compression):
    photo().save(tmp_path / "a.tif", compression=compression)
    assert difference(open_image(tmp_path / "a.tif"), photo()) < 8


@pytest.mark.parametrize("kind", ["webp", "png", "gif", "tiff"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_known(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    photo().save(path, save_all=True, append_images=[photo(seed=1)], duration=100)
    assert examine(path).animated
    assert difference(open_image(path), photo()) < 12


@pytest.mark.parametrize(
    ("name", "start", "words"),
    [
        ("a.heic", b"\0\0\0\x1cftypheic", "is HEIF, which needs pillow-heif"),
        ("a.jxl", b"\xff\x0a", "is JXL, which needs pillow-jxl-plugin"),
        ("b.jxl", b"\0\0\0\x0cJXL \r\n\x87\n", "is JXL, which needs pillow-jxl-plugin"),
    ],
)
def test_a_format_that_needs_a_package_names_it(tmp_path, monkeypatch, name, start, words):
    monkeypatch.setattr(formats, "known", lambda: ("JPEG", "PNG"))
    (tmp_path / name).write_bytes(start + b"\0" * 64)
    with pytest.raises(DatasetError, match=words):
        open_image(tmp_path / name)


def test_a_decoder_that_a_package_brings_is_registered(monkeypatch):
    formats.known()  # the real packages register themselves once, and not in the list of below
    asked = []
    monkeypatch.setitem(
        sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: asked.append(1))
    )
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k != "HEIF"})
    formats.known.cache_clear()
    try:
        assert "HEIF" not in formats.known()
        assert asked == [1]
    finally:
        formats.known.cache_clear()


@pytest.mark.parametrize(
    ("package", "suffix", "options", "off"),
    [
        ("pillow_heif", ".heic", {"quality": 90}, 8),
        ("pillow_jxl", ".jxl", {"lossless": True}, 0.01),
    ],
)
def test_real_files_of_a_format_that_a_package_reads(tmp_path, package, suffix, options, off):
    module = pytest.importorskip(package)
    if package == "pillow_heif":
        module.register_heif_opener()
    photo().save(tmp_path / f"a{suffix}", **options)
    found = examine(tmp_path / f"a{suffix}")
    assert found.size == photo().size
    assert difference(open_image(tmp_path / f"a{suffix}"), photo()) < off
    image = photo().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.save(tmp_path / f"clear{suffix}", **options)
    assert examine(tmp_path / f"clear{suffix}").transparent
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"cut{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match=f"cut{suffix}"):
        open_image(tmp_path / f"cut{suffix}")


def test_alpha_is_kept_when_asked_and_lies_on_any_colour(tmp_path):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    image.save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png", alpha=True)
    assert opened.mode == "RGBA"
    assert on_colour(opened, (0, 255, 0)).getpixel((0, 0)) == (0, 255, 0)
    assert examine(tmp_path / "a.png").transparent
    image.putpixel((0, 0), (0, 0, 0, 255))
    image.save(tmp_path / "opaque.png")
    assert open_image(tmp_path / "opaque.png", alpha=True).mode == "RGB"
    assert not examine(tmp_path / "opaque.png").transparent


def test_floating_point_tiff_is_read_as_0_to_1(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1, 7]], dtype=np.float32)).save(tmp_path / "a.tif")
    assert np.asarray(open_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255, 255]


def test_a_phone_photo_with_an_embedded_second_picture_is_the_photo(tmp_path):
    photo().save(tmp_path / "a.mpo", save_all=True, append_images=[photo(48, 32, seed=1)], quality=95)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as raw:
        assert raw.format == "MPO"
    assert difference(open_image(tmp_path / "a.jpg"), photo()) < 3


@pytest.mark.parametrize(
    ("size", "words"),
    [((12_000, 11_000), "132 million pixels"), ((20_000, 10_000), "more pixels than Pillow")],
)
def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch, size, words):
    # One bit a pixel: a file of some 25 kB that would take half a gigabyte.
    Image.new("1", size).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(DatasetError, match=words):
        open_image(tmp_path / "bomb.png")


def test_a_picture_between_pillows_warning_and_our_limit_opens_without_a_warning(tmp_path):
    Image.new("1", (10_000, 9_500)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "large.png").size == (10_000, 9_500)


def test_a_file_over_the_size_limit_is_refused_unread(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    with pytest.raises(DatasetError, match=r"MB \(limit"):
        open_image(tmp_path / "a.png")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"gone\.png: cannot be read \(no such file"):
        inspect_image(tmp_path / "gone.png")


def test_a_folder_named_like_a_picture_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DatasetError, match="is not a regular file"):
        open_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="is not a regular file"):
        open_image(tmp_path / "a.png")


def test_a_second_look_does_not_decode_and_a_changed_file_does(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    photo().save(path)
    first = inspect_image(path)
    decode = images._decode
    calls = []
    monkeypatch.setattr(images, "_decode", lambda *a: calls.append(a) or decode(*a))
    assert inspect_image(path) == first
    assert calls == []
    photo(50, 40).save(path)
    assert inspect_image(path)[0] == (50, 40)
    assert len(calls) == 1


def test_fit_gives_the_shape_dtype_and_range_that_training_expects():
    fitted = fit(photo(640, 427), (576, 384))
    assert fitted.shape == (384, 576, 3)
    assert fitted.dtype == torch.float32
    assert 0 <= float(fitted.min()) <= float(fitted.max()) <= 1


def test_fit_of_the_right_size_changes_no_pixel():
    image = photo(128, 64)
    expected = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
    assert torch.equal(fit(image, (128, 64)), expected)


@pytest.mark.parametrize(("size", "target"), [((900, 300), (256, 256)), ((300, 900), (320, 192))])
def test_fit_equals_resizing_to_cover_and_cropping_the_centre(size, target):
    image = photo(*size)
    scale = max(target[0] / size[0], target[1] / size[1])
    whole = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.LANCZOS)
    left, top = (whole.width - target[0]) // 2, (whole.height - target[1]) // 2
    cropped = whole.crop((left, top, left + target[0], top + target[1]))
    assert difference(fit(image, target) * 255, cropped) < 1


def test_fit_does_not_stretch_a_circle():
    y, x = np.mgrid[:300, :700]
    disc = (((x - 350) ** 2 + (y - 150) ** 2) < 60**2).astype(np.uint8) * 255
    fitted = fit(Image.fromarray(disc).convert("RGB"), (256, 448))[..., 0] > 0.5
    assert abs(int(fitted.any(0).sum()) - int(fitted.any(1).sum())) <= 2


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (1, 1)])
def test_fit_of_a_strip_costs_no_huge_intermediate(size):
    assert fit(Image.new("RGB", size, (10, 20, 30)), (1024, 256)).shape == (256, 1024, 3)


def test_cover_box_stays_within_the_picture():
    for size in [(200, 1), (1, 200), (4032, 3024), (333, 777)]:
        for target in [(512, 512), (1024, 256), (448, 576)]:
            left, top, right, bottom = cover_box(size, target)
            assert 0 <= left < right <= size[0]
            assert 0 <= top < bottom <= size[1]
            assert (right - left) / (bottom - top) == pytest.approx(target[0] / target[1])


def test_a_saved_tensor_reads_back_to_the_same_eight_bits(tmp_path):
    eight_bit = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (20, 30, 3))).float()
    path = save_tensor(eight_bit / 255, tmp_path / "new")
    assert torch.equal(torch.from_numpy(np.array(open_image(path))).float(), eight_bit)
    assert save_tensor(eight_bit / 255, tmp_path / "new") == path
    assert [p.name for p in (tmp_path / "new").iterdir()] == [path.name]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_saved_tensor_that_is_damaged_changed_or_gone_is_written_again_with_the_same_bytes(
    tmp_path, channels
):
    pixels = torch.from_numpy(np.random.RandomState(0).rand(20, 30, channels))
    path = save_tensor(pixels, tmp_path)
    whole = path.read_bytes()
    for content in (b"", whole[:-40], b"no picture", tmp_path / "other.png"):
        if isinstance(content, Path):
            photo(30, 20).save(content)
            content = content.read_bytes()
        path.write_bytes(content)
        assert save_tensor(pixels, tmp_path) == path
        assert path.read_bytes() == whole
    path.unlink()
    save_tensor(pixels, tmp_path)
    assert path.read_bytes() == whole


def test_a_saved_tensor_that_is_whole_is_not_written_again(tmp_path):
    path = save_tensor(torch.zeros(8, 8, 3), tmp_path)
    os.utime(path, ns=(1, 1))
    save_tensor(torch.zeros(8, 8, 3), tmp_path)
    assert path.stat().st_mtime_ns == 1


def test_no_half_of_a_tensor_is_left_when_writing_fails(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="make space on the disk"):
        save_tensor(torch.zeros(8, 8, 3), tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_tensors_that_are_no_pictures_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="shape"):
        save_tensor(torch.zeros(4, 4), tmp_path)
    with pytest.raises(DatasetError, match="shape"):
        save_tensor(torch.zeros(4, 4, 2), tmp_path)
    with pytest.raises(DatasetError, match="NaN"):
        save_tensor(torch.full((4, 4, 3), float("nan")), tmp_path)


def test_of_large_pictures_one_is_decoded_at_a_time(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    inside, most = [0], [0]
    load = ImageFile.ImageFile.load

    def slow(image):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", slow)
    for limit, allowed in ((10**9, {2, 3, 4}), (100, {1})):
        monkeypatch.setattr(images, "LARGE_PIXELS", limit)
        most[0] = 0
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(open_image, [tmp_path / "a.png"] * 8))
        assert most[0] in allowed


def test_pillows_settings_are_as_before_when_several_threads_have_decoded(tmp_path, monkeypatch):
    photo().save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    filters = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_image, [tmp_path / "a.png"] * 40))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
    assert warnings.filters == filters
