"""Configs of other trainers: the same training here, and no name that is dropped in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from in_graph_lora.trainer.adapters.metadata import training_metadata
from in_graph_lora.trainer.config import AdapterConfig, EmbeddingConfig, ObjectiveConfig, TrainConfig
from in_graph_lora.trainer.errors import ConfigError
from in_graph_lora.trainer.recipes import foreign
from in_graph_lora.trainer.recipes.settings import DEFAULTS, settings
from in_graph_lora.trainer.recipes.source_text import names_a_file, read_file, read_text, read_text_file
from in_graph_lora.trainer.recipes.tool import NONE, OTHER_NODES
from in_graph_lora.trainer.recipes.tools import TOOLS

CONFIGS = Path(__file__).parents[1] / "configs"


def read(name: str) -> foreign.Converted:
    return foreign.read(read_text_file(CONFIGS / name))


def of(text: str | dict[str, Any]) -> foreign.Converted:
    return foreign.read(read_text(text if isinstance(text, str) else json.dumps(text)))


WANTED: dict[str, tuple[str, tuple[str, ...], dict[str, Any], set[str]]] = {
    "kohya_sdxl.toml": (
        "kohya sd-scripts",
        (),
        {
            "adapter.rank": 32, "adapter.alpha": 16.0, "adapter.init": "kaiming", "adapter.dropout": 0.1,
            "optimizer.name": "adamw8bit", "optimizer.learning_rate": 2e-4, "optimizer.text_encoder_lr": 1e-5,
            "optimizer.lora_plus_ratio": 4.0, "optimizer.weight_decay": 0.05, "optimizer.betas": [0.9, 0.99],
            "optimizer.schedule": "cosine", "optimizer.warmup_steps": 100, "steps": 1990,
            "data.resolution": 887,
            "objective.weighting": "min_snr", "objective.t_min": 0.1, "objective.loss": "huber",
            "objective.tag_shuffle": True, "objective.keep_tags": 2, "framing.upscaling": "own_size",
        },
        {"network_args rank_dropout", "optimizer_args amsgrad", "scale_weight_norms"},
    ),
    "musubi_qwen.txt": (
        "musubi-tuner",
        ("qwen_image",),
        {
            "adapter.rank": 16, "adapter.alpha": 1.0, "adapter.targets": "attention+feed-forward",
            "epochs": 16,
            "objective.timestep_sampling": "shift", "objective.shift": 2.2, "optimizer.learning_rate": 5e-5,
        },
        set(),
    ),
    "kohya_gui.json": (
        "kohya_ss",
        ("flux1",),
        {
            "adapter.rank": 16, "adapter.alpha": 8.0, "adapter.targets": "all linear", "steps": 1000,
            "optimizer.text_encoder_lr": 0.0, "objective.timestep_sampling": "flux_shift",
            "optimizer.learning_rate": 3e-4, "optimizer.warmup_steps": 0,
        },
        {"fp8_base"},
    ),
    "onetrainer.json": (
        "OneTrainer",
        ("flux1",),
        {
            "adapter.rank": 16, "adapter.alpha": 1.0, "adapter.targets": "attention", "epochs": 30,
            "optimizer.learning_rate": 6e-4, "optimizer.betas": [0.9, 0.98], "optimizer.warmup_steps": 200,
            "objective.timestep_sampling": "logit_normal", "objective.logit_std": 1.2, "objective.shift": 1.5,
            "optimizer.ema_decay": 0.998, "objective.unmasked_weight": 0.2, "memory.precision": "bf16",
        },
        {"optimizer.fused"},
    ),
    "ai_toolkit.yaml": (
        "ai-toolkit",
        ("flux1",),
        {
            "adapter.rank": 16, "adapter.alpha": 8.0, "framing.resolutions": [512, 768, 1024], "steps": 2000,
            "optimizer.accumulation": 2, "optimizer.ema_decay": 0.99, "prior.method": "output_preservation",
            "prior.weight": 0.5, "prior.class_prompt": "person", "preview.prompts": ["a horse", "a bear"],
            "optimizer.weight_decay": 1e-4, "objective.caption_dropout": 0.05,
        },
        {"train.timestep_type", "trigger_word"},
    ),
    "simpletuner.json": (
        "SimpleTuner",
        ("sd3",),
        {
            "adapter.rank": 64, "adapter.alpha": 32.0, "adapter.dropout": 0.1,
            "optimizer.learning_rate": 8e-5,
            "optimizer.power": 0.8, "data.resolution": 1024, "objective.timestep_sampling": "sigmoid",
            "objective.shift": 3.0, "optimizer.max_grad_norm": 0.01, "preview.every": 200, "steps": 4000,
        },
        {"init_lora"},
    ),
    "diffusers_dreambooth.sh": (
        "diffusers",
        ("sd_v1",),
        {
            "adapter.rank": 8, "adapter.alpha": 8.0, "adapter.init": "gaussian",
            "adapter.targets": "attention",
            "optimizer.learning_rate": 2e-4, "prior.method": "class_images", "prior.weight": 0.8,
            "prior.class_images": 200, "prior.class_prompt": "a photo of dog", "framing.crop": "center",
            "optimizer.name": "adamw8bit", "memory.precision": "fp16", "steps": 500,
        },
        set(),
    ),
    "diffusers_custom_diffusion.sh": (
        "diffusers, Custom Diffusion",
        ("sd_v1",),
        {
            "adapter.kind": "full", "adapter.targets": "cross-attention", "adapter.hold_first_token": True,
            "optimizer.learning_rate": 4e-5, "optimizer.weight_decay": 0.01, "optimizer.schedule": "constant",
            "prior.method": "class_images", "prior.class_images": 150, "prior.class_prompt": "teapot",
            "framing.flip": True, "framing.crop": "center", "data.batch_size": 2, "steps": 250, "seed": 42,
        },
        set(),
    ),
    "lora_metadata.json": (
        "metadata of a LoRA",
        ("sd_v1",),
        {
            "adapter.kind": "locon", "adapter.rank": 32, "adapter.alpha": 8.0,
            "optimizer.text_encoder_lr": 5e-5,
            "optimizer.weight_decay": 0.1, "optimizer.betas": [0.9, 0.99], "data.resolution": 768,
            "steps": 2000,
            "data.batch_size": 4, "seed": 1234,
        },
        {"clip_skip"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WANTED)
def test_a_config_gives_the_same_training_here(name):
    tool, families, wanted, missing = WANTED[name]
    found = read(name)
    assert (found.tool.title, found.families) == (tool, families)
    for setting, value in wanted.items():
        assert found.settings[setting] == (pytest.approx(value) if isinstance(value, float) else value), (
            setting
        )
    assert set(found.left.get(NONE, {})) == missing


@pytest.mark.parametrize("name", WANTED)
def test_every_name_of_a_config_is_in_the_report(name):
    source = read_text_file(CONFIGS / name)
    found = foreign.read(source)
    text = foreign.report(found)
    for own in found.tool.rename(source.values):
        assert own in text, own
    assert set(found.unknown) == ({"invented_option"} if name == "kohya_sdxl.toml" else set())
    assert "abc123" not in text, "keys and tokens are not shown"


def test_every_setting_of_a_table_exists_and_no_name_is_there_twice():
    for tool in TOOLS:
        assert set(tool.defaults) <= set(tool.fields), tool.title
        listed = [name for names in tool.left.values() for name in names.split()]
        assert not set(tool.fields) & set(listed), tool.title
        assert tool.signs
        assert tool.source


def test_custom_diffusion_says_what_its_script_does_and_the_graph_does_not() -> None:
    line = "python train_custom_diffusion.py --modifier_token '<a>+<b>' --learning_rate 1e-5"
    found = of(line)
    assert found.settings["adapter.targets"] == "kv"
    assert found.settings["optimizer.learning_rate"] == 1e-5
    assert found.left[OTHER_NODES]["modifier_token"] == "<a>+<b>"
    notes = " ".join(found.notes)
    for words in ("initial_word ktn", "<b> would be left out", "without noaug", "stretched"):
        assert words in notes
    assert "without noaug" not in " ".join(of(f"{line} --noaug").notes)
    assert "freeze_model" in of(f"{line} --freeze_model all").left[NONE]


def test_our_own_config_comes_back_whole(tmp_path):
    config = TrainConfig(
        name="toy", steps=77, seed=3, adapter=AdapterConfig(rank=8, alpha=4, targets="regex:attn2"),
        objective=ObjectiveConfig(masked=False, guidance=0.0, t_min=0.1),
    )  # fmt: skip
    metadata = training_metadata(config.to_dict(), base_model="sd_v1", steps=77, alpha=4, rank=8)
    save_file({"x": torch.zeros(1)}, tmp_path / "toy.safetensors", metadata)
    for found in (of(json.dumps(config.to_dict())), foreign.read(read_file("toy.safetensors", tmp_path))):
        again = foreign.usable(found).config
        assert again == settings({n: v for n, v in found.settings.items() if n in DEFAULTS}).config
        assert (again.steps, again.adapter, again.objective) == (77, config.adapter, config.objective)
        assert not found.unknown
    assert found.families == ("sd_v1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a file name nor a config"),
        ("just words", "neither a file name nor a config"),
        ("{", "cannot be read as JSON"),
        ("[" * 5_000 + "{", "cannot be read as"),
        ("a: [1", "cannot be read as YAML"),
        ("a: !!python/object/apply:os.system ['true']", "cannot be read as YAML"),
        ('{"rank": 4, "lr": 1}', "no known tool has settings such as rank, lr"),
        ("python train_controlnet.py --rank 4", "'train_controlnet.py' is no script"),
        ("accelerate launch train_network.py --network_dim '4", "the command line cannot be read"),
        ("network_dim = 8\nnetwork_alpha = 'x'", "network_alpha is 'x', which is no number"),
        ("network_dim = 8\nnetwork_alpha = nan", "network_alpha is 'nan', which is no number"),
        ("network_dim = 8\nlearning_rate = true", "learning_rate is 'True', which is no number"),
        (
            "network_dim = 4096\nnetwork_alpha = 1",
            "config of kohya sd-scripts: rank is 4096; choose 1 to 1024",
        ),
        ('{"training_method": "FINE_TUNE", "lora_rank": 4}', "training_method is FINE_TUNE; only LORA"),
        ('{"model_family": "sdxl", "model_type": "full"}', "model_type is full; only lora"),
        ("config: {process: [{train: {noise_scheduler: ddpm}}]}", "has no network"),
        ('{"in_graph_lora.config": "{"}', "the settings in the LoRA's metadata are damaged"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(text, said):
    with pytest.raises(ConfigError) as error:
        of(text)
    assert said in str(error.value)


def test_tables_within_tables_without_end_are_refused():
    bomb = "a: &a {x: 1}\n" + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} {{" + ", ".join(
        f"k{n}: *{chr(97 + i)}" for n in range(9)) + "}" for i in range(8))  # fmt: skip
    plain = "a: &a [1]\n" + "\n".join(f"{chr(98 + i)}: &{chr(98 + i)} [" + ", ".join(
        [f"*{chr(97 + i)}"] * 9) + "]" for i in range(9))  # fmt: skip
    deep = "{" + '"a": {' * 20 + "}" * 21
    for text in (bomb, plain, "a: &a [{b: *a}]", deep, "a" * 2_000_001):
        with pytest.raises(ConfigError, match="too many tables|at most|more than 50000 values"):
            of(text)


@pytest.mark.parametrize(
    "name", ["../secret.toml", "/etc/hostname.txt", "nothing.toml", "folder.json", "a\0b.txt"]
)
def test_files_outside_of_the_input_folder_are_not_opened(tmp_path, name):
    (tmp_path / "input" / "folder.json").mkdir(parents=True)
    (tmp_path / "secret.toml").write_text("network_dim = 4")
    with pytest.raises(ConfigError, match="there is no file|no usable file name"):
        read_file(name, tmp_path / "input")


def test_a_link_out_of_the_input_folder_is_not_followed(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "secret.toml").write_text("network_dim = 4")
    (tmp_path / "input" / "a.toml").symlink_to(tmp_path / "secret.toml")
    with pytest.raises(ConfigError, match="there is no file"):
        read_file("a.toml", tmp_path / "input")


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"12345678901")
    save_file({"x": torch.zeros(1)}, tmp_path / "b.safetensors")
    (tmp_path / "c.json").write_bytes(b" " * 2_000_001)
    for name, said in [("a", "is no safetensors file"), ("b", "has no metadata")]:
        with pytest.raises(ConfigError, match=said):
            read_file(f"{name}.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="2000001 bytes"):
        read_file("c.json", tmp_path)


def test_a_file_name_is_told_from_a_config():
    assert names_a_file(" my config.toml\n")
    assert not names_a_file("--config_file x.toml")
    assert not names_a_file("rank = 4\n# a.toml")


COMMON = {"network_module": "networks.lora", "network_dim": 8, "max_train_steps": 100}


@pytest.mark.parametrize(
    ("more", "setting", "value"),
    [
        ({}, "adapter.alpha", 1.0),
        ({"network_alpha": 0}, "adapter.alpha", 0.0),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lokr", "factor=8"]}, "adapter.kind",
         "lokr"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=lora", "dora_wd=True"]},
         "adapter.kind", "dora"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=diag-oft"]}, "adapter.kind", "oft"),
        ({"network_module": "lycoris.kohya", "network_args": ["algo=full"]}, "adapter.kind", "full"),
        ({"network_module": "networks.loha"}, "adapter.kind", "loha"),
        ({"network_module": "networks.lora_flux", "timestep_sampling": "sigma",
         "weighting_scheme": "logit_normal"},
         "objective.timestep_sampling", "logit_normal"),
        ({"network_module": "networks.lora_flux", "weighting_scheme": "sigma_sqrt"}, "objective.weighting",
         "sigma_sqrt"),
        ({"network_module": "networks.lora_sd3", "timestep_sampling": "sigma", "weighting_scheme": "mode",
          "discrete_flow_shift": 3}, "objective.shift", 3.0),
        ({"learning_rate": 1, "optimizer_type": "DAdaptAdam"}, "optimizer.learning_rate", 1e-4),
        ({"learning_rate": 1, "optimizer_type": "Prodigy"}, "optimizer.learning_rate", 1.0),
        ({"network_train_unet_only": True}, "optimizer.text_encoder_lr", 0.0),
        ({"text_encoder_lr": [1e-5, 2e-5]}, "optimizer.text_encoder_lr", 1e-5),
        ({"reg_data_dir": "x", "prior_loss_weight": 0.5}, "prior.method", "class_images"),
        ({"debiased_estimation_loss": True}, "objective.weighting", "debiased_kohya"),
        ({"optimizer_type": "pytorch_optimizer.CAME"}, "optimizer.name", "came"),
        ({"learning_rate": 1, "optimizer_type": "prodigyplus.ProdigyPlusScheduleFree"},
         "optimizer.learning_rate", 1.0),
        ({"network_args": ["down_lr_weight=sine+.25", "mid_lr_weight=0.5", "block_lr_zero_threshold=0.1"]},
         "adapter.lr_by_block", "down_lr_weight=sine+.25\nmid_lr_weight=0.5\nblock_lr_zero_threshold=0.1"),
        ({"random_crop": True}, "framing.crop", "random"),
        ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 0.25}, "optimizer.warmup_steps", 25),
        ({"use_lion_optimizer": True}, "optimizer.name", "lion"),
        ({"train_batch_size": 2.4}, "data.batch_size", 2),
    ],
)  # fmt: skip
def test_what_sd_scripts_takes_from_several_names(more, setting, value):
    assert of({**COMMON, **more}).settings[setting] == value


def test_a_whole_change_takes_no_rank_and_no_alpha_from_sd_scripts():
    found = of(
        {**COMMON, "network_alpha": 4, "network_module": "lycoris.kohya", "network_args": ["algo=full"]}
    )
    assert not {"adapter.rank", "adapter.alpha", "adapter.init"} & found.settings.keys()


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"network_module": "lycoris.kohya", "network_args": ["algo=ia3"]}, "network_module"),
        ({"network_train_text_encoder_only": True}, "network_train_text_encoder_only"),
        ({"network_module": "networks.lora_flux", "timestep_sampling": "nextlevel"}, "timestep_sampling"),
        ({"network_module": "networks.lora_flux", "weighting_scheme": "own"}, "weighting_scheme"),
        (
            {"network_module": "networks.lora_flux", "model_prediction_type": "additive"},
            "model_prediction_type",
        ),
        ({"lr_scheduler": "rex"}, "lr_scheduler"),
        ({"optimizer_type": "DAdaptLion"}, "optimizer_type"),
        ({"loss_type": "wavelet"}, "loss_type"),
    ],
)
def test_what_has_no_counterpart_is_listed(more, name):
    assert name in of({**COMMON, **more}).left[NONE]


GUI = {"LoRA_type": "Standard", "max_resolution": "512,512", "network_dim": 8, "network_alpha": 8}
TRAINER = {"training_method": "LORA", "lora_rank": 8, "timestep_distribution": "UNIFORM"}
TUNER = {"model_family": "sdxl", "model_type": "lora", "lora_rank": 8}
TOOLKIT = {"config": {"process": [{"network": {"type": "lora", "linear": 8}, "train": {"lr": 1e-4}}]}}


@pytest.mark.parametrize(
    ("config", "setting", "value"),
    [
        ({**GUI, "LoRA_type": "Kohya LoCon", "conv_dim": 4}, "adapter.kind", "locon"),
        ({**GUI, "LoRA_type": "LyCORIS/LoHa"}, "adapter.kind", "loha"),
        ({**GUI, "lr_warmup": 10, "lr_scheduler": "cosine", "max_train_steps": 500},
         "optimizer.warmup_steps", 50),
        ({**GUI, "epoch": 4, "max_train_steps": 0}, "epochs", 4),
        ({**TRAINER, "peft_type": "OFT_2", "oft_block_size": 16}, "adapter.rank", 16),
        ({**TRAINER, "lora_decompose": True}, "adapter.kind", "dora"),
        ({**TRAINER, "layer_filter": "attn,ff"}, "adapter.targets", "attention+feed-forward"),
        ({**TRAINER, "timestep_distribution": "HEAVY_TAIL", "noising_weight": 1.0}, "objective.mode_scale",
         1.0),
        ({**TRAINER, "mse_strength": 0, "mae_strength": 2}, "objective.loss", "l1"),
        ({**TRAINER, "mse_strength": 1, "huber_strength": 1}, "objective.loss", "mse"),
        ({**TRAINER, "mse_strength": 0, "huber_strength": 1, "huber_delta": 0.3}, "objective.huber_c", 0.3),
        ({**TRAINER, "loss_weight_fn": "MIN_SNR_GAMMA", "loss_weight_strength": 4},
         "objective.min_snr_gamma", 4.0),
        ({**TRAINER, "loss_weight_fn": "DEBIASED_ESTIMATION"}, "objective.weighting", "debiased_onetrainer"),
        ({**TRAINER, "learning_rate_warmup_steps": 0.1}, "optimizer.warmup_steps", -1),
        ({**TRAINER, "perturbation_noise_weight": 0.1}, "objective.input_perturbation", 0.1),
        ({**TRAINER, "learning_rate": 1e-4, "text_encoder": {"train": True, "learning_rate": 1e-5},
          "text_encoder_2": {"train": True}}, "optimizer.text_encoder_lr", 1e-5),
        ({**TUNER, "num_train_epochs": 3}, "epochs", 3),
        ({**TUNER, "use_dora": True}, "adapter.kind", "dora"),
        ({**TUNER, "resolution": 768, "resolution_type": "pixel"}, "data.resolution", 768),
        ({**TUNER, "train_text_encoder": True, "text_encoder_lr": 1e-5}, "optimizer.text_encoder_lr", 1e-5),
        ({**TUNER, "offset_noise": True, "noise_offset": 0.1}, "objective.noise_offset", 0.1),
        (TOOLKIT, "objective.timestep_sampling", "uniform"),
        (TOOLKIT, "adapter.alpha", 1.0),
        ("train_dreambooth_lora_flux.py --rank 16 --train_text_encoder --num_train_epochs 2",
         "adapter.alpha", 4.0),
        ("train_dreambooth_lora_sd3.py --weighting_scheme cosmap", "objective.weighting", "cosmap"),
        ("train_text_to_image_lora.py --lora_alpha 2 --snr_gamma 5", "objective.weighting", "min_snr"),
        ("train_text_to_image_lora.py --random_flip", "framing.crop", "random"),
        ("train_dreambooth_lora_sdxl.py --optimizer prodigy --learning_rate 1", "optimizer.name", "prodigy"),
    ],
)  # fmt: skip
def test_what_other_tools_take_from_several_names(config, setting, value):
    assert of(config).settings[setting] == value


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({**TRAINER, "peft_type": "BOFT"}, "peft_type"),
        ({**TRAINER, "timestep_distribution": "BETA"}, "timestep_distribution"),
        ({**TRAINER, "dynamic_timestep_shifting": True}, "dynamic_timestep_shifting"),
        ({**TRAINER, "loss_weight_fn": "P2"}, "loss_weight_fn"),
        ({**TRAINER, "optimizer": {"optimizer": "TIGER"}}, "optimizer.optimizer"),
        ({**TRAINER, "masked_prior_preservation_weight": 0.5}, "masked_prior_preservation_weight"),
        ({**TUNER, "lora_type": "lycoris"}, "lora_type"),
        ({**TUNER, "optimizer": "soap"}, "optimizer"),
        ({**TUNER, "noise_offset": 0.1}, "noise_offset"),
        ({"config": {"process": [{"network": {"type": "lorm"}}]}}, "network.type"),
        ("train_dreambooth_lora_flux.py --lora_layers attn.to_k --weighting_scheme own", "weighting_scheme"),
        ("train_dreambooth_lora_sdxl.py --optimizer sgd", "optimizer"),
        ('{"ss_network_dim": "8", "ss_optimizer": "library.own.Own"}', "optimizer"),
    ],
)
def test_what_other_tools_have_alone_is_listed(config, name):
    assert name in of(config).left[NONE]


def test_what_training_recipe_has_no_output_for_is_named_and_not_taken_over():
    weighted = of({**COMMON, "weighted_captions": True})
    assert "weighted_captions" in weighted.left[OTHER_NODES]
    assert "set caption_syntax of Train LoRA to comfyui" in foreign.report(weighted)
    own = TrainConfig(embedding=EmbeddingConfig(vectors=2, placeholder="x", initial_word="cat"))
    found = of(json.dumps(own.to_dict()))
    assert {"embedding.vectors", "embedding.placeholder", "data.edit_node"} <= found.left[OTHER_NODES].keys()
    assert not foreign.usable(found).config.embedding.vectors
    came = of({**COMMON, "optimizer_type": "CAME", "optimizer_args": ["betas=.9,.99"]})
    assert "came has betas and eps of its own here" in foreign.report(came)


def test_a_newer_version_of_a_config_is_said():
    assert "version 99" in foreign.report(of({**TRAINER, "__version": 99}))


def test_what_was_rounded_is_said():
    text = foreign.report(of({**COMMON, "train_batch_size": 2.4, "resolution": "1024,768"}))
    assert "rounded: train_batch_size 2.4 is data.batch_size 2 here" in text
    assert "side 887" in text
