"""Datasets as other trainers have them."""

from __future__ import annotations

import json
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data.layouts import archive
from in_graph_lora.trainer.data.layouts.archive import check_archive, is_archive, unpacked
from in_graph_lora.trainer.data.scan import check_folder, folder_fingerprint, scan_folder
from in_graph_lora.trainer.errors import DatasetError


def picture(path, size=(40, 30), colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def told(dataset):
    return [str(p) for p in dataset.problems]


# --- subfolders and masks --------------------------------------------------------------------------------


def test_all_subfolders_are_read_when_asked_and_numbers_still_repeat(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "dogs" / "b.png")
    picture(tmp_path / "dogs" / "deep" / "c.png")
    picture(tmp_path / "3_cats" / "d.png")
    picture(tmp_path / ".hidden" / "e.png")
    (tmp_path / "dogs" / "b.txt").write_text("a dog")
    found = scan_folder(tmp_path, subfolders=True, repeats=2)
    assert [(r.name, r.repeats, r.caption) for r in found.records] == [
        ("a.png", 2, ""),
        ("d.png", 6, ""),
        ("b.png", 2, "a dog"),
        ("c.png", 2, ""),
    ]
    assert found.problems == ()
    assert folder_fingerprint(tmp_path) != folder_fingerprint(tmp_path, subfolders=True)


def test_a_link_to_a_folder_above_is_not_read_for_ever(tmp_path):
    picture(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert [r.name for r in scan_folder(tmp_path, subfolders=True).records] == ["a.png"]


@pytest.mark.parametrize("where", ["masks", "elsewhere"])
def test_masks_of_a_folder_belong_to_the_pictures_of_the_same_name(tmp_path, where):
    root = tmp_path / "set"
    for name in ("a.jpg", "b.png", "c.png"):
        picture(root / name)
    folder = root / where if where == "masks" else tmp_path / where
    for name, size in (("a.png", (40, 30)), ("b.webp", (9, 9)), ("x.png", (40, 30))):
        picture(folder / name, size)
    picture(root / "c-masklabel.png")
    found = scan_folder(root, mask_folder=None if where == "masks" else folder)
    masks = {r.name: r.mask and r.mask.name for r in found.records}
    assert masks == {"a.jpg": "a.png", "b.png": None, "c.png": "c-masklabel.png"}
    assert told(found) == [
        "x.png: is a mask and there is no picture x; rename it, or remove it",
        "b.webp: has 9x9 and its picture 40x30; save it at the picture's size"
        " (the picture is used without a mask)",
    ]


def test_folders_of_masks_and_control_pictures_serve_all_subfolders_and_hold_no_pictures(tmp_path):
    for name in ("a.png", "dogs/b.png", "hints/a.png", "hints/dogs/b.png", "white/a.png", "white/b.png"):
        picture(tmp_path / name)
    found = scan_folder(
        tmp_path, subfolders=True, mask_folder=tmp_path / "white", control_folders=[tmp_path / "hints"]
    )
    assert [(r.name, r.mask and r.mask.name, len(r.controls)) for r in found.records] == [
        ("a.png", "a.png", 1),
        ("b.png", "b.png", 1),
    ]
    assert told(found) == []


# --- kohya -----------------------------------------------------------------------------------------------


def kohya(tmp_path, text):
    (tmp_path / "set.toml").write_text(text, encoding="utf-8")
    return tmp_path / "set.toml"


def test_a_kohya_dataset_is_read_with_what_has_a_counterpart(tmp_path):
    picture(tmp_path / "mine" / "a.png")
    (tmp_path / "mine" / "a.txt").write_text("from the file")
    picture(tmp_path / "mine" / "b.png")
    picture(tmp_path / "class" / "c.png")
    path = kohya(
        tmp_path,
        f"""
        [general]
        caption_extension = ".txt"
        keep_tokens = 1
        flip_aug = true
        [[datasets]]
        resolution = [768, 512]
        batch_size = 4
        shuffle_caption = true
          [[datasets.subsets]]
          image_dir = "mine"
          num_repeats = 10
          class_tokens = "sks dog"
          [[datasets.subsets]]
          image_dir = {json.dumps(str(tmp_path / "class"))}
          is_reg = true
          flip_aug = false
          class_tokens = "dog"
        """,
    )
    check_folder(path)
    found = scan_folder(path, repeats=2)
    assert [(r.name, r.caption, r.repeats, r.role, r.framing.flip) for r in found.records] == [
        ("a.png", "from the file", 20, "instance", True),
        ("b.png", "sks dog", 20, "instance", True),
        ("c.png", "dog", 2, "class", False),
    ]
    assert {r.framing.resolutions for r in found.records} == {(627,)}
    assert told(found) == [
        "set.toml: these settings have no counterpart here and are not used: keep_tokens, shuffle_caption"
    ]
    assert not found.problems[0].skipped


def test_an_edited_kohya_file_changes_the_fingerprint_and_so_does_a_caption(tmp_path):
    picture(tmp_path / "mine" / "a.png")
    text = SUBSET + 'image_dir = "mine"\ncaption_extension = ".tags"\nnum_repeats = {}\n'
    prints = {folder_fingerprint(kohya(tmp_path, text.format(n))) for n in (1, 2)}
    (tmp_path / "mine" / "a.tags").write_text("one")
    prints.add(folder_fingerprint(tmp_path / "set.toml"))
    (tmp_path / "mine" / "a.tags").write_text("two")
    prints.add(folder_fingerprint(tmp_path / "set.toml"))
    assert len(prints) == 4


SUBSET = "[[datasets]]\n[[datasets.subsets]]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[datasets]]\nx = \ny = 1", r"set\.toml: cannot be understood \(.*line 2"),
        ("x = 1", r"set\.toml has no \[\[datasets\]\]"),
        ("[[datasets]]\n", r"dataset 1 has no \[\[subsets\]\]"),
        (SUBSET, "image_dir of subset 1 of dataset 1 names no folder"),
        (SUBSET + "image_dir = 3", "names no folder"),
        (SUBSET + 'image_dir = "gone"', "gone: there is no such folder"),
        (SUBSET + 'image_dir = "mine"\nnum_repeats = 0', "num_repeats of subset 1 of dataset 1 is 0"),
        (SUBSET + 'image_dir = "mine"\nnum_repeats = true', "num_repeats of subset 1 of dataset 1 is True"),
        (SUBSET + 'image_dir = "mine"\nresolution = "big"', "resolution of subset 1 of dataset 1 is 'big'"),
        (SUBSET + 'image_dir = "mine"\nflip_aug = "yes"', "flip_aug of subset 1 of dataset 1 is 'yes'"),
    ],
)
def test_a_kohya_file_that_is_wrong_is_told_in_a_sentence(tmp_path, text, words):
    picture(tmp_path / "mine" / "a.png")
    with pytest.raises(DatasetError, match=words):
        scan_folder(kohya(tmp_path, text))


