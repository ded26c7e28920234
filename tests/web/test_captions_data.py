"""Captions while they are edited, without a page."""

from __future__ import annotations

from typing import Any

from .node import evaluated

START = """
    const c = new m.Captions([
        {name: "0", caption: "ohwx, dog, grass"}, {name: "1", caption: "ohwx, dog"},
        {name: "2", caption: "a $& dog", refused: "no file"}, {name: "3", caption: ""},
    ]);
"""


def after(body: str) -> Any:
    return evaluated("captions_data.mjs", START + body)


def test_a_replacement_is_counted_before_it_is_done_and_undone_as_one():
    assert after("return c.count('dog')") == {"places": 2, "captions": 2}
    texts = ["ohwx, $&, grass", "ohwx, $&", "a $& dog", ""]
    assert after("c.replace('dog', '$&'); return c.texts") == texts
    assert after("c.replace('dog', 'cat'); return [c.undo(), c.texts[1], c.undo()]") == [
        [0, 1],
        "ohwx, dog",
        [],
    ]
    assert after("return [c.count(''), c.replace('', 'x')]") == [{"places": 0, "captions": 0}, 0]


def test_tags_are_counted_and_one_is_removed_everywhere():
    assert after("return c.tags()")[:3] == [["dog", 2], ["ohwx", 2], ["a $& dog", 1]]
    assert after("c.removeTag('dog'); return c.texts.slice(0, 2)") == ["ohwx, grass", "ohwx"]
    assert after("return [c.having('grass'), c.having(null)]") == [[0], [0, 1, 2, 3]]


def test_what_is_typed_in_a_row_is_one_change():
    body = "c.type(3, 'a', 0); c.type(3, 'ab', 900); c.type(3, 'abc', 9000);"
    assert after(body + "c.undo(); return [c.texts[3], c.undo(), c.texts[3]]") == ["ab", [3], ""]
    assert after("c.type(2, 'mine'); return c.texts[2]") == "a $& dog"


def test_only_what_changed_is_saved_and_it_is_compared_with_what_was():
    edits = [{"number": 3, "was": "", "caption": " new "}]
    assert after("c.type(3, ' new '); return c.unsaved()") == edits
    assert after("c.type(3, ' new '); c.written(c.unsaved()); return [c.texts[3], c.unsaved()]") == [
        "new",
        [],
    ]
    body = (
        "c.type(3, 'new'); const sent = c.unsaved(); c.type(3, 'newer'); c.written(sent); return c.unsaved()"
    )
    assert after(body) == [{"number": 3, "was": "new", "caption": "newer"}]
