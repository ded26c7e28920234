from __future__ import annotations

import math

import pytest

from in_graph_lora.trainer.data.buckets import bucket_shapes, bucket_size, group_by_bucket

RESOLUTIONS = (256, 512, 544, 768, 1000, 1024, 2048)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_shape_is_made_of_steps_and_stays_within_the_area(resolution):
    for w, h in bucket_shapes(resolution):
        assert w % 64 == 0
        assert h % 64 == 0
        assert w * h <= resolution**2


@pytest.mark.parametrize("resolution", [512, 768, 1024, 2048])
def test_no_shape_wastes_more_than_a_fifth_of_the_area(resolution):
    assert min(w * h for w, h in bucket_shapes(resolution)) > 0.8 * resolution**2


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((3000, 3000), (512, 512)),
        ((4000, 3000), (576, 448)),
        ((3000, 4000), (448, 576)),
        ((1250, 1000), (576, 448)),
        ((64, 64), (512, 512)),
    ],
)
def test_common_photo_shapes_at_512(size, bucket):
    assert bucket_size(*size, resolution=512) == bucket


def test_chosen_shape_has_the_nearest_aspect_ratio_of_all():
    for size in [(1920, 1080), (1000, 1), (333, 777), (1437, 901)]:
        w, h = bucket_size(*size, resolution=1024)
        wanted = math.log(size[0] / size[1])
        best = min(abs(math.log(a / b) - wanted) for a, b in bucket_shapes(1024))
        assert abs(math.log(w / h) - wanted) == pytest.approx(best, abs=1e-8)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_a_square_picture_gets_a_square_bucket(resolution):
    w, h = bucket_size(777, 777, resolution=resolution)
    assert w == h == resolution // 64 * 64


@pytest.mark.parametrize("size", [(200, 1), (1, 200), (10_000, 10)])
def test_extreme_strips_are_held_at_the_largest_aspect_ratio(size):
    w, h = bucket_size(*size, resolution=512)
    assert max(w, h) == 4 * min(w, h)
    assert (w > h) == (size[0] > size[1])


def test_turning_a_picture_turns_its_bucket():
    for w in range(100, 2000, 37):
        bw, bh = bucket_size(w, 900, resolution=768)
        assert bucket_size(900, w, resolution=768) == (bh, bw)


def test_resolution_below_one_step_still_gives_one_step():
    assert bucket_size(30, 40, resolution=32) == (64, 64)


def test_other_steps_are_respected():
    w, h = bucket_size(1600, 900, resolution=512, step=8)
    assert w % 8 == h % 8 == 0
    assert abs(w / h - 16 / 9) < 0.05


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="0x10"):
        bucket_size(0, 10, resolution=512)


def test_grouping_keeps_order_and_loses_nothing():
    sizes = [(100, 100), (400, 300), (50, 50), (300, 400), (800, 600)]
    groups = group_by_bucket(sizes, resolution=512)
    assert groups == {(512, 512): [0, 2], (576, 448): [1, 4], (448, 576): [3]}
