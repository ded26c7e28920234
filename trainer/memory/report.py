"""A plan in words: a line for the node, pages for the run folder and for Plan Training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..config import MemoryConfig
from ..space import Space
from .plan import CARDS, GB, Measured, Need, choose, leanest, need


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, and what it was chosen by."""

    batch: str
    """What a pass holds at most, in words: "2 × 1024×1024"."""
    chosen: Need
    measured: Measured
    device_free: int
    """Bytes that the run may take on the device."""
    host_free: int
    """Bytes of free system memory."""
    precisions: tuple[str, ...]
    """Values of base_precision that could be chosen."""
    device: str = "card"
    disk: Space | None = None
    """What the run will write."""

    @property
    def fits(self) -> bool:
        return self.chosen.with_reserve <= self.device_free

    @property
    def swaps(self) -> bool:
        """Whether it would take more system memory than there is."""
        return self.chosen.host > self.host_free

    @property
    def line(self) -> str:
        n = self.chosen
        place = "system memory" if self.measured.on_cpu else "the card"
        parts = [f"{gb(n.with_reserve)} of {gb(self.device_free)} GB on {place}"]
        if not self.measured.on_cpu:
            parts.append(f"{gb(n.host)} of {gb(self.host_free)} GB of system memory")
        if self.disk is not None:
            parts.append(f"{gb(self.disk.needed)} of {gb(self.disk.free)} GB on the disk")
        step = f"about {seconds(n.seconds)} a step"
        return f"plan: {self.batch} a pass, {', '.join(parts)}, {step}; {levers(n.memory)}"

    @property
    def warnings(self) -> list[str]:
        """What the user must know before the start."""
        found = []
        if not self.fits:
            found.append(
                f"this run needs about {gb(self.chosen.with_reserve)} GB and {gb(self.device_free)} GB are"
                " free, so it may run out of memory; lower batch_size, or the resolution in Load Dataset"
            )
        if self.swaps:
            found.append(
                f"this run needs about {gb(self.chosen.host)} GB of system memory and {gb(self.host_free)}"
                " GB are free, so the machine may swap and become slow; close other programs, or lower"
                " streamed"
            )
        if self.disk is not None and not self.disk.fits:
            found.append(
                f"this run writes about {gb(self.disk.needed)} GB and {gb(self.disk.free)} GB are free on the"
                " disk, so it may stop before its end; make space, or set keep_checkpoints (Train Preview)"
            )
        return found

    @property
    def _passes(self) -> str:
        return f"{self.measured.passes:g} pass{'' if self.measured.passes == 1 else 'es'}"

    @property
    def text(self) -> str:
        """Markdown."""
        n = self.chosen
        rows = [
            ("model", n.weights),
            ("ring of streamed blocks", n.ring),
            ("LoRA", n.adapters),
            ("optimizer and averages", n.optimizer),
            ("activations and gradients", n.activations),
            ("reserve for gaps", n.reserve),
            ("**together**", n.with_reserve),
            ("free", self.device_free),
        ]
        lines = [
            "# Plan",
            "",
            *(f"**{warning}**\n" for warning in self.warnings),
            f"{self.batch} a pass, {self._passes} a step, about {seconds(n.seconds)} a step."
            f" Levers: {levers(n.memory)}.",
            "",
            f"| On the {self.device} | GB |",
            "|---|---|",
            *(f"| {name} | {gb(size)} |" for name, size in rows if size),
            "",
            f"System memory: {gb(n.host)} GB of {gb(self.host_free)} GB that are free.",
            "",
            *self._on_disk,
            "Activations and times were measured: each kind of block forward and backward at the largest size"
            " of this run. Times are without the optimizer's step, and under compile they are shorter.",
        ]
        return "\n".join(lines)

    @property
    def _on_disk(self) -> list[str]:
        d = self.disk
        if d is None:
            return []
        return [
            f"Disk: {gb(d.needed)} GB of {gb(d.free)} GB that are free, with {d.loras} LoRA files and"
            f" {d.states} states at most and {gb(d.cache)} GB of encoded pictures, where they are not there"
            " yet.",
            "",
        ]

    @property
    def table(self) -> str:
        """Markdown: what would be chosen on other cards."""
        lines = [
            "| Card | Fits | GB | System GB | Step | Levers |",
            "|---|---|---|---|---|---|",
        ]
        for size, n, fits in self.what_if():
            lines.append(
                f"| {size} GB | {'yes' if fits else '**no**'} | {gb(n.with_reserve)} | {gb(n.host)} |"
                f" {seconds(n.seconds)} | {levers(n.memory)} |"
            )
        return "\n".join(lines)

    def what_if(self, cards: Sequence[int] = CARDS) -> list[tuple[int, Need, bool]]:
        """(GB of the card, what would be chosen there, whether that fits); 0.5 GB are the system's."""
        wish, out = self.chosen.memory, []
        for size in cards:
            n = choose(self.measured, wish, int((size - 0.5) * GB), self.precisions)
            out.append((size, n or leanest(self.measured, wish, self.precisions), n is not None))
        return out

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "batch": self.batch,
            "device_free": self.device_free,
            "host_free": self.host_free,
            "disk": asdict(self.disk) if self.disk is not None else None,
            "chosen": {**asdict(self.chosen), "device": self.chosen.device, "reserve": self.chosen.reserve},
            "measured": asdict(self.measured),
        }


def planned(measured: Measured, memory: MemoryConfig, free: int, precisions: Sequence[str]) -> Need:
    """By `fit`: the levers as they are, or the fastest that fit, or the leanest where none do."""
    if memory.fit == "manual":
        return need(measured, memory)
    return choose(measured, memory, free, precisions) or leanest(measured, memory, precisions)


def levers(memory: MemoryConfig) -> str:
    found = []
    if memory.streamed:
        found.append(f"streamed {memory.streamed:.2g}")
    if memory.checkpointing:
        found.append(f"checkpointing {memory.checkpointing}")
    if memory.base_precision != "as loaded":
        found.append(f"base_precision {memory.base_precision}")
    if memory.offload_activations:
        found.append("offload_activations")
    return ", ".join(found) or "none needed"


def gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= GB / 10 or not size else f"{size / GB:.2g}"


def seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 10 else f"{value:.2g} s"
