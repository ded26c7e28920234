"""Recipes: every file of the folder is right, and a wrong one says what is wrong in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from in_graph_lora.trainer.adapters.inject import injected
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.recipes.recipe import FOLDER, load, names
from in_graph_lora.trainer.recipes.settings import DEFAULTS, node_of, settings

CHINESE = re.compile(r"[\u4e00-\u9fff]")
GOOD = json.loads((FOLDER / "sd15.json").read_text(encoding="utf-8"))


def test_there_is_a_recipe_for_each_method_and_family_that_users_have_read_of():
    wanted = {
        "dreambooth_diffusers",
        "dreambooth_modelscope",
        "sd14_five_epochs",
        "kolors_diffsynth",
        "custom_diffusion",
    }
    assert wanted | {"sd15", "sdxl", "flux1", "z_image", "qwen_image"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_a_recipe_gives_a_reason_and_a_source_for_each_value_in_both_languages(name):
    recipe = load(name)
    assert recipe.values
    assert recipe.families
    for setting, value in recipe.values.items():
        assert value.source
        assert CHINESE.search(value.why["zh"]), setting
    english, chinese = recipe.report("en"), recipe.report("zh")
    for setting in recipe.values:
        assert f"| {setting.rpartition('.')[2]} |" in english
    assert not CHINESE.search(english)
    assert CHINESE.search(chinese)
    assert english.count("\n") == chinese.count("\n")
    given = recipe.settings
    for setting, value in recipe.values.items():
        section, _, field = setting.rpartition(".")
        holder = given.framing if section == "framing" else getattr(given.config, section or "steps", None)
        holder = given.config if not section else holder
        assert getattr(holder, field) == value.value


def test_a_recipe_is_a_file(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(GOOD), encoding="utf-8")
    assert names(tmp_path) == ["mine"]
    assert load("mine", tmp_path).settings == load("sd15").settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": "SD"}, "title must have en, zh"),
        ({"more": 1}, "it must have about, families, settings, source, title"),
        ({"families": ["sd1"]}, "families must be a list of"),
        ({"families": "sd_v1"}, "families must be a list of"),
        ({"notes": {}}, "settings must be a table and notes a list"),
        ({"source": ""}, "source must be one line"),
        (
            {"settings": {"adapter.rang": {"value": 1, "en": "a", "zh": "b"}}},
            "there is no setting 'adapter.rang'",
        ),
        ({"settings": {"adapter.rank": {"value": 1, "en": "a"}}}, "adapter.rank must have en, value, zh"),
        (
            {"settings": {"adapter.rank": {"value": "8", "en": "a", "zh": "b"}}},
            "adapter.rank is '8'; it must be",
        ),
        ({"settings": {"adapter.rank": {"value": 0, "en": "a", "zh": "b"}}}, "rank is 0; choose 1 to 1024"),
        ({"settings": {"adapter.rank": {"value": 8, "en": "a|b", "zh": "b"}}}, "one line of text without |"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path, change, said):
    (tmp_path / "mine.json").write_text(json.dumps({**GOOD, **change}), encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape("the recipe mine.json cannot be used: ")) as error:
        load("mine", tmp_path)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, " " * 200_000, "\udcff"])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "mine.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"the recipe mine\.json cannot be used"):
        load("mine", tmp_path)


def test_a_name_of_no_recipe_is_refused_also_as_a_path(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(GOOD), encoding="utf-8")
    (tmp_path / "inner").mkdir()
    with pytest.raises(ConfigError, match="there is no recipe"):
        load("../x", tmp_path / "inner")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"attn": nn.ModuleDict({"to_q": nn.Linear(32, 32)})})])

    def forward(self, x):
        return self.blocks[0]["attn"]["to_q"](x)  # type: ignore[index]


def test_kolors_trains_a_quarter_of_ba_as_diffsynth_does():
    """α is 4 and not divided by the rank in DiffSynth's loader, which then has to be given 0.25."""
    torch.manual_seed(0)
    net, x = Net().requires_grad_(False), torch.randn(3, 32)
    before = net(x)
    with injected(net, load("kolors_diffsynth").settings.config.adapter, seed=0):
        factors = {n.rpartition("lora_")[2][0]: p for n, p in net.named_parameters() if "lora_" in n}
        with torch.no_grad():
            factors["B"].normal_()
        after = net(x)
        wanted = before + 0.25 * x @ factors["A"].T @ factors["B"].T
    assert factors["A"].shape == (16, 32)
    torch.testing.assert_close(after, wanted)


def test_every_setting_is_found_on_a_node():
    assert node_of("adapter.rank") == "Train LoRA"
    assert node_of("epochs") == "Train Optimizer"
    assert {node_of(name) for name in DEFAULTS} > {"Train LoRA", "LoRA Adapter", "Image Framing"}
    assert settings({}) == settings(DEFAULTS)


def test_the_examples_of_the_page_are_recipes(repo_root: Path):
    page = (repo_root / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert {f"`{name}`" for name in names()} <= set(re.findall(r"`[a-z0-9_]+`", page))
