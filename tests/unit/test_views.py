"""What of a picture is trained: crops, mirrors, colours, masks, and their number."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from in_graph_lora.trainer.data.buckets import MAX_WHOLE_ASPECT, whole_size
from in_graph_lora.trainer.data.framing import CROPS, UPSCALING, Framing, own_resolution
from in_graph_lora.trainer.data.pixels import opened
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.data.views import View, views
from in_graph_lora.trainer.errors import ConfigError


def record(size=(800, 400), role="instance", focus=None, path="a.png", mask=None, **framing):
    return ImageRecord(
        path=Path(path),
        caption="x",
        size=size,
        digest="d" * 64,
        role=role,
        focus=focus,
        mask=mask,
        framing=Framing(**framing),
    )


def noise(size, seed=0, mode="RGB"):
    rng = np.random.RandomState(seed)
    return Image.fromarray(rng.randint(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8), mode)


def test_a_picture_without_framing_has_one_view_of_its_centre():
    (view,) = views(record((800, 400)), resolution=256)
    assert view.box == pytest.approx((200 / 3, 0, 2200 / 3, 400))
    assert view == View(size=(320, 192), box=view.box, original=(800, 400))


def test_the_number_of_views_is_known_without_making_them():
    for crop, crops, flip, jitter, jitters, upscaling, role in product(
        CROPS, (1, 3), (False, True), (0.0, 0.1), (1, 2), UPSCALING, ("instance", "validation")
    ):
        r = record(
            (300, 200),
            role,
            crop=crop,
            crops=crops,
            flip=flip,
            jitter=jitter,
            jitters=jitters,
            upscaling=upscaling,
            resolutions=(128, 160, 512, 1024),
        )
        found = views(r, resolution=64)
        assert len(found) == r.views_at(64), (r.framing, role)
        assert len(set(found)) >= len({v.size for v in found})


def test_resolutions_that_come_to_one_size_are_both_shown():
    dataset = Dataset(records=(record((512, 512), resolutions=(512, 520)),), resolution=512)
    shown = [v for r in dataset.records for v in views(r, resolution=512)]
    assert [v.size for v in shown] == [(512, 512), (512, 512)]
    assert dataset.shown == len(shown)


def test_the_same_resolution_twice_is_once():
    assert Framing(resolutions=(512, 512, 768)).resolutions == (512, 768)


def test_upscaling_is_allowed_refused_or_avoided():
    small = (400, 300)
    assert own_resolution(small) == 346
    for upscaling, sizes in [
        ("allow", [(320, 192), (576, 448)]),
        ("own_size", [(320, 192), (384, 256)]),
        ("refuse", [(320, 192)]),
    ]:
        r = record(small, upscaling=upscaling, resolutions=(256, 512))
        assert [v.size for v in views(r, resolution=64)] == sizes
    assert record(small, upscaling="refuse").views_at(512) == 0
    assert views(record(small, upscaling="refuse"), resolution=512) == []


@pytest.mark.parametrize("size", [(346, 346), (1000, 250), (5000, 100), (7, 5000)])
def test_a_picture_at_its_own_resolution_is_enlarged_by_a_step_at_most(size):
    (view,) = views(record(size, upscaling="own_size", step=8), resolution=4096)
    left, top, right, bottom = view.box
    assert view.size[0] < right - left + 1 + 2 * 8
    assert view.size[1] < bottom - top + 1 + 2 * 8


def test_the_focus_box_is_in_the_middle_of_the_crop_as_far_as_edges_allow():
    def box(focus, size=(800, 400)):
        (view,) = views(record(size, focus=focus), resolution=192)
        return view.box

    centre = box(None)
    assert box((390, 100, 410, 300)) == pytest.approx(centre)
    left = box((0, 0, 40, 40))
    assert left[0] == 0
    assert left[2] - left[0] == pytest.approx(centre[2] - centre[0])
    assert box((760, 0, 800, 40))[2] == 800
    upper = box((0, 0, 10, 300), (400, 900))
    assert (upper[1] + upper[3]) / 2 == pytest.approx(max(150, (upper[3] - upper[1]) / 2))
    (ignored,) = views(record(focus=(0, 0, 40, 40), crop="center"), resolution=192)
    assert ignored.box == centre


def test_random_crops_are_drawn_from_the_seed_and_lie_apart():
    def boxes(**more):
        return [v.box for v in views(record((1600, 300), crop="random", crops=4, **more), resolution=256)]

    first = boxes()
    assert first == boxes()
    assert first != boxes(seed=1)
    lefts = [b[0] for b in first]
    assert lefts == sorted(lefts)
    room = 1600 - (first[0][2] - first[0][0])
    assert [int(left / room * 4) for left in lefts] == [0, 1, 2, 3]
    assert all(0 <= b[0] < b[2] <= 1600 and b[1] == 0 and b[3] == 300 for b in first)


@pytest.mark.parametrize("step", [8, 16, 32, 64])
@pytest.mark.parametrize(
    "size", [(4000, 3000), (3000, 4000), (1920, 1080), (1000, 1000), (3000, 400), (97, 1400)]
)
def test_no_crop_cuts_no_more_than_rounding_asks_for(size, step):
    (view,) = views(record(size, crop="none", step=step), resolution=1024)
    assert view.size == whole_size(*size, resolution=1024, step=step)
    left, top, right, bottom = view.box
    scale = view.size[0] / (right - left)
    assert (size[0] - (right - left)) * scale <= step / 2 + 1
    assert (size[1] - (bottom - top)) * scale <= step / 2 + 1
    assert view.size[0] % step == view.size[1] % step == 0
    assert 0.6 * 1024**2 <= view.size[0] * view.size[1] <= 1024**2


def test_a_line_is_cut_to_the_longest_shape():
    width, height = whole_size(20_000, 10, resolution=512, step=64)
    assert width / height == MAX_WHOLE_ASPECT


def test_steps_of_the_framing_and_the_model_are_both_kept():
    (view,) = views(record((800, 433), step=16), resolution=512, step=1)
    assert view.size[0] % 16 == view.size[1] % 16 == 0
    assert view.size[1] % 64
    (view,) = views(record((800, 433), step=16), resolution=512, step=24)
    assert view.size[0] % 48 == view.size[1] % 48 == 0


def test_mirrored_views_are_the_mirror_and_carry_the_mirrored_mask(tmp_path):
    image, mask = noise((256, 128)), noise((256, 128), 1)
    plain, flipped = views(record((256, 128), flip=True), resolution=128)
    assert not plain.flipped
    assert torch.equal(flipped.cut(image), plain.cut(image).flip(1))
    assert torch.equal(flipped.cut(image), plain.cut(ImageOps.mirror(image)))
    assert torch.equal(flipped.cut_mask(mask), plain.cut_mask(mask).flip(1))


def test_colours_change_the_picture_and_not_its_mask_and_the_first_view_stays():
    image = noise((128, 128))
    plain, *changed = views(record((128, 128), jitter=0.2, jitters=3), resolution=128)
    assert torch.equal(plain.cut(image), torch.from_numpy(np.array(image, dtype=np.float32) / 255))
    assert len({v.colour for v in changed}) == 3
    for view in changed:
        assert all(0.8 <= c <= 1.2 for c in view.colour)
        assert not torch.equal(view.cut(image), plain.cut(image))
        assert torch.equal(view.cut_mask(image), plain.cut_mask(image))


def test_pictures_that_are_held_out_are_measured_as_they_are():
    more = {"crop": "random", "crops": 3, "flip": True, "jitter": 0.2, "resolutions": (256, 512)}
    held = views(record(role="validation", **more), resolution=64)
    assert held == views(record(resolutions=(256, 512), crop="center"), resolution=64)


def test_transparency_lies_on_the_colour_that_was_chosen_and_may_be_the_mask(tmp_path):
    image = Image.new("RGBA", (128, 128), (10, 20, 30, 255))
    image.paste((0, 0, 0, 0), (0, 0, 64, 128))
    image.save(tmp_path / "a.png")
    r = record((128, 128), path=tmp_path / "a.png", mask=tmp_path / "a.png", background=(255, 0, 0))
    (view,) = views(r, resolution=128)
    source, hidden = opened(r)
    assert (view.cut(source)[64, 10] * 255).round().tolist() == [255, 0, 0]
    assert (view.cut(source)[64, 120] * 255).round().tolist() == [10, 20, 30]
    mask = view.cut_mask(hidden)
    assert mask.shape == (128, 128)
    assert mask[64, 10] == 0
    assert mask[64, 120] == 1


def test_where_a_crop_begins_is_told_in_the_scaled_picture():
    plain, flipped = views(record((1600, 600), focus=(0, 0, 300, 300), flip=True), resolution=512)
    left, top, right, bottom = plain.box
    scale = plain.size[1] / (bottom - top)
    assert left == 0
    assert plain.top_left == (0, round(top * scale))
    assert flipped.top_left == (round((1600 - right) * scale), round(top * scale))
    assert flipped.top_left[0] > 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"crop": "top"}, "crop is 'top'; use one of focus, center, random, none"),
        ({"crops": 0}, "crops is 0; use 1 to 16"),
        ({"crops": 17}, "crops is 17"),
        ({"jitter": 0.6}, "jitter is 0.6"),
        ({"upscaling": "no"}, "upscaling is 'no'"),
        ({"step": 24}, "step is 24"),
        ({"resolutions": (512, 8)}, "resolutions: 8 is out of range"),
    ],
)
def test_framing_that_is_out_of_range_is_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        Framing(**wrong)


def test_framing_and_focus_are_part_of_the_datasets_digest():
    digests = {
        Dataset(records=(r,)).digest
        for r in (record(), record(flip=True), record(background=(0, 0, 0)), record(focus=(0, 0, 9, 9)))
    }
    assert len(digests) == 4


def test_what_is_shown_beside_a_view_is_mirrored_and_coloured_with_it():
    image = noise((400, 150))
    for view in views(record((400, 150), crop="random", crops=2, flip=True), resolution=128):
        beside = view.of_whole.cut(view.whole(image))
        assert torch.allclose(beside, view.cut(image), atol=2 / 255)
    *_, changed = views(record((128, 128), flip=True, jitter=0.2), resolution=128)
    assert changed.flipped
    assert torch.equal(changed.of_whole.cut(changed.whole(noise((128, 128)))), changed.cut(noise((128, 128))))
