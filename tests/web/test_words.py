"""Chinese: nothing that the page or a node says stays behind in English by oversight."""

from __future__ import annotations

import ast
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .node import WEB, evaluated

ROOT = WEB.parent
CHINESE = re.compile(r"[\u4e00-\u9fff]")
ERRORS = {
    *("ConfigError", "DatasetError", "ModelError", "LoraFileError", "StorageError", "TrainingError"),
    *("TrainerError", "JobError", "_Misfit"),
}
ARGUMENTS = {
    **dict.fromkeys(ERRORS, 0),
    "_unusable": 1,
    "_check": 1,
    "cannot_use": 2,
    "_refused": 0,
    "note": 0,
}
"""Function → which argument of it is a sentence for the user."""
RETURNED = {"validate_inputs", "_nothing_usable", "garbled", "unknown", "kept", "spent"}
"""Functions whose result is a sentence for the user."""
KEYWORDS = {"Notice": "message", "Problem": "reason"}
"""Class → the argument that is a sentence for the user."""
REASONS = {"reason", "why"}
"""Variables that hold a sentence for the user, or a part of one."""
LOCALS = {"bounds": ["{} or more", "{} to {}"], "hint": ["{}"]}
"""What variables in messages hold, where the sentence depends on it."""


def variants(node: ast.expr) -> list[str]:
    """The texts that an expression makes, with {} for what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(p) for p in itertools.product(*map(variants, parts))]
        case ast.FormattedValue(value=value):
            return variants(value)
        case ast.IfExp(body=one, orelse=other):
            return variants(one) + variants(other)
        case ast.BoolOp(op=ast.And(), values=[_, value]):
            return ["", *variants(value)]
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return [a + b for a in variants(left) for b in variants(right)]
        case ast.Name(id=name):
            return LOCALS.get(name, ["{}"])
    return ["{}"]


def code() -> Iterator[tuple[Path, ast.Module]]:
    for room in ("trainer", "nodes"):
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def sentences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            keywords = {k.arg: k.value for k in node.keywords}
            if len(node.args) > ARGUMENTS.get(name, 99):
                yield from variants(node.args[ARGUMENTS[name]])
            if (said := keywords.get(KEYWORDS.get(name, ""))) is not None:
                yield from variants(said)
            if name == "Phase":
                yield from variants(keywords.get("label", keywords.get("name", ast.Constant(""))))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in REASONS:
            yield from variants(node.value)
        if isinstance(node, ast.FunctionDef) and node.name in RETURNED:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from variants(inner.value)


REPORTS = [
    *(f"trainer/data/{name}.py" for name in ("report", "remarks", "caption_files")),
    *(f"trainer/evidence/{name}.py" for name in ("report", "choice", "known", "figures", "regression")),
    *(f"trainer/evidence/{name}.py" for name in ("spread", "perceptual", "shots")),
    *("trainer/host/evidence.py", "trainer/host/trigger.py", "trainer/host/planning.py"),
    *("trainer/memory/report.py", "trainer/pictures/comparison.py", "trainer/runs/past.py"),
    *(f"trainer/recipes/{name}.py" for name in ("foreign", "recipe", "tool")),
    *("nodes/captions_out.py", "nodes/edit_captions.py", "nodes/caption_images.py"),
]
"""Files all of whose texts are shown to the user."""
ELSEWHERE = re.compile(
    # Progress, which ComfyUI's own bar shows; names of the literature; the log; what sentences are made of.
    r"looking at |the pictures of |: picture |held-out loss of .*, picture|seed .* · |CLIP-|PRES \("
    r"|picture looks|pictures look|: is a link or no file| of v0x pictures says|HostControls"
    r"| v1x like another| several frames;| too small for the res| there twice| blurred \(sharp"
    r"|v0x like v1x|^v0x like another| of the v0x within|^about v0x a step|v0x \(v1x times\)"
    r"|^v0x pass(es)?$|^v0x a pass, v1x a step|are v0x reference only|is v0x references"
    r"|^step v0x$|^system memory$|^the card$|^as loaded$|On the v0x|a column, same prompts and seeds. v1x$"
    r"|^Text files beside|^Caption Images: %s|^Better: v0x|Best: v0x\*\* \(v1x"
)


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text of a file but docstrings, schemas, and parts of other texts."""
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
    for node in ast.walk(tree):
        whole = isinstance(node, ast.JoinedStr | ast.BinOp)
        if whole or (isinstance(node, ast.FunctionDef) and node.name == "define_schema"):
            inner |= {id(n) for n in ast.walk(node) if n is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and id(node) not in inner:
            yield from (v for v in variants(node) if re.search("[a-z]{3}", v))


def collected() -> dict[str, Path]:
    """Sentence → a file that says it; without those that are only put together of others."""
    found = {text: path for path, tree in code() for text in sentences(tree)}
    return {text: path for text, path in found.items() if len(re.findall("[a-z]", text)) > 3}


def said(texts: list[str], locale: str = "zh") -> list[str]:
    return evaluated("words.mjs", "speak(a[1]); return a[0].map(m.told);", texts, locale)


def test_the_collector_sees_conditions_and_concatenations():
    tree = ast.parse("raise ConfigError(f'{n} ' + ('is odd' if n else f'has {x}'))")
    assert list(sentences(tree)) == ["{} is odd", "{} has {}"]


def test_every_message_of_an_error_and_every_notice_is_said_in_chinese_with_all_that_it_names():
    found = collected()
    assert len(found) > 250
    filled = [_filled(text) for text in found]
    missing = {}
    for text, chinese, (path, values) in zip(
        found,
        said([f for f, _ in filled]),
        zip(found.values(), [v for _, v in filled], strict=True),
        strict=True,
    ):
        lost = [value for value in values if value not in chinese]
        if not CHINESE.search(chinese) or (lost and "no caption, and the template" not in text):
            missing[text] = (str(path.relative_to(ROOT)), chinese)
    assert missing == {}, "add them to web/sentences_zh.mjs"


def test_every_text_of_a_report_is_said_in_chinese():
    found = {
        _filled(text)[0]: name
        for name in REPORTS
        for text in texts(ast.parse((ROOT / name).read_text(encoding="utf-8")))
        if " " in text.strip("#-| ") or text.startswith(("|", "#"))
    }
    shown = evaluated("markdown.mjs", BLOCKS, list(found))
    missing = {
        text: (name, chinese)
        for (text, name), chinese in zip(found.items(), shown, strict=True)
        if not ELSEWHERE.search(text)
        and re.search(r"[a-z]{3,}", re.sub(r"v\dx|×", "", text))
        and not all(map(CHINESE.search, re.findall(r"[^|]*[a-z]{3,}[^|]*", chinese)))
    }
    assert not missing, "add to web/reports_zh.mjs: " + "\n".join(missing)
    assert len(found) > 120


TABLE = """| candidate | figure | prompt |
|---|---|---|
| step 5 × 0.5 | drift (the references) | drift |
| model | drift of the distribution (KID) (step 5) | rare |"""


def test_in_a_report_names_captions_and_prompts_stay_as_they_are():
    body = """speak("zh");
        const texts = (rows) => rows.map((row) => row.map((cell) => cell.text));
        return m.blocks(a[0]).map((block) => block.rows ? texts(block.rows) : block.text);"""
    told = "- most frequent parts between commas: skipped: rare (2)"
    report = f"## Evidence\n\n**Worse**: drift (model).\n\n{told}\n\n{TABLE}"
    assert evaluated("markdown.mjs", body, report) == [
        "评估",
        "变差：漂移 (model)。",
        "- 逗号之间最常见的部分：skipped: rare (2)",
        [
            ["候选", "指标", "提示词"],
            ["第 5 步 × 0.5", "漂移 (参考图片)", "drift"],
            ["model", "分布的漂移（KID） (第 5 步)", "rare"],
        ],
    ]


BLOCKS = """
    speak("zh");
    const text = (block) => block.rows ? block.rows.flat().map((cell) => cell.text).join("|") : block.text;
    const said = (markdown) => m.blocks(markdown).map(text).join("\\n");
    // A paragraph or a table, a word, the head of a column, a row, of a candidate, of the best one.
    const best = (own) => `**Best: b** (${own}).`;
    const places = (own) => [own, `# ${own}`, `| ${own} |`, `|a|\\n${own}`, `b: ${own}`, best(own)];
    const chinese = (text) => /[\u4e00-\u9fff]/.test(text);
    return a[0].map((own) => places(own).map(said).find(chinese) ?? own);
"""


def _filled(text: str) -> tuple[str, list[str]]:
    values = [f"v{i}x" for i in range(text.count("{}"))]
    parts = text.split("{}")
    return "".join(itertools.chain(*itertools.zip_longest(parts, values, fillvalue=""))), values


def test_the_catalogue_holds_no_sentence_that_the_code_does_not_say():
    constants = "\n".join(
        node.value
        for _, tree in code()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    body = "return m.SENTENCES.map(([english]) => english);"
    dead = [
        english
        for english in evaluated("sentences_zh.mjs", body)
        # "2 files have" and " several frames" are two constants.
        if not all(part[-14:].strip() in constants for part in english.split("{}") if len(part) > 14)
    ]
    assert dead == []


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("rank is 0; choose 1 to 1024 (4 to 32 is usual)", "rank 为 0；请填 1 到 1024（通常为 4 到 32）"),
        ("alpha is -1; choose 0 or more (0: equal to the rank)", "alpha 为 -1；请填 0 或更大（0：与秩相同）"),
        ("/no/folder: there is no such folder; check the path", "/no/folder：没有这个文件夹；请检查路径"),
        ("a.png: the file is empty (0 bytes); copy it again", "a.png：文件为空（0 字节）；请重新复制"),
        (
            "skipped: a.png: the file is empty (0 bytes); copy it again",
            "跳过：a.png：文件为空（0 字节）；请重新复制",
        ),
        ("12 images · 1 skipped · 3 buckets\nand 2 more", "12 张图片 · 跳过 1 · 3 个分桶\n以及另外 2 个"),
        ("nobody has written this sentence", "nobody has written this sentence"),
    ],
)
def test_a_sentence_is_said_with_its_values(english, chinese):
    assert said([english]) == [chinese]
    assert said([english], "en") == [english]
    assert said([english], "fr") == [english]