# --- SimpleTuner -----------------------------------------------------------------------------------------


def backend(tmp_path, *entries):
    (tmp_path / "multidatabackend.json").write_text(json.dumps(entries))
    return tmp_path


def test_simpletuners_backends_are_read(tmp_path):
    picture(tmp_path / "one" / "7_deep" / "a_red_hat.png")
    (tmp_path / "one" / "7_deep" / "a_red_hat.txt").write_text("from the file")
    picture(tmp_path / "two" / "b_c.png")
    picture(tmp_path / "three" / "d.png")
    root = backend(
        tmp_path,
        {
            "id": "1",
            "type": "local",
            "instance_data_dir": "one",
            "resolution": 1.0,
            "repeats": 4,
            "crop": False,
        },
        {
            "id": "2",
            "type": "local",
            "instance_data_dir": "two",
            "caption_strategy": "filename",
            "resolution": 512,
            "resolution_type": "pixel_area",
            "crop": True,
            "crop_style": "random",
            "probability": 0.5,
        },
        {
            "id": "3",
            "type": "local",
            "instance_data_dir": str(tmp_path / "three"),
            "caption_strategy": "instanceprompt",
            "instance_prompt": "a thing",
            "is_regularisation_data": True,
            "cache_dir_vae": "x",
        },
        {"id": "4", "type": "aws"},
        {"id": "5", "type": "local", "instance_data_dir": "gone", "disabled": True},
        {"id": "text", "dataset_type": "text_embeds", "default": True},
    )
    for path in (root, root / "multidatabackend.json"):
        found = scan_folder(path)
        assert [
            (r.caption, r.repeats, r.role, r.framing.resolutions, r.framing.crop) for r in found.records
        ] == [
            ("from the file", 5, "instance", (1024,), "none"),
            ("b c", 1, "instance", (512,), "random"),
            ("a thing", 1, "class", (), "focus"),
        ]
        assert told(found) == [
            "multidatabackend.json: '4' is a dataset of type 'aws', 'image'; only local folders of pictures"
            " are read",
            "multidatabackend.json: these settings have no counterpart here and are not used: probability",
        ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"type": "local"}, "instance_data_dir of .* names no folder"),
        ({"type": "local", "instance_data_dir": "one", "repeats": -1}, "repeats is -1"),
        ({"type": "local", "instance_data_dir": "one", "resolution": "x"}, "resolution is 'x'"),
        (
            {"type": "local", "instance_data_dir": "one", "caption_strategy": "parquet"},
            "caption_strategy is 'parq",
        ),
        (
            {"type": "local", "instance_data_dir": "one", "caption_strategy": "instanceprompt"},
            "is empty; write one",
        ),
        ({"type": "aws"}, "names no local folder"),
        (3, "is not a list of datasets"),
    ],
)
def test_a_backend_that_is_wrong_is_told_in_a_sentence(tmp_path, entry, words):
    picture(tmp_path / "one" / "a.png")
    with pytest.raises(DatasetError, match=words):
        scan_folder(backend(tmp_path, entry))


