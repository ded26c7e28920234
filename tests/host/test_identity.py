"""A model is known by all that decides what it computes, and by nothing else.

Every stock node that takes a model and widgets, and the merging nodes, are run on the real loaded model.
"""

from __future__ import annotations

import asyncio
import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import nodes as comfy_nodes
from in_graph_lora.trainer.host.digest import digest
from in_graph_lora.trainer.host.identity import clip_fingerprint, model_fingerprint, vae_fingerprint
from in_graph_lora.trainer.host.sample import SampleSettings, encode_prompt, sample_image

from .loaded import Loaded, load

pytestmark = pytest.mark.slow

SAMPLING_ONLY = {
    *("RescaleCFG", "Mahiro", "RenormCFG", "APG", "TCFG", "FreSca", "CFGZeroStar", "CFGNorm", "CFGOverride"),
    *("Epsilon Scaling", "TemporalScoreRescaling", "VideoLinearCFGGuidance", "VideoTriangleCFGGuidance"),
    *("PerturbedAttentionGuidance", "SkipLayerGuidanceSD3", "SkipLayerGuidanceDiT", "DifferentialDiffusion"),
    "SkipLayerGuidanceDiTSimple",
}
"""They change what the sampler does with the network's output; a LoRA that is trained does not see them."""


def stock_nodes() -> dict[str, Any]:
    """Node id → class, of the nodes that come with ComfyUI."""
    asyncio.run(comfy_nodes.init_builtin_extra_nodes())
    return dict(comfy_nodes.NODE_CLASS_MAPPINGS)


