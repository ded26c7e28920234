"""metadata.parquet, as pandas and Hugging Face's datasets write it."""

from __future__ import annotations

import sys
from decimal import Decimal

import pytest
from PIL import Image

from in_graph_lora.trainer.data import metadata
from in_graph_lora.trainer.data.metadata import Described, read_metadata
from in_graph_lora.trainer.data.scan import folder_fingerprint, scan_folder
from in_graph_lora.trainer.errors import DatasetError


@pytest.fixture
def table():
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")

    def write(path, columns, **types):
        arrays = {k: pa.array(v, types.get(k)) for k, v in columns.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(arrays), path)
        return path

    write.pa = pa
    return write


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (200, 30, 60)).save(path)


def test_each_split_has_its_own_and_nearer_files_go_before_it(tmp_path, table):
    for name in ("train/a.png", "train/dogs/b.png", "train/c.png", "validation/d.png"):
        picture(tmp_path / name)
    names = {"file_name": ["a.png", "dogs/b.png", "c.png"], "text": ["an a", "一只狗", "by parquet"]}
    path = table(tmp_path / "train" / "metadata.parquet", names)
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\nc.png,by csv\n")
    table(tmp_path / "validation" / "metadata.parquet", {"file_name": ["d.png"], "text": ["a d"]})
    table(tmp_path / "metadata.parquet", {"file_name": ["train/a.png"], "text": ["never"]})
    found = scan_folder(tmp_path)
    assert {r.name: (r.caption, r.role) for r in found.records} == {
        "a.png": ("an a", "instance"),
        "b.png": ("一只狗", "instance"),
        "c.png": ("by csv", "instance"),
        "d.png": ("a d", "validation"),
    }
    assert [str(p) for p in found.problems] == [
        "metadata.parquet: lies beside the folder train and is not read; move it into it"
    ]
    before = folder_fingerprint(tmp_path)
    table(path, names | {"text": ["another", "一只狗", "by parquet"]})
    assert folder_fingerprint(tmp_path) != before


def test_columns_have_the_types_that_writers_give_them(tmp_path, table):
    pa = table.pa
    columns = {
        "file_name": ["a.png", "b.png", None, "../c.png"],
        "text": ["x", "y", "z", "w"],
        "weight": [2.0, float("nan"), 1.0, 1.0],
        "focus": [[0.1, 0.2, 0.8, 0.9], None, None, None],
        "control_path": [["p.png", "q.png"], [], None, None],
        "bbox": [{"x": 1}, {"x": 2}, {"x": 3}, {"x": 4}],
    }
    kinds = {"text": pa.dictionary(pa.int8(), pa.string()), "file_name": pa.large_string()}
    found, problems = read_metadata(table(tmp_path / "metadata.parquet", columns, **kinds))
    controls = (tmp_path / "p.png", tmp_path / "q.png")
    assert found == {
        tmp_path / "a.png": Described(caption="x", weight=2.0, focus=(0.1, 0.2, 0.8, 0.9), controls=controls),
        tmp_path / "b.png": Described(caption="y"),
    }
    assert [str(p) for p in problems] == [
        "metadata.parquet: row 3 lacks a file name or a text, row 4 names '../c.png', which is outside the"
        " folder; these rows are skipped"
    ]
    weights = table(tmp_path / "metadata.parquet", {"image": ["a.png"], "weight": [Decimal("0.5")]})
    assert read_metadata(weights)[0] == {tmp_path / "a.png": Described(weight=0.5)}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"path": ["a.png"], "label": [1]}, r"has the columns \['path', 'label'\]; name them file_name"),
        (
            {"image": [{"bytes": b"x", "path": "a.png"}], "text": ["x"]},
            r"more than names, texts and numbers in image \(struct<bytes: binary, path: string>\)",
        ),
        ({"file_name": ["a.png"], "text": [[["x"]]]}, r"numbers in text \(list<.*list<"),
        ({"file_name": ["a.png"], "text": ["x" * 5001]}, "has over 5000 characters of text; divide it"),
    ],
)
def test_what_is_no_table_of_names_and_texts_is_told_in_a_sentence(
    tmp_path, table, columns, words, monkeypatch
):
    monkeypatch.setattr(metadata, "MAX_METADATA_BYTES", 5000)
    picture(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=words):
        read_metadata(table(tmp_path / "metadata.parquet", columns))
    (told,) = scan_folder(tmp_path).problems
    assert told.path.name == "metadata.parquet"


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-20], lambda d: b"", lambda d: d[:20] + b"\xff" * 99 + d[20:]]
)
def test_a_damaged_file_is_told_in_a_sentence(tmp_path, table, damage, monkeypatch):
    path = table(tmp_path / "metadata.parquet", {"file_name": ["a.png"] * 99, "text": ["x"] * 99})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DatasetError, match=r"metadata\.parquet: is no Parquet file that can be read \(.+\)"):
        read_metadata(path)
    monkeypatch.setattr(metadata, "MAX_METADATA_BYTES", 0)
    path.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match="has 4 bytes"):
        read_metadata(path)


def test_without_pyarrow_the_package_is_named_and_the_pictures_are_used(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    picture(tmp_path / "a.png")
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    found = scan_folder(tmp_path)
    assert [r.name for r in found.records] == ["a.png"]
    assert [str(p) for p in found.problems] == [
        "metadata.parquet: needs the package pyarrow; install it with 'pip install pyarrow' in ComfyUI's"
        " Python, or save the table as metadata.csv"
    ]
