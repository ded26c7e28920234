"""A dataset in words and figures, as Markdown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import shortened
from ..text import garbled, readable
from .caption_statistics import caption_statistics, words
from .records import Dataset, ImageRecord
from .remarks import remarks
from .views import View, views

MAX_PROBLEMS = 200
MAX_TAGS = 20
_ROLES = {"instance": "of the subject", "class": "of the class", "validation": "held out"}


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How a text encoder counts captions."""

    tokens: Callable[[str], int]
    limit: int
    """What it reads at once; longer captions are read in several parts. 0 is no limit."""


def buckets(dataset: Dataset) -> list[tuple[tuple[int, int], list[tuple[ImageRecord, View]]]]:
    """Size of the bucket and what is trained at it, the fullest first."""
    found: defaultdict[tuple[int, int], list[tuple[ImageRecord, View]]] = defaultdict(list)
    for record in dataset.records:
        for view in views(record, resolution=dataset.resolution):
            found[view.size].append((record, view))
    return sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))


def title(dataset: Dataset, shown: int | None = None) -> str:
    """For example "12 images · 10 of the subject, 2 of the class · 3 clips · 1 skipped · 3 buckets"."""
    sizes = {v.size for r in dataset.records for v in views(r, resolution=dataset.resolution)}
    roles = {role: sum(r.role == role for r in dataset.records) for role in _ROLES}
    masked = sum(r.mask is not None for r in dataset.records)
    controlled = sum(bool(r.controls) for r in dataset.records)
    clips = sum(r.clip is not None for r in dataset.records)
    parts = [_some(len(dataset), "image")]
    if roles["instance"] < len(dataset):
        parts.append(", ".join(f"{n} {_ROLES[role]}" for role, n in roles.items() if n))
    parts += [_some(clips, "clip")] if clips else []
    parts += [f"{masked} masked"] if masked else []
    parts += [f"{controlled} with control pictures"] if controlled else []
    parts += [f"{sum(p.skipped for p in dataset.problems)} skipped", _some(len(sizes), "bucket")]
    parts += [f"first {shown} shown"] if shown is not None and shown < len(dataset) else []
    return " · ".join(parts)


def overview(dataset: Dataset) -> str:
    """What the node shows, as Markdown: counts, what is odd, every bucket, what was skipped."""
    told = remarks(dataset)
    if blank := sum(not r.caption for r in dataset.records):
        told.append(f"{blank} without a caption; add Caption Images or .txt files")
    if odd := garbled(dataset.texts):
        told.append(odd)
    parts = [
        title(dataset),
        *(f"⚠ {_inline(line, 2000)}" for line in told),
        _sizes(dataset),
        _problems(dataset),
    ]
    return "\n\n".join(part for part in parts if part)


def _sizes(dataset: Dataset) -> str:
    """A row for each bucket, a column for each role that there is."""
    roles = [role for role in _ROLES if any(r.role == role for r in dataset.records)]
    rows = [f"| trained at | {' | '.join(_ROLES[role] for role in roles)} | cut, on average |"]
    rows.append("|---|" + "---:|" * (len(roles) + 1))
    for (width, height), members in buckets(dataset):
        counts = [str(sum(record.role == role for record, _ in members)) for role in roles]
        rows.append(f"| {width}x{height} | {' | '.join(counts)} | {_mean_cut(members):.0%} |")
    return "\n".join(rows)


def _problems(dataset: Dataset) -> str:
    if not dataset.problems:
        return ""
    rows = ["| file | | why |", "|---|---|---|"]
    for p in dataset.problems[:MAX_PROBLEMS]:
        kind = "skipped" if p.skipped else "note"
        rows.append(f"| {_inline(readable(p.path.name))} | {kind} | {_inline(readable(p.reason))} |")
    more = len(dataset.problems) - MAX_PROBLEMS
    return "\n".join(rows) + (f"\n\nand {more} more" if more > 0 else "")


def _some(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def report(dataset: Dataset, tokens: TokenCount | None = None) -> str:
    """tokens: of the text encoder that will read the captions; without it words are counted."""
    parts = [_counts(dataset), _buckets(dataset), _captions(dataset, tokens), _told(dataset)]
    return "\n\n".join(part for part in parts if part)


def _counts(dataset: Dataset) -> str:
    rows = ["| role | pictures | shown in an epoch | masked | weighted |", "|---|---:|---:|---:|---:|"]
    for role in _ROLES:
        own = [r for r in dataset.records if r.role == role]
        if own:
            shown = sum(r.repeats * r.views_at(dataset.resolution) for r in own)
            masked, weighted = sum(r.mask is not None for r in own), sum(r.weight != 1 for r in own)
            rows.append(f"| {role} | {len(own)} | {shown} | {masked} | {weighted} |")
    return "\n".join(["## Pictures", "", *rows])


def _buckets(dataset: Dataset) -> str:
    rows = ["| size | views | of pictures | cut, on average |", "|---|---:|---:|---:|"]
    for (width, height), members in buckets(dataset):
        pictures = len({id(record) for record, _ in members})
        rows.append(f"| {width}x{height} | {len(members)} | {pictures} | {_mean_cut(members):.0%} |")
    return "\n".join(["## Buckets", "", *rows])


def _mean_cut(members: list[tuple[ImageRecord, View]]) -> float:
    return sum(_share_cut(record, view) for record, view in members) / len(members)


def _share_cut(record: ImageRecord, view: View) -> float:
    left, top, right, bottom = view.box
    return max(0.0, 1 - (right - left) * (bottom - top) / (record.size[0] * record.size[1]))


def _captions(dataset: Dataset, tokens: TokenCount | None) -> str:
    found = caption_statistics(dataset, tokens.tokens if tokens else words)
    unit = "tokens" if tokens else "words"
    lines = ["## Captions", "", f"- without a caption: {found.without}"]
    if found.lengths:
        name, longest = found.longest
        lines.append(f"- length: {found.mean_length:.0f} {unit} on average, at most {longest} ({name})")
    if tokens and tokens.limit:
        over = found.over(tokens.limit)
        named = f": {shortened(over, 10)}" if over else ""
        lines.append(f"- longer than the {tokens.limit} tokens that are read at once: {len(over)}{named}")
    if same := [n for n in Counter(r.caption for r in dataset.records if r.caption).values() if n > 1]:
        lines.append(f"- pictures that share a caption with another: {sum(same)}")
    if found.tags:
        often = ", ".join(f"{_inline(tag)} ({n})" for tag, n in found.tags[:MAX_TAGS])
        lines.append(f"- most frequent parts between commas: {often}")
    return "\n".join(lines)


def _told(dataset: Dataset) -> str:
    told = [f"{'skipped' if p.skipped else 'note'}: {p}" for p in dataset.problems[:MAX_PROBLEMS]]
    if (more := len(dataset.problems) - MAX_PROBLEMS) > 0:
        told.append(f"and {more} more")
    told += remarks(dataset)
    if odd := garbled(dataset.texts):
        told.append(odd)
    return "\n".join(["## To look at", "", *(f"- {_inline(t)}" for t in told or ["nothing"])])


def _inline(text: str, most: int = 300) -> str:
    """On one line, and not read as Markdown or HTML: names and captions come from elsewhere."""
    flat = " ".join(text.split())[:most]
    for sign in "\\`*_<>[]|":
        flat = flat.replace(sign, "\\" + sign)
    return flat
