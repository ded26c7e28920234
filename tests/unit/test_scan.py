from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from in_graph_lora.trainer.data import images
from in_graph_lora.trainer.data.scan import check_folder, folder_fingerprint, scan_folder
from in_graph_lora.trainer.errors import DatasetError
from in_graph_lora.trainer.files import natural_key


def picture(path, size=(40, 30), colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def names(dataset):
    return [r.path.name for r in dataset.records]


def captions(dataset):
    return {r.path.name: r.caption for r in dataset.records}


def reasons(dataset):
    return {p.path.name: p.reason for p in dataset.problems}


def test_pictures_come_in_natural_order_whatever_the_case_of_their_suffix(tmp_path):
    for name in ("img10.png", "img2.JPG", "IMG1.jpeg", "img3.WebP"):
        picture(tmp_path / name)
    dataset = scan_folder(tmp_path, resolution=768, repeats=3)
    assert names(dataset) == ["IMG1.jpeg", "img2.JPG", "img3.WebP", "img10.png"]
    assert dataset.resolution == 768
    assert {(r.repeats, r.role, r.size) for r in dataset.records} == {(3, "instance", (40, 30))}
    assert dataset.problems == ()


def test_natural_order_compares_numbers_by_value():
    assert sorted(["a10b", "a9b2", "a9b10", "1", "b", "a"], key=natural_key) == [
        "1", "a", "a9b2", "a9b10", "a10b", "b",
    ]  # fmt: skip


def test_the_role_is_given_to_each_record(tmp_path):
    picture(tmp_path / "a.png")
    assert scan_folder(tmp_path, role="class").records[0].role == "class"


def test_hidden_and_foreign_files_are_left_alone(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "._a.png")
    picture(tmp_path / ".hidden" / "b.png")
    (tmp_path / "notes.md").write_text("x")
    dataset = scan_folder(tmp_path)
    assert names(dataset) == ["a.png"]
    assert dataset.problems == ()


def test_a_txt_caption_wins_over_caption_file_and_metadata(tmp_path):
    for name in "abcde":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text(" from txt \n")
    (tmp_path / "a.caption").write_text("from caption")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,csv\nb.png,csv\nc.png,csv\n")
    rows = [f'{{"file_name": "{name}.png", "text": "jsonl"}}' for name in "abcd"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    dataset = scan_folder(tmp_path)
    assert captions(dataset) == {
        "a.png": "from txt",
        "b.png": "from caption",
        "c.png": "csv",
        "d.png": "jsonl",
        "e.png": "",
    }
    assert dataset.problems == ()


def test_gb18030_captions_are_read(tmp_path):
    picture(tmp_path / "猫.png")
    (tmp_path / "猫.txt").write_bytes("一只猫在窗边".encode("gb18030"))
    assert captions(scan_folder(tmp_path)) == {"猫.png": "一只猫在窗边"}


def test_an_unreadable_caption_is_reported_and_the_picture_kept(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 ")
    dataset = scan_folder(tmp_path)
    assert captions(dataset) == {"a.png": ""}
    assert reasons(dataset) == {"a.txt": "is neither UTF-8 nor GB18030 text; save it as UTF-8"}


def test_subfolders_with_a_number_repeat_their_pictures(tmp_path):
    picture(tmp_path / "root.png")
    picture(tmp_path / "10_sks dog" / "b.png")
    picture(tmp_path / "2_狗" / "a.png")
    (tmp_path / "2_狗" / "a.txt").write_text("一只狗", encoding="utf-8")
    dataset = scan_folder(tmp_path, repeats=3)
    assert [(r.path.name, r.repeats, r.caption) for r in dataset.records] == [
        ("root.png", 3, ""),
        ("a.png", 6, "一只狗"),
        ("b.png", 30, ""),
    ]


def test_subfolders_without_a_usable_number_are_reported(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "more" / "b.png")
    picture(tmp_path / "20240131_holiday" / "c.png")
    picture(tmp_path / "0_off" / "d.png")
    (tmp_path / "empty").mkdir()
    dataset = scan_folder(tmp_path)
    assert names(dataset) == ["a.png"]
    found = reasons(dataset)
    assert set(found) == {"more", "20240131_holiday", "0_off"}
    assert found["more"] == "is a subfolder with pictures (1); rename it to 1_name, or switch subfolders on"
    assert "asks for 20240131 repeats" in found["20240131_holiday"]


def test_metadata_of_the_root_may_name_pictures_in_subfolders_and_the_nearer_file_wins(tmp_path):
    picture(tmp_path / "2_x" / "a.png")
    picture(tmp_path / "2_x" / "b.png")
    (tmp_path / "metadata.csv").write_text("image,prompt\n2_x/a.png,root\n2_x\\b.png,root\n")
    (tmp_path / "2_x" / "metadata.csv").write_text("image,prompt\na.png,near\n")
    assert captions(scan_folder(tmp_path)) == {"a.png": "near", "b.png": "root"}


def test_metadata_rows_without_a_picture_are_reported(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,x\ngone.png,y\n")
    dataset = scan_folder(tmp_path)
    assert [p.reason for p in dataset.problems] == ["metadata names pictures that are not there: gone.png"]


def test_unusable_pictures_are_skipped_and_named(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    data = picture(tmp_path / "cut.jpg", (300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x1cftypheic" + b"\0" * 50)
    (tmp_path / "raw.cr2").write_bytes(b"x")
    dataset = scan_folder(tmp_path)
    assert names(dataset) == ["good.png"]
    found = reasons(dataset)
    assert found["empty.png"] == "the file is empty (0 bytes); copy it again"
    assert "damaged or truncated" in found["cut.jpg"]
    # The latter where the package is installed.
    assert "pillow-heif" in found["photo.HEIC"] or "picture inside" in found["photo.HEIC"]
    assert found["raw.cr2"] == ".cr2 is not supported; convert it to JPEG, PNG or WebP"
    assert len(found) == 4


def test_pictures_of_every_format_are_found_by_their_endings(tmp_path):
    for name in ("a.bmp", "b.tif", "c.tiff", "d.gif", "e.jfif", "f.webp"):
        Image.new("RGB", (40, 30), (9, 99, 9)).save(tmp_path / name, "JPEG" if name == "e.jfif" else None)
    dataset = scan_folder(tmp_path)
    assert names(dataset) == ["a.bmp", "b.tif", "c.tiff", "d.gif", "e.jfif", "f.webp"]
    assert dataset.problems == ()


def test_a_picture_that_may_not_be_read_is_skipped(tmp_path, monkeypatch):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", (20, 20))
    read_bytes = Path.read_bytes

    def denied(path):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert reasons(scan_folder(tmp_path)) == {
        "b.png": "cannot be read (permission denied); check that it exists and may be read"
    }


def mask(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, 255).save(path)
    return path


def test_a_mask_belongs_to_the_picture_of_its_name_and_is_no_picture_itself(tmp_path):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    picture(tmp_path / "2_x" / "a.png", (20, 20))
    own = mask(tmp_path / "a-masklabel.png")
    nested = mask(tmp_path / "2_x" / "a-masklabel.PNG", (20, 20))
    dataset = scan_folder(tmp_path)
    assert [(r.path.name, r.mask) for r in dataset.records] == [
        ("a.jpg", own),
        ("b.png", None),
        ("a.png", nested),
    ]
    assert dataset.records[0].mask_digest == hashlib.sha256(own.read_bytes()).hexdigest()
    assert dataset.records[1].mask_digest == ""
    assert dataset.problems == ()


def test_an_edited_mask_changes_the_digest_of_the_dataset(tmp_path):
    picture(tmp_path / "a.png")
    plain = scan_folder(tmp_path).digest
    mask(tmp_path / "a-masklabel.png")
    masked = scan_folder(tmp_path).digest
    Image.new("L", (40, 30), 7).save(tmp_path / "a-masklabel.png")
    assert len({plain, masked, scan_folder(tmp_path).digest}) == 3


def test_a_folder_of_masks_alone_holds_no_pictures(tmp_path):
    mask(tmp_path / "a-masklabel.png")
    for use in (scan_folder, check_folder):
        with pytest.raises(DatasetError, match="a-masklabel.png: is a mask and there is no picture a"):
            use(tmp_path)


def test_a_mask_that_cannot_be_used_is_reported_and_the_picture_kept_without_it(tmp_path, outside):
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    mask(tmp_path / "a-masklabel.png", (30, 40))
    (tmp_path / "b-masklabel.png").touch()
    (tmp_path / "c-masklabel.png").symlink_to(outside / "secret.png")
    mask(tmp_path / "e-masklabel.png")
    dataset = scan_folder(tmp_path)
    assert names(dataset) == ["a.png", "b.png", "c.png", "d.png"]
    assert {(r.mask, r.mask_digest) for r in dataset.records} == {(None, "")}
    found = reasons(dataset)
    kept = " (the picture is used without a mask)"
    assert found["a-masklabel.png"] == (
        f"has 30x40 and its picture 40x30; save it at the picture's size{kept}"
    )
    assert found["b-masklabel.png"] == f"the file is empty (0 bytes); copy it again{kept}"
    assert "leads out of the folder" in found["c-masklabel.png"]
    assert found["e-masklabel.png"] == "is a mask and there is no picture e; rename it, or remove it"
    assert len(found) == 4


def test_a_mask_fits_a_picture_as_exif_turns_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    upright = mask(tmp_path / "a-masklabel.png", (30, 40))
    assert scan_folder(tmp_path).records[0].mask == upright


def test_weights_come_from_metadata_also_when_captions_lie_beside_the_pictures(tmp_path):
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png")
    picture(tmp_path / "2_x" / "d.png")
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "metadata.csv").write_text(
        "file_name,text,weight\na.png,csv,2\nb.png,csv,no\n2_x/d.png,far,5\n"
    )
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "b.png", "weight": 4}')
    (tmp_path / "2_x" / "metadata.csv").write_text("file_name,text\nd.png,near\n")
    dataset = scan_folder(tmp_path)
    assert [(r.path.name, r.caption, r.weight) for r in dataset.records] == [
        ("a.png", "mine", 2.0),
        ("b.png", "csv", 4.0),
        ("c.png", "", 1.0),
        ("d.png", "near", 5.0),
    ]
    assert reasons(dataset) == {
        "metadata.csv": "line 3 has the weight 'no'; left out, write a number above 0"
    }


def test_a_missing_folder_is_an_error_that_names_it(tmp_path):
    for use in (scan_folder, folder_fingerprint, check_folder):
        with pytest.raises(DatasetError, match=r"nowhere: there is no such folder; check the path"):
            use(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match=r"a\.png: is a file; give the folder"):
        scan_folder(picture(tmp_path / "a.png"))


def test_a_path_with_a_nul_character_is_an_error():
    with pytest.raises(DatasetError):
        scan_folder("a\0b")


def test_an_empty_folder_is_an_error(tmp_path):
    for use in (scan_folder, check_folder):
        with pytest.raises(
            DatasetError, match="the folder holds no pictures; put JPEG, PNG or WebP files into it"
        ):
            use(tmp_path)


def test_a_folder_without_any_usable_picture_says_what_was_found(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "b.tga").write_bytes(b"x")
    with pytest.raises(DatasetError) as e:
        scan_folder(tmp_path)
    assert "1 found, none usable" in str(e.value)
    assert "a.png: the file is empty" in str(e.value)
    assert "b.tga: .tga is not supported" in str(e.value)


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    # chmod does not stop root, as whom containers run tests.
    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DatasetError, match=r"cannot be read \(permission denied\); check its permissions"):
        scan_folder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_read_permission_is_an_error(tmp_path):
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(DatasetError, match="cannot be read"):
        scan_folder(tmp_path / "locked")


@pytest.fixture
def outside(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outside")
    picture(folder / "secret.png")
    (folder / "secret.txt").write_text("secret")
    (folder / "metadata.csv").write_text("file_name,text\na.png,secret\n")
    picture(folder / "pictures" / "x.png")
    return folder


def test_links_that_lead_out_of_the_folder_are_not_followed(tmp_path, outside):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").symlink_to(outside / "secret.txt")
    (tmp_path / "b.png").symlink_to(outside / "secret.png")
    (tmp_path / "metadata.csv").symlink_to(outside / "metadata.csv")
    (tmp_path / "3_x").symlink_to(outside / "pictures")
    dataset = scan_folder(tmp_path)
    assert captions(dataset) == {"a.png": ""}
    assert set(reasons(dataset)) == {"a.txt", "b.png", "metadata.csv", "3_x"}
    assert all("leads out of the folder" in r for r in reasons(dataset).values())


def test_links_within_the_folder_are_followed(tmp_path):
    picture(tmp_path / "1_x" / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "1_x" / "a.png")
    assert names(scan_folder(tmp_path)) == ["b.png", "a.png"]


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    picture(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(scan_folder(tmp_path / "link")) == ["a.png"]


def test_broken_and_circular_links_are_skipped(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "c.png").symlink_to(tmp_path / "c.png")
    assert set(reasons(scan_folder(tmp_path))) == {"b.png", "c.png"}


def test_metadata_with_dots_cannot_reach_out(tmp_path):
    picture(tmp_path / "set" / "a.png")
    picture(tmp_path / "other.png")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\n../other.png,x\na.png,y\n")
    dataset = scan_folder(tmp_path / "set")
    assert captions(dataset) == {"a.png": "y"}
    assert "outside the folder" in reasons(dataset)["metadata.csv"]


def test_progress_is_reported_before_each_picture(tmp_path):
    for i in range(3):
        picture(tmp_path / f"{i}.png")
    calls = []
    scan_folder(tmp_path, on_file=lambda done, total: calls.append((done, total)))
    assert calls == [(0, 3), (1, 3), (2, 3)]


def test_an_interrupt_raised_by_the_progress_callback_gets_out(tmp_path):
    class Interrupt(BaseException):
        pass

    def stop(done, total):
        raise Interrupt

    picture(tmp_path / "a.png")
    with pytest.raises(Interrupt):
        scan_folder(tmp_path, on_file=stop)


def test_scanning_a_relative_folder_finds_its_captions(tmp_path, monkeypatch):
    picture(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "metadata.csv").write_text("file_name,text\na.png,y\n")
    monkeypatch.chdir(tmp_path)
    assert captions(scan_folder("set")) == captions(scan_folder("./set/../set")) == {"a.png": "y"}


@pytest.fixture
def folder(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "2_x" / "b.png")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "metadata.csv").write_text("file_name,text\n2_x/b.png,two\n")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        lambda f: (f / "a.txt").write_text("ONE"),
        lambda f: (f / "a.caption").write_text("x"),
        lambda f: (f / "a.txt").unlink(),
        lambda f: (f / "metadata.csv").write_text("file_name,text\n2_x/b.png,TWO\n"),
        lambda f: picture(f / "a.png", (41, 30)),
        lambda f: picture(f / "c.png"),
        lambda f: (f / "a.png").unlink(),
        lambda f: (f / "a.png").rename(f / "d.png"),
        lambda f: (f / "2_x").rename(f / "3_x"),
        lambda f: os.utime(f / "a.png", (1, 1)),
        lambda f: mask(f / "a-masklabel.png"),
    ],
)
def test_fingerprint_changes_with_whatever_the_dataset_is_made_of(folder, change):
    before = folder_fingerprint(folder)
    change(folder)
    assert folder_fingerprint(folder) != before


def test_fingerprint_sees_an_edited_caption_of_the_same_length_and_time(folder):
    os.utime(folder / "a.txt", (1, 1))
    before = folder_fingerprint(folder)
    (folder / "a.txt").write_text("uno")
    os.utime(folder / "a.txt", (1, 1))
    assert folder_fingerprint(folder) != before


def test_fingerprint_ignores_files_that_are_not_part_of_the_dataset(folder):
    before = folder_fingerprint(folder)
    (folder / "notes.md").write_text("x")
    picture(folder / ".thumbs" / "a.png")
    assert folder_fingerprint(folder) == before


def test_fingerprint_decodes_no_picture(folder, monkeypatch):
    monkeypatch.setattr(images, "_decode", None)
    assert folder_fingerprint(folder)


def test_fingerprint_reads_no_text_outside_the_folder(folder, outside):
    (folder / "b.txt").symlink_to(outside / "secret.txt")
    before = folder_fingerprint(folder)
    (outside / "secret.txt").write_text("SECRET")
    assert folder_fingerprint(folder) == before


def test_a_second_scan_decodes_nothing(folder, monkeypatch):
    first = scan_folder(folder)
    monkeypatch.setattr(images, "_decode", None)
    assert scan_folder(folder) == first