@pytest.mark.parametrize("leads", ["../private", "{tmp}/private"])
def test_a_backend_in_a_folder_leads_out_of_it_only_when_its_own_path_is_given(tmp_path, leads):
    picture(tmp_path / "private" / "a.png")
    root = tmp_path / "downloaded"
    root.mkdir()
    backend(root, {"type": "local", "instance_data_dir": leads.format(tmp=tmp_path)})
    with pytest.raises(DatasetError, match=r"entry 1: names .*private.* outside of the folder; type"):
        scan_folder(root)
    assert len(scan_folder(root / "multidatabackend.json").records) == 1


# --- Hugging Face ----------------------------------------------------------------------------------------


def test_an_imagefolder_with_splits_holds_its_validation_out(tmp_path):
    picture(tmp_path / "train" / "dogs" / "1.png")
    picture(tmp_path / "train" / "2.png")
    picture(tmp_path / "validation" / "3.png")
    picture(tmp_path / "test" / "4.png")
    rows = [{"file_name": "dogs/1.png", "text": "one"}, {"file_name": "2.png", "text": "two"}]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "validation" / "metadata.csv").write_text("file_name,text\n3.png,three\n")
    found = scan_folder(tmp_path)
    assert [(r.name, r.caption, r.role) for r in found.records] == [
        ("2.png", "two", "instance"),
        ("1.png", "one", "instance"),
        ("3.png", "three", "validation"),
    ]
    assert told(found) == ["test: is a split for tests and is not used; move what should be trained to train"]
    assert {r.role for r in scan_folder(tmp_path, role="class").records} == {"class"}


