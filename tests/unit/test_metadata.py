from __future__ import annotations

import pytest

from in_graph_lora.trainer.data import metadata
from in_graph_lora.trainer.data.metadata import Described, read_metadata, read_text
from in_graph_lora.trainer.errors import DatasetError


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_chinese_captions_are_read_in_the_usual_encodings(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("\n 一只可爱的猫，坐在沙发上 \r\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "一只可爱的猫，坐在沙发上"


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(DatasetError, match="neither UTF-8 nor GB18030"):
        read_text(tmp_path / "a.txt")


def test_a_huge_caption_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MAX_CAPTION_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(DatasetError, match="11 bytes"):
        read_text(tmp_path / "a.txt", metadata.MAX_CAPTION_BYTES)


@pytest.mark.parametrize(
    "header", ["file_name,text", "image,prompt", " image , prompt ", "id,text,file_name"]
)
def test_metadata_csv_is_read_under_both_conventions(tmp_path, header):
    columns = [c.strip() for c in header.split(",")]
    row = {
        "file_name": "a.png",
        "image": "a.png",
        "text": '"a cat, grey"',
        "prompt": '"a cat, grey"',
        "id": "1",
    }
    path = tmp_path / "metadata.csv"
    path.write_text(f"{header}\n{','.join(row[c] for c in columns)}\n", encoding="utf-8-sig")
    assert read_metadata(path) == ({tmp_path / "a.png": Described(caption="a cat, grey")}, [])


def test_metadata_jsonl_is_read_and_broken_lines_are_reported(tmp_path):
    path = tmp_path / "metadata.jsonl"
    lines = [
        '{"file_name": "a.png", "text": "一只猫"}',
        "",
        "{oops",
        "[1]",
        '{"image": "b.png", "prompt": 3}',
    ]
    path.write_text("\n".join([*lines, "[" * 100_000]), encoding="utf-8")
    found, problems = read_metadata(path)
    assert found == {tmp_path / "a.png": Described(caption="一只猫")}
    assert [str(p) for p in problems] == [
        "metadata.jsonl: line 3 lacks a file name or a text, line 4 lacks a file name or a text,"
        " line 5 lacks a file name or a text and 1 more; these rows are skipped"
    ]


@pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/passwd", "..\\a.png", ".."])
def test_metadata_that_leads_out_of_the_folder_is_reported(tmp_path, name):
    path = tmp_path / "metadata.csv"
    path.write_text(f"file_name,text\n{name},stolen\nb.png,mine\n")
    found, problems = read_metadata(path)
    assert found == {tmp_path / "b.png": Described(caption="mine")}
    assert len(problems) == 1
    assert "outside the folder" in problems[0].reason


@pytest.mark.parametrize("name", ["sub/a.png", "sub\\a.png", "./sub/a.png", "x/../sub/a.png"])
def test_metadata_may_name_pictures_below_the_folder(tmp_path, name):
    path = tmp_path / "metadata.csv"
    path.write_text(f"file_name,text\n{name},mine\n{tmp_path / 'abs.png'},too\n")
    found, _ = read_metadata(path)
    assert {p: row.caption for p, row in found.items()} == {
        tmp_path / "sub" / "a.png": "mine",
        tmp_path / "abs.png": "too",
    }


def test_metadata_without_the_columns_names_those_it_has(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("path,label\na.png,cat\n")
    with pytest.raises(DatasetError, match=r"\['path', 'label'\]; name them file_name and text"):
        read_metadata(path)


def test_metadata_that_is_no_csv_is_one_error(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    with pytest.raises(DatasetError, match="is not a CSV file"):
        read_metadata(path)


def test_metadata_csv_may_carry_weights_beside_or_instead_of_texts(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,text,weight\na.png,a cat,2\nb.png,a dog, \n")
    assert read_metadata(path) == (
        {
            tmp_path / "a.png": Described(caption="a cat", weight=2.0),
            tmp_path / "b.png": Described(caption="a dog"),
        },
        [],
    )
    path.write_text("file_name,weight\na.png,0.5\n")
    assert read_metadata(path) == ({tmp_path / "a.png": Described(weight=0.5)}, [])


def test_metadata_jsonl_may_carry_weights(tmp_path):
    path = tmp_path / "metadata.jsonl"
    path.write_text(
        '{"file_name": "a.png", "text": "x", "weight": 3}\n{"file_name": "b.png", "weight": "0.5"}'
    )
    found, problems = read_metadata(path)
    assert [row.weight for row in found.values()] == [3.0, 0.5]
    assert problems == []


@pytest.mark.parametrize("weight", ["0", "-1", '"two"', "NaN", "Infinity", "true", "[1]", "1" + "0" * 400])
def test_a_weight_that_is_no_positive_number_is_reported_and_its_caption_kept(tmp_path, weight):
    path = tmp_path / "metadata.jsonl"
    path.write_text(f'{{"file_name": "a.png", "text": "x", "weight": {weight}}}')
    found, problems = read_metadata(path)
    assert found == {tmp_path / "a.png": Described(caption="x")}
    assert len(problems) == 1
    assert "line 1 has the weight" in problems[0].reason
    assert "left out, write a number above 0" in problems[0].reason