@lru_cache
def patching() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Node id → (class, its widgets' defaults), of those with one model and widgets in and a model out."""
    found = {}
    for name, cls in sorted(stock_nodes().items()):
        spec = cls.INPUT_TYPES()
        inputs = spec.get("required", {})
        kinds = [kind[0] for kind in inputs.values()]
        if kinds.count("MODEL") != 1 or "MODEL" not in getattr(cls, "RETURN_TYPES", ()):
            continue
        widgets = {k: default(v) for k, v in inputs.items() if v[0] != "MODEL"}
        if None not in widgets.values():
            found[name] = (cls, widgets)
    return found


def default(spec: Any) -> Any:
    kind, *more = spec
    options = more[0] if more else {}
    if isinstance(kind, list):
        return options.get("default", kind[0] if kind else None)
    if kind == "COMBO":
        return options.get("default", (options.get("options") or [None])[0])
    return options.get("default") if kind in ("INT", "FLOAT", "BOOLEAN", "STRING") else None


def applied(name: str, model: Any, **changes: Any) -> Any:
    """The model that a stock node makes of this one, as the executor runs the node."""
    cls, widgets = patching()[name]
    model_input = next(k for k, v in cls.INPUT_TYPES()["required"].items() if v[0] == "MODEL")
    with torch.inference_mode():
        out = getattr(cls(), cls.FUNCTION)(**{model_input: model, **widgets, **changes})
        out = asyncio.run(out) if inspect.iscoroutine(out) else out
    return (getattr(out, "args", None) or out)[0]


def changed_widgets(name: str) -> dict[str, Any]:
    """Other values for the node's numbers; nothing for a node without any."""
    numbers = {k: v for k, v in patching()[name][1].items() if isinstance(v, int | float)}
    return {k: not v if isinstance(v, bool) else v * 2 + type(v)(8) for k, v in numbers.items()}


def fingerprint(model: Any) -> str:
    own, unknown = model_fingerprint(model)
    assert not unknown
    return own


UNFIT = {"TorchCompileModel", "MultiGPU_WorkUnits", "SelectModelDevice"}
"""They decide where and how fast it runs, or need other hardware."""


def candidates() -> list[str]:
    return [name for name in patching() if name not in UNFIT]


@pytest.mark.parametrize("name", candidates())
def test_a_stock_node_that_changes_the_model_changes_its_fingerprint(loaded: Loaded, name: str) -> None:
    before = fingerprint(loaded.model)
    try:
        patched = applied(name, loaded.model)
    except Exception as error:  # noqa: BLE001 - made for another family, and each says so in its own way
        pytest.skip(f"does not take an SD 1.5 model ({type(error).__name__}: {error})")
    if patched is loaded.model:
        pytest.skip("gives this model back as it is")
    if name in SAMPLING_ONLY:
        assert fingerprint(patched) == before
        return
    assert fingerprint(patched) != before
    assert fingerprint(applied(name, loaded.model)) == fingerprint(patched), "run again it is the same"
    if name != "SelfAttentionGuidance" and (change := changed_widgets(name)):  # its widgets are the sampler's
        assert fingerprint(applied(name, loaded.model, **change)) != fingerprint(patched), change
    assert fingerprint(loaded.model) == before


SETTINGS = SampleSettings(steps=1, cfg=3.0, sampler_name="euler", scheduler="normal", width=64, height=64)


@pytest.mark.parametrize("name", ["TomePatchModel", "FreeU_V2", "HyperTile", "ModelSamplingDiscrete"])
def test_sampling_with_a_patched_model_does_not_change_its_fingerprint(loaded: Loaded, name: str) -> None:
    patched = applied(name, loaded.model)
    before = fingerprint(patched)
    with torch.inference_mode():
        prompt = encode_prompt(loaded.clip, "a cat")
        sample_image(patched, loaded.vae, prompt, encode_prompt(loaded.clip, ""), 0, SETTINGS)
    assert fingerprint(patched) == before


@pytest.fixture(scope="module")
def other(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Another checkpoint of the same format: its weights are the first one's times 1.01."""
    from safetensors.torch import load_file, save_file

    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_file({k: (v.float() * 1.01).to(v.dtype) for k, v in load_file(tiny_checkpoint).items()}, path)
    loaded = load(path)
    path.unlink()
    return loaded


@pytest.mark.parametrize(
    "name", ["ModelMergeSimple", "ModelMergeAdd", "ModelMergeSubtract", "ModelMergeBlocks"]
)
def test_a_merge_is_known_by_what_it_mixes_in(loaded: Loaded, other: Loaded, name: str) -> None:
    ratios = {"ModelMergeSimple": (0.3,), "ModelMergeSubtract": (0.3,), "ModelMergeBlocks": (0.3, 0.5, 0.7)}
    cls = stock_nodes()[name]

    def merged(second: Any, *values: float) -> str:
        arguments = dict(zip(("input", "middle", "out"), values, strict=False))
        if name != "ModelMergeBlocks":
            arguments = dict(
                zip(("ratio",) if name == "ModelMergeSimple" else ("multiplier",), values, strict=False)
            )
        with torch.inference_mode():
            return fingerprint(getattr(cls(), cls.FUNCTION)(loaded.model, second, **arguments)[0])

    values = ratios.get(name, ())
    with_other, with_itself = merged(other.model, *values), merged(loaded.model, *values)
    assert len({with_other, with_itself, fingerprint(loaded.model)}) == 3
    assert merged(other.model, *values) == with_other
    if values:
        assert merged(other.model, *(v + 0.1 for v in values)) != with_other


def test_a_merged_text_encoder_is_known_by_what_it_mixes_in(loaded: Loaded, other: Loaded) -> None:
    cls = stock_nodes()["CLIPMergeSimple"]

    def merged(second: Any, ratio: float) -> str:
        with torch.inference_mode():
            return clip_fingerprint(getattr(cls(), cls.FUNCTION)(loaded.clip, second, ratio)[0])[0]

    found = [merged(other.clip, 0.3), merged(other.clip, 0.4), merged(loaded.clip, 0.3)]
    assert len({*found, clip_fingerprint(loaded.clip)[0]}) == 4
    assert merged(other.clip, 0.3) == found[0]


def test_clip_skip_and_another_vae_are_seen(loaded: Loaded, other: Loaded) -> None:
    clip = loaded.clip.clone()
    clip.clip_layer(-2)
    assert clip_fingerprint(clip)[0] != clip_fingerprint(loaded.clip)[0]
    assert vae_fingerprint(other.vae)[0] != vae_fingerprint(loaded.vae)[0]


def test_the_same_file_loaded_again_is_the_same(loaded: Loaded, tiny_checkpoint: Path) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # fills what a file lacks, and ComfyUI leaves as it is, with NaN
    try:
        again = load(tiny_checkpoint)
    finally:
        torch.use_deterministic_algorithms(before)
    assert model_fingerprint(again.model) == model_fingerprint(loaded.model)
    assert clip_fingerprint(again.clip) == clip_fingerprint(loaded.clip)
    assert vae_fingerprint(again.vae) == vae_fingerprint(loaded.vae)


def test_hooks_and_wrappers_are_seen(loaded: Loaded) -> None:
    import comfy.patcher_extension as extension

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs)

    wrapped = loaded.model.clone()
    wrapped.add_wrapper(extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    assert fingerprint(wrapped) != fingerprint(loaded.model)


# ---------------------------------------------------------------- the digest itself


def closure(**settings: Any) -> Any:
    memory = None

    def patch(x: Any) -> Any:
        nonlocal memory
        memory = x
        return settings

    return patch


def test_what_a_function_remembers_is_no_setting() -> None:
    used = closure(ratio=0.3)
    used("something")
    assert digest(used) == digest(closure(ratio=0.3))
    assert digest(used) != digest(closure(ratio=0.4))


def test_what_cannot_be_told_is_named() -> None:
    own, unknown = digest({"patches": [closure(source=iter([1]))]})
    assert unknown == ["0.patches.0.settings.source (builtins.list_iterator)"]
    assert own


@pytest.mark.parametrize(
    ("one", "another"),
    [
        (1, 1.0),
        ("1", 1),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float16)),
        (torch.zeros(2), torch.tensor([0.0, 1e-7])),
        (lambda x: x + 1, lambda x: x + 2),
        (torch.nn.GELU(), torch.nn.SiLU()),
        (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
        ({"a": {1, 2}}, {"a": {1, 3}}),
    ],
)
def test_what_differs_has_another_digest(one: Any, another: Any) -> None:
    assert digest(one)[0] != digest(another)[0]
    assert digest(one) == digest(one)


def test_a_loop_of_objects_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop)