def test_metadata_above_subfolders_makes_them_read(tmp_path):
    picture(tmp_path / "images" / "1.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "images/1.png", "text": "one"}')
    assert [(r.name, r.caption) for r in scan_folder(tmp_path).records] == [("1.png", "one")]


# --- archives --------------------------------------------------------------------------------------------


def packed(tmp_path, files, name="set.zip", **options):
    path = tmp_path / name
    with zipfile.ZipFile(path, "w", **options) as z:
        for inner, data in files.items():
            z.writestr(inner, data)
    return path


@pytest.fixture
def png(tmp_path):
    return picture(tmp_path / "source.png").read_bytes()


def test_a_zip_is_unpacked_once_and_read_like_a_folder(tmp_path, png):
    files = {
        "dog/a.png": png,
        "dog/a.txt": "a dog",
        "dog/3_x/b.png": png,
        "__MACOSX/dog/._a.png": "x",
        "dog/r.py": "",
    }
    path = packed(tmp_path, files)
    assert is_archive(path)
    check_folder(path)
    folder = unpacked(path, tmp_path / "into")
    found = scan_folder(folder)
    assert [(r.name, r.caption, r.repeats) for r in found.records] == [
        ("a.png", "a dog", 1),
        ("b.png", "", 3),
    ]
    assert not list((tmp_path / "into").rglob("*.py"))
    before = (folder / "a.png").stat().st_mtime_ns
    assert unpacked(path, tmp_path / "into") == folder
    assert (folder / "a.png").stat().st_mtime_ns == before
    (folder / "a.png").write_bytes(b"torn")
    assert unpacked(path, tmp_path / "into") == folder
    assert (folder / "a.png").read_bytes() == png
    assert [p.name for p in (tmp_path / "into").iterdir()] == [folder.parent.name]


def test_an_archive_of_other_content_gets_another_folder(tmp_path, png):
    first = unpacked(packed(tmp_path, {"a.png": png, "a.txt": "x"}), tmp_path / "into")
    second = unpacked(packed(tmp_path, {"a.png": png, "a.txt": "y"}), tmp_path / "into")
    assert first != second


def linked(name):
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"../out.png": b"x"}, r"names that lead out of it, or links: \.\./out\.png"),
        ({"/etc/a.png": b"x"}, "names that lead out"),
        ({"a/../../b.png": b"x"}, "names that lead out"),
        ({"C:\\a.png": b"x"}, "names that lead out"),
        ({"..\\a.png": b"x"}, "names that lead out"),
        ({linked("a.png"): b"/etc/passwd"}, "names that lead out of it, or links: a.png"),
        ({"/".join("d" * 40) + "/a.png": b"x"}, "names that lead out"),
        ({"a.txt": b"x"}, "holds no pictures"),
        ({}, "holds no pictures"),
        ({"A.png": b"x", "a.png": b"y"}, "two files of the same name"),
    ],
)
def test_archives_that_lead_out_or_hold_nothing_are_refused_and_nothing_is_written(tmp_path, files, words):
    path = packed(tmp_path, files)
    for refuse in (check_archive, lambda p: unpacked(p, tmp_path / "into")):
        with pytest.raises(DatasetError, match=words):
            refuse(path)
    assert not (tmp_path / "into").exists()


def test_a_zip_bomb_is_refused(tmp_path):
    path = packed(tmp_path, {"a.png": b"\0" * 80_000_000}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DatasetError, match="as a zip bomb does"):
        check_archive(path)


def test_too_many_files_are_refused(tmp_path, png, monkeypatch):
    monkeypatch.setattr(archive, "MAX_FILES", 3)
    with pytest.raises(DatasetError, match=r"holds 4 files \(limit 3\)"):
        check_archive(packed(tmp_path, {f"{i}.png": png for i in range(4)}))


def test_an_encrypted_archive_is_refused(tmp_path, png):
    path = packed(tmp_path, {"a.png": png})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="is encrypted"):
        check_archive(path)


def test_a_size_that_the_archive_states_too_small_is_noticed(tmp_path, png):
    path = packed(tmp_path, {"a.png": png})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 10)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=r"larger than the archive says|is damaged"):
        unpacked(path, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"PK" + d[2:40]])
def test_a_damaged_archive_is_refused(tmp_path, png, damage):
    path = packed(tmp_path, {"a.png": png})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match="is not a zip that can be read"):
        unpacked(path, tmp_path / "into")


def test_a_member_that_is_damaged_leaves_nothing_behind(tmp_path, png):
    path = packed(tmp_path, {"a.png": png, "b.png": png})
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="is damaged"):
        unpacked(path, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path):
    picture(tmp_path / "set.zip" / "a.png")
    assert not is_archive(tmp_path / "set.zip")
    assert len(scan_folder(Path(tmp_path / "set.zip"))) == 1