def test_what_the_server_says_in_several_languages_is_shown_in_that_of_the_page():
    body = """speak(a[1]);
        const texts = (rows) => rows.map((row) => row.map((cell) => cell.text));
        return m.blocks(shown(a[0])).map((block) => block.rows ? texts(block.rows) : block.text);"""
    head = "| setting | value | node | why | source |\n|---|---|---|---|---|\n"
    output = {
        "text": [f"### Taken over\n\n{head}| rank | 4 | Train LoRA | small | x |"],
        "zh": [f"{head}| rank | 4 | Train LoRA | 小 | x |"],
    }
    chinese = ["设置", "值", "节点", "原因", "出处"]
    assert evaluated("markdown.mjs", body, output, "zh") == [
        [chinese, ["rank", "4", "训练 LoRA", "小", "x"]],
    ]
    assert evaluated("markdown.mjs", body, {"text": output["text"]}, "zh") == [
        "已采用",
        [chinese, ["rank", "4", "训练 LoRA", "small", "x"]],
    ]
    assert evaluated("markdown.mjs", body, output, "en")[0] == "Taken over"


def test_a_long_line_of_other_peoples_text_takes_no_time():
    line = "is: of (a); has x " * 5000
    assert said([line, "is a: has (b) of " * 80]) == [line, "is a: has (b) of " * 80]


