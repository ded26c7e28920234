"""`python dev.py bench --adapters`: what adapters cost on top of a block of SDXL or Flux.1, or of all SDXL.

ComfyUI's own blocks at their real widths, with generated weights. Each round times the block without adapters
and then with each contender, forward and backward; what counts is each one's fastest round, for what else the
machine does only adds to it. Nothing else of a step costs time for an adapter but the optimizer.
"sdxl step" is the whole network instead of a block.

On top of the block's own, for each adapter layer:

    ops      aten operations of both passes that compute or copy; on a GPU each is a kernel or more
    kept     bytes that autograd keeps between the passes
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import ROOT
from ..dev import host

PEFT = "peft"
"""A contender beside the kinds: LoRA by peft's own forward pass, under autocast for half precision."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """A block and how many tokens go through it."""

    block: str
    width: int
    tokens: int
    text: int
    family: str


SHAPES = {
    "sdxl 640": Shape("BasicTransformerBlock", 640, 4096, 77, "sdxl_base_v1-0"),
    "sdxl 1280": Shape("BasicTransformerBlock", 1280, 1024, 77, "sdxl_base_v1-0"),
    "flux double": Shape("DoubleStreamBlock", 3072, 1024, 512, "flux1"),
    "flux single": Shape("SingleStreamBlock", 3072, 1024, 512, "flux1"),
    "tiny": Shape("BasicTransformerBlock", 64, 16, 4, "sdxl_base_v1-0"),
}
"""SDXL at 1024 pixels, Flux.1 at 512."""
NETWORKS = {"sdxl step": ("sdxl", 512, "sdxl_base_v1-0"), "tiny step": ("tiny", 64, "sd_v1")}
"""A row of `models.MODELS`, pixels, family."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    shape: str
    dtype: str
    batch: int
    contender: str
    layers: int
    bare: float
    """Seconds of the block alone."""
    overhead: float
    """Of the time, as a part of `bare`."""
    ops: float
    kept: float
    device: str


def main() -> int:
    from in_graph_lora.trainer.config import ADAPTER_KINDS
    from in_graph_lora.trainer.rules import TARGETS

    parser = argparse.ArgumentParser(prog="dev.py bench --adapters", description=__doc__.split("\n")[0])
    parser.add_argument("--adapters", action="store_true", help="this benchmark")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES)[:4], choices=(*SHAPES, *NETWORKS))
    parser.add_argument("--contenders", nargs="+", default=[PEFT, "lora"], choices=(PEFT, *ADAPTER_KINDS))
    parser.add_argument("--targets", default="attention", choices=TARGETS)
    parser.add_argument("--dtypes", nargs="+", default=["bf16", "fp32"], choices=DTYPES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; 1 is disturbed least by others")
    parser.add_argument("--quick", action="store_true", help="does it run? A tiny block, one round")
    parser.add_argument("--out", type=Path, help="default: bench-adapters-<time>.json")
    args = parser.parse_args()
    if args.quick:
        args.shapes, args.rounds = ["tiny"], 1
    torch.set_num_threads(args.threads)
    out = args.out or ROOT / time.strftime("bench-adapters-%Y%m%d-%H%M%S.json")
    costs: list[Cost] = []
    for shape in args.shapes:
        for dtype in args.dtypes:
            for cost in measured(shape, dtype, args):
                costs.append(cost)
                out.write_text(json.dumps([asdict(c) for c in costs], indent=1), encoding="utf-8")
                print(f"{shape}, {dtype}, {cost.contender}: {cost.overhead:+.1%}", flush=True)
    print(f"\n{table(costs)}\n\nAll figures: {out}")
    return 0


def table(costs: list[Cost]) -> str:
    head = ("block", "dtype", "adapters", "layers", "block alone", "overhead", "ops a layer", "kept a layer")
    rows = [
        (c.shape, c.dtype, c.contender, str(c.layers), f"{1e3 * c.bare:.1f} ms", f"{c.overhead:+.1%}")
        + (f"{c.ops:.1f}", f"{c.kept / 2**20:.2f} MiB")
        for c in costs
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ("---",) * len(head), *rows])


def measured(name: str, dtype: str, args: argparse.Namespace) -> list[Cost]:
    from in_graph_lora.trainer.host.model import in_training

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    make, family = (network_of, NETWORKS[name][2]) if name in NETWORKS else (block_of, SHAPES[name].family)
    with ExitStack() as stack:
        stack.enter_context(in_training())
        net, forward = make(name, DTYPES[dtype], device, args.batch)
        stack.enter_context(without_writes(net, family))
        operations, kept = counted(forward)
        bare: list[float] = []
        times: dict[str, list[float]] = {c: [] for c in args.contenders}
        found: dict[str, tuple[int, int, int]] = {}
        for _ in range(args.rounds):
            bare.append(seconds(net, forward, device))
            for contender in args.contenders:
                with adapted(net, contender, DTYPES[dtype], args) as layers:
                    if contender not in found:
                        found[contender] = (layers, *counted(forward))
                    times[contender].append(seconds(net, forward, device))
    return [
        Cost(
            shape=name,
            dtype=dtype,
            batch=args.batch,
            contender=c,
            layers=layers,
            bare=min(bare),
            overhead=min(times[c]) / min(bare) - 1,
            ops=(ops - operations) / layers,
            kept=(nbytes - kept) / layers,
            device=name_of(device),
        )
        for c, (layers, ops, nbytes) in found.items()
    ]


def name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def network_of(
    name: str, dtype: torch.dtype, device: torch.device, batch: int
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A whole network. Its input needs gradients, so that it has a backward pass without adapters too."""
    from .models import MODELS, generated

    row, pixels, _ = NETWORKS[name]
    model = MODELS[row]
    net = model.empty(dtype).diffusion_model
    net.load_state_dict(dict(generated(net, dtype)), assign=True)
    net.to(device).requires_grad_(False)
    g = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(size, generator=g).to(device, dtype)

    x, t = drawn(*model.latent(batch, pixels)), torch.full((batch,), 500.0, device=device, dtype=dtype)
    given = model.given(drawn, batch)
    return net, lambda: net(x.detach().requires_grad_() * 1, t, **given)


