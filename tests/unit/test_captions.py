from __future__ import annotations

from pathlib import Path

import pytest

from in_graph_lora.trainer.data import captions
from in_graph_lora.trainer.data.captions import Described, apply, read_metadata, read_text, render
from in_graph_lora.trainer.data.records import Dataset, ImageRecord
from in_graph_lora.trainer.errors import DatasetError


def record(caption="", name="cat_01.png", role="instance"):
    return ImageRecord(path=Path("/data") / name, caption=caption, size=(64, 64), digest="0", role=role)


def dataset(*items):
    return Dataset(records=tuple(item if isinstance(item, ImageRecord) else record(item) for item in items))


def texts(data):
    return [r.caption for r in data.records]


def rendered(template, *, trigger="ohwx", class_word="dog", filename="img 1", caption="on a sofa"):
    return render(template, trigger=trigger, class_word=class_word, filename=filename, caption=caption)


def test_every_placeholder_is_filled():
    assert rendered("{trigger}|{class}|{filename}|{caption}") == "ohwx|dog|img 1|on a sofa"


@pytest.mark.parametrize(
    ("template", "empty", "expected"),
    [
        ("a photo of {trigger} {class}", {"class_word": ""}, "a photo of ohwx"),
        ("a photo of {trigger} {class}", {"trigger": ""}, "a photo of dog"),
        ("{trigger}, {class}, {caption}", {"class_word": ""}, "ohwx, on a sofa"),
        ("{trigger}, {class}, {caption}", {"trigger": "", "class_word": ""}, "on a sofa"),
        ("{trigger} {class}, {caption}", {"class_word": "", "caption": ""}, "ohwx"),
        ("{trigger}，{caption}", {"trigger": ""}, "on a sofa"),
        ("{caption}", {"caption": ""}, ""),
    ],
)
def test_gaps_of_empty_values_are_closed(template, empty, expected):
    assert rendered(template, **empty) == expected


def test_commas_inside_numbers_stay():
    assert rendered("{caption}", caption="1,000 dogs , two cats") == "1,000 dogs, two cats"


@pytest.mark.parametrize(
    "bad", ["{Trigger}", "{}", "{0}", "{trigger.__class__}", "{caption!r}", "{trigger[0]}"]
)
def test_any_other_placeholder_is_refused_by_name(bad):
    with pytest.raises(DatasetError) as e:
        rendered(f"a {bad}")
    assert bad in str(e.value)
    assert "{trigger}, {class}, {filename}, {caption}" in str(e.value)


def test_braces_in_a_value_are_text():
    assert rendered("{trigger}, {caption}", caption="{trigger} {x}") == "ohwx, {trigger} {x}"


def test_a_lone_brace_is_text():
    assert rendered("{trigger} { {class") == "ohwx { {class"
    assert rendered("dog } {") == "dog } {"


def test_keep_gives_captions_only_where_there_is_none():
    done = apply(dataset("a cat", ""), template="a photo of {trigger}", trigger="ohwx", on_existing="keep")
    assert texts(done) == ["a cat", "a photo of ohwx"]


def test_overwrite_can_put_the_trigger_before_each_caption():
    done = apply(
        dataset("a cat", ""), template="{trigger}, {caption}", trigger="ohwx", on_existing="overwrite"
    )
    assert texts(done) == ["ohwx, a cat", "ohwx"]


def test_append_adds_only_what_is_not_said_and_is_idempotent():
    data = dataset("a cat, OHWX", "a cat", "", "一只猫，ohwx")
    options = {
        "template": "{trigger}, {class}",
        "trigger": "ohwx",
        "class_word": "cat",
        "on_existing": "append",
    }
    once = apply(data, **options)
    assert texts(once) == ["a cat, OHWX, cat", "a cat, ohwx, cat", "ohwx, cat", "一只猫，ohwx, cat"]
    assert texts(apply(once, **options)) == texts(once)


def test_append_does_not_repeat_the_caption_through_its_placeholder():
    done = apply(
        dataset("a cat, grey"), template="{trigger}, {caption}", trigger="ohwx", on_existing="append"
    )
    assert texts(done) == ["a cat, grey, ohwx"]


def test_append_does_not_take_a_part_of_a_word_for_the_word():
    done = apply(dataset("caterpillar"), template="{class}", class_word="cat", on_existing="append")
    assert texts(done) == ["caterpillar, cat"]


def test_filename_is_the_name_without_its_suffix():
    done = apply(dataset(record(name="red fox.final.png")), template="{filename}")
    assert texts(done) == ["red fox.final"]


@pytest.mark.parametrize("on_existing", ["keep", "overwrite", "append"])
def test_pictures_of_the_class_never_get_the_trigger(on_existing):
    data = dataset(record(), record(role="class"))
    done = apply(
        data,
        template="a photo of {trigger} {class}",
        trigger="ohwx",
        class_word="dog",
        on_existing=on_existing,
    )
    assert texts(done) == ["a photo of ohwx dog", "a photo of dog"]


@pytest.mark.parametrize("template", ["", "{caption}", "a photo of {trigger} {class}"])
def test_a_caption_that_would_stay_empty_is_an_error_that_names_three_files(template):
    data = dataset(*(record(name=f"{i}.png") for i in range(5)), "kept")
    with pytest.raises(DatasetError) as e:
        apply(data, template=template)
    assert "0.png, 1.png, 2.png and 2 more have no caption" in str(e.value)
    assert "type a trigger or a class word" in str(e.value)


def test_a_template_without_placeholders_is_a_caption():
    assert texts(apply(dataset(""), template="a watercolour")) == ["a watercolour"]


def test_a_misspelt_placeholder_is_found_although_every_caption_is_kept():
    with pytest.raises(DatasetError, match="{triger}"):
        apply(dataset("a cat"), template="{triger}")


def test_an_unknown_mode_is_refused():
    with pytest.raises(DatasetError, match="'replace'"):
        apply(dataset("a"), template="b", on_existing="replace")


def test_apply_changes_nothing_but_captions():
    data = dataset(record("a", "x.png"), record("", "y.png", "class"))
    done = apply(data, template="b")
    assert [(r.path, r.role, r.digest) for r in done.records] == [
        (r.path, r.role, r.digest) for r in data.records
    ]
    assert texts(data) == ["a", ""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_chinese_captions_are_read_in_the_usual_encodings(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("\n 一只可爱的猫，坐在沙发上 \r\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "一只可爱的猫，坐在沙发上"


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9 ")
    with pytest.raises(DatasetError, match="neither UTF-8 nor GB18030"):
        read_text(tmp_path / "a.txt")


def test_a_huge_caption_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(captions, "MAX_CAPTION_BYTES", 10)
    (tmp_path / "a.txt").write_text("x" * 11)
    with pytest.raises(DatasetError, match="11 bytes"):
        read_text(tmp_path / "a.txt", captions.MAX_CAPTION_BYTES)


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