def test_the_pages_own_words_are_all_in_the_catalogue_and_no_others():
    used: set[str] = set()
    for path in [*WEB.glob("*.mjs"), WEB / "main.js"]:
        text = path.read_text(encoding="utf-8")
        used |= {json.loads(f'"{key}"') for key in re.findall(r'\b(?:t|word)\(\s*"((?:[^"\\]|\\.)*)"', text)}
    tab = re.search(
        r'const RUNS_TAB = \{.*?title: "([^"]+)".*?tooltip: "([^"]+)"', (WEB / "main.js").read_text(), re.S
    )
    assert tab
    words: dict[str, str] = evaluated("words_zh.mjs", "return m.WORDS;")
    assert used | set(tab.groups()) == set(words)
    for english, chinese in words.items():
        assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", chinese)), english
        assert CHINESE.search(chinese) or not re.search("[A-Za-z]{3}", re.sub(r"\{\w+\}", "", english)), (
            english
        )


def test_no_text_of_the_page_goes_past_the_catalogue():
    bare = re.compile(
        r"""(?:title|textContent|placeholder|alt|"aria-label"|summary)(?::| =) """
        r"""(?:[^,;\n]*\? )?["`][A-Z]?[a-z]+[ a-z]"""
    )
    for path in WEB.glob("*.mjs"):
        assert bare.findall(path.read_text(encoding="utf-8")) == [], path.name
    assert bare.search('title: "Read the list again"')
    assert bare.search('title: x ? "Read it" : ""')


def nodes(name: str) -> dict[str, Any]:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


CONTRACT = nodes("tests/host/contract.json")
ZH = nodes("locales/zh/nodeDefs.json")


def test_chinese_knows_exactly_the_nodes_that_there_are():
    assert set(ZH) == set(CONTRACT)


@pytest.mark.parametrize("node_id", CONTRACT)
def test_every_input_and_output_has_a_chinese_name_and_tooltip(node_id):
    node, wanted = ZH[node_id], CONTRACT[node_id]
    assert CHINESE.search(node["display_name"])
    assert CHINESE.search(node["description"])
    assert list(node["inputs"]) == [port["id"] for port in wanted["inputs"]]
    assert list(node["outputs"]) == [str(i) for i in range(len(wanted["outputs"]))]
    for port in [*node["inputs"].values(), *node["outputs"].values()]:
        assert port["name"]
        assert port["tooltip"] == "Markdown。" or CHINESE.search(port["tooltip"])


@pytest.mark.parametrize("node_id", CONTRACT)
def test_the_chinese_title_is_that_of_the_help_page(node_id):
    title = (WEB / "docs" / node_id / "zh.md").read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith(f"# {ZH[node_id]['display_name'].removesuffix('（In-Graph）')}（")


def test_what_comfyui_has_too_says_whose_it_is():
    """As the English names: ComfyUI's Chinese has a 训练 LoRA of its own."""
    marked = {node_id for node_id, node in ZH.items() if node["display_name"].endswith("（In-Graph）")}
    assert marked == {"TrainLoRA", "ApplyLoRA", "LoadDataset"}


def test_vue_i18n_finds_no_syntax_of_its_own_in_the_chinese_texts():
    assert not set("{}|@") & set("".join(_texts(ZH)))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for inner in value.values():
            yield from _texts(inner)