def block_of(
    name: str, dtype: torch.dtype, device: torch.device, batch: int
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A network of one block, and a forward pass through it whose result needs gradients."""
    import comfy.ops
    from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
    from comfy.ldm.flux.math import rope
    from comfy.ldm.modules.attention import BasicTransformerBlock

    from in_graph_lora.trainer.host import kernels

    shape = SHAPES[name]
    made = {"dtype": dtype, "device": device, "operations": comfy.ops.disable_weight_init}
    options = {"transformer_options": {"optimized_attention_override": kernels.attention}}
    g = torch.Generator().manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(batch, *size, generator=g).to(device, dtype)

    heads = max(1, shape.width // 64)
    x, net = drawn(shape.tokens, shape.width), nn.Module()
    if shape.block == "BasicTransformerBlock":
        block = BasicTransformerBlock(shape.width, heads, shape.width // heads, context_dim=2048, **made)
        arguments = {"context": drawn(shape.text, 2048)}
        inputs = (x,)
    else:
        heads //= 2
        positions = torch.arange(shape.text + shape.tokens, device=device)[None]
        pe = rope(positions, shape.width // heads, 10_000)[:, None]
        arguments = {"vec": drawn(shape.width), "pe": pe}
        if shape.block == "DoubleStreamBlock":
            block = DoubleStreamBlock(shape.width, heads, 4.0, qkv_bias=True, **made)
            inputs = (x, drawn(shape.text, shape.width))
        else:
            block = SingleStreamBlock(shape.width, heads, 4.0, **made)
            inputs = (torch.cat([drawn(shape.text, shape.width), x], 1),)
    with torch.no_grad():
        for p in block.parameters():
            scale = p.shape[-1] ** -0.5 if p.ndim > 1 else 1
            p.copy_(scale * torch.randn(p.shape, generator=g))
    net.add_module("blocks", nn.ModuleList([block]))
    net.requires_grad_(False)

    def forward() -> Tensor:
        out = block(*[i.detach().requires_grad_() * 1 for i in inputs], **arguments, **options)
        return torch.cat(out, 1) if isinstance(out, tuple) else out

    return net, forward


@contextmanager
def without_writes(net: nn.Module, family: str) -> Iterator[None]:
    """As a loan of the model has it."""
    from in_graph_lora.trainer.families import FAMILIES
    from in_graph_lora.trainer.memory.blocks import by_class
    from in_graph_lora.trainer.memory.out_of_place import out_of_place

    row = next(f for f in FAMILIES if f.name == family)
    with out_of_place(by_class(net, row.in_place)):
        yield


@contextmanager
def adapted(net: nn.Module, contender: str, dtype: torch.dtype, args: argparse.Namespace) -> Iterator[int]:
    """The adapters in the network for a while; how many layers have one."""
    from in_graph_lora.trainer.adapters.inject import injected
    from in_graph_lora.trainer.config import AdapterConfig

    half = dtype if dtype != torch.float32 else None
    kind: Any = "lora" if contender == PEFT else contender
    config = AdapterConfig(kind=kind, rank=args.rank, targets=args.targets)
    with injected(net, config, seed=0, compute_dtype=half) as adapter:
        if contender == PEFT:
            for layer in adapter.layers.values():
                by_peft(layer, half)
        yield len(adapter.layers)


def by_peft(layer: Any, half: torch.dtype | None) -> None:
    """Its layer with its own forward pass, and the base layer outside of autocast."""
    from in_graph_lora.trainer.adapters.layers import Untouched

    own = next(c for c in type(layer).__mro__ if c.__module__.startswith("peft."))
    forward = partial(own.forward, layer)  # type: ignore[attr-defined]
    layer.cast_input_dtype_enabled = False
    if half is not None:
        device = layer.base_layer.weight.device.type
        layer.base_layer = Untouched(layer.base_layer)
        forward = torch.autocast(device, dtype=half)(forward)
    layer.forward = forward


def seconds(net: nn.Module, forward: Callable[[], Tensor], device: torch.device) -> float:
    """Of one pass forward and back: processor time, or the clock's where a GPU does the work.

    As in a step no gradients are there before it.
    """
    gpu = device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    out = forward()
    slope = torch.ones_like(out)
    out.backward(slope)  # the first is slower: it fetches memory
    del out
    net.zero_grad()
    if gpu:
        torch.cuda.synchronize()
    start = clock()
    forward().backward(slope)
    if gpu:
        torch.cuda.synchronize()
    return clock() - start


def counted(forward: Callable[[], Tensor]) -> tuple[int, int]:
    """(operations of both passes that compute or copy, bytes that autograd keeps between them)"""
    kept: WeakSet[Kept] = WeakSet()

    def pack(t: Tensor) -> Kept:
        kept.add(holder := Kept(t))
        return holder

    operations = Operations()
    with operations:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
            out = forward()
        storages = [k.tensor.untyped_storage() for k in kept if not isinstance(k.whole, nn.Parameter)]
        nbytes = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
        out.backward(torch.ones_like(out))
    return operations.count, nbytes


class Kept:
    """What autograd holds as long as it needs the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.whole = tensor if tensor._base is None else tensor._base


class Operations(TorchDispatchMode):
    """Counts aten operations, without those that only look at a tensor in another way or ask for memory."""

    count = 0
    _FREE = ("empty", "_unsafe_view", "_reshape_alias", "detach")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        looks = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not looks and not func.overloadpacket.__name__.startswith(self._FREE):
            self.count += 1
        return func(*args, **(kwargs or {}))


def run() -> int:
    with tempfile.TemporaryDirectory() as base:
        host.import_comfyui(Path(os.environ["IGL_COMFYUI"]), Path(base), cpu=not torch.cuda.is_available())
        host.register_pack()
        return main()
