"""The report as one HTML file that needs nothing else: pictures, charts, settings."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from html import escape

from PIL import Image

from .figures import Figure, Measured
from .report import Report, cell, count
from .shots import KINDS

Picture = Callable[[int, int], Image.Image]
"""(column, shot) → the picture."""
Trained = Callable[[str], Image.Image | None]
"""Name → the training picture; None where it is gone."""

SHOWN = 6
"""Pictures of each kind of prompt."""
PAIRS = 24
"""Near copies that are shown beside what they copy, at most."""
SIDE = 192
_WIDTH, _HEIGHT, _EDGE = 340, 150, 34
_COLOURS = ("#3b6ea5", "#b5541c")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1f2430;background:#fff;max-width:1200px;
margin:2em auto;padding:0 1em}
table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #d9dee8;padding:4px 8px;text-align:left}
.scroll{overflow-x:auto}.best{background:#eef6ee}.warning{color:#9a3412}figure{
display:inline-block;margin:0 1em 1em 0}
figcaption{font-size:13px}pre{background:#f4f6fa;padding:1em;overflow-x:auto;font-size:12px}img{display:block}
small{display:block;white-space:nowrap;color:#5b6473;font-size:11px}summary{cursor:pointer}
.pictures td{border:0;font-size:12px;vertical-align:top;max-width:200px}
"""


def page(report: Report, picture: Picture, name: str, trained: Trained = lambda name: None) -> str:
    """name: of what was evaluated, for the title. trained: shown beside their near copies."""
    chosen = report.choice.column
    best = report.columns[chosen][0].label if chosen is not None else "nothing"
    settings = json.dumps(dict(report.settings), indent=1, ensure_ascii=False, default=str)
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(name)}: evidence</title>",
        f"<style>{_STYLE}</style><h1>{escape(name)}</h1>",
        f"<p><b>Best: {escape(best)}</b> ({escape(report.choice.reason)}).</p>",
        *(f"<p class=warning>⚠ {escape(text)}</p>" for text in report.warnings()),
        *(f"<p>{escape(text)}</p>" for text in report.notes),
        "<h2>Figures</h2>",
        "<p>Value and 95 % bootstrap interval.</p>",
        _table(report),
        "<h2>Curves</h2>",
        *(_chart(report, figure) for figure in report.figures),
        _levels(report),
        _pairs(report, picture, trained),
        "<h2>Pictures</h2>",
        "<p>The same prompt and seed in each row.</p>",
        _pictures(report, picture),
        "<h2>Settings</h2>",
        "<details><summary>All that decides the figures, with hashes</summary>",
        f"<pre>{escape(settings)}</pre></details></html>",
    ]
    return "\n".join(parts)


def _table(report: Report) -> str:
    chosen = report.choice.column
    heads = ["figure", "in the literature", "good", "pictures", *(c.label for c, _ in report.columns)]
    rows = [f"<tr>{''.join(f'<th>{escape(h)}</th>' for h in heads)}</tr>"]
    for figure in report.figures:
        good = f"{figure.good}, {figure.range}"
        cells = [figure.title, figure.literature, good, count(report, figure)]
        text = "".join(f"<td>{escape(c)}</td>" for c in cells)
        for i, (_, findings) in enumerate(report.columns):
            mark = " class=best" if i == chosen else ""
            value, _, edges = cell(findings.figures.get(figure.key)).partition(" (")
            small = f"<small>{escape(edges.removesuffix(')'))}</small>" if edges else ""
            text += f"<td{mark}>{escape(value)}{small}</td>"
        rows.append(f"<tr>{text}</tr>")
    return f"<div class=scroll><table>{''.join(rows)}</table></div>"


def _chart(report: Report, figure: Figure) -> str:
    """A figure over the candidates in their order, with its intervals."""
    own = [findings.figures.get(figure.key) for _, findings in report.columns]
    labels = [candidate.label for candidate, _ in report.columns]
    return _svg(f"{figure.title} ({figure.good} is good)", [[_point(m) for m in own]], labels)


def _levels(report: Report) -> str:
    """The held-out loss by noise level: without the LoRA, and with the chosen one."""
    chosen = report.choice.column
    loss = [findings.figures.get("loss") for _, findings in report.columns]
    base, own = loss[0], loss[chosen] if chosen is not None else None
    if base is None or own is None:
        return ""
    lines = [[(v, v, v) for v in measured.levels] for measured in (base, own)]
    labels = [f"{100 * (i + 0.5) / len(base.levels):.0f} %" for i in range(len(base.levels))]
    return _svg("held-out loss by noise level: blue without the LoRA, brown the best", lines, labels)


def _point(measured: Measured | None) -> tuple[float, float, float] | None:
    if measured is None or not math.isfinite(measured.value):
        return None
    low, high = measured.interval or (measured.value, measured.value)
    return measured.value, low, high


def _svg(
    title: str, lines: Sequence[Sequence[tuple[float, float, float] | None]], labels: Sequence[str]
) -> str:
    edges = [edge for line in lines for point in line if point for edge in point]
    if not edges:
        return ""
    low, high = min(edges), max(edges)
    span = (high - low) or 1.0

    def x(i: int) -> float:
        return _EDGE + (_WIDTH - 2 * _EDGE) * (i / max(1, len(labels) - 1))

    def y(value: float) -> float:
        return _HEIGHT - 20 - (_HEIGHT - 34) * (value - low) / span

    marks = [
        f"<text x=2 y={y(edge):.0f} font-size=10>{edge:.2f}</text>"
        for edge in ((low, high) if high > low else (low,))
    ]
    for line, colour in zip(lines, _COLOURS, strict=False):
        there = [(i, p) for i, p in enumerate(line) if p]
        path = " ".join(f"{x(i):.1f},{y(p[0]):.1f}" for i, p in there)
        marks.append(f'<polyline points="{path}" fill=none stroke="{colour}" stroke-width=2 />')
        for i, (value, least, most) in there:
            marks.append(
                f'<line x1={x(i):.1f} x2={x(i):.1f} y1={y(least):.1f} y2={y(most):.1f} stroke="{colour}" />'
                f'<circle cx={x(i):.1f} cy={y(value):.1f} r=3 fill="{colour}"><title>'
                f"{escape(labels[i])}: {value:.3f}</title></circle>"
            )
    ends = [(0, "start"), (len(labels) - 1, "end")][: len(labels)]
    marks += [
        f"<text x={x(i):.0f} y={_HEIGHT - 4} font-size=10 text-anchor={anchor}>{escape(labels[i])}</text>"
        for i, anchor in ends
    ]
    drawn = (
        f'<svg width={_WIDTH} height={_HEIGHT} role=img aria-label="{escape(title)}">{"".join(marks)}</svg>'
    )
    return f"<figure>{drawn}<figcaption>{escape(title)}</figcaption></figure>"


def _pictures(report: Report, picture: Picture) -> str:
    copied = [{copy.shot: copy.name for copy in findings.copies} for _, findings in report.columns]
    parts = []
    for kind, words in KINDS.items():
        rows = [i for i, shot in enumerate(report.shots) if shot.kind == kind]
        near = [i for i in rows if any(i in copies for copies in copied)]
        shown = sorted([*near, *(i for i in _spaced(rows, SHOWN) if i not in near)][:SHOWN])
        if not shown:
            continue
        heads = "".join(f"<td>{escape(candidate.label)}</td>" for candidate, _ in report.columns)
        text = f"<tr><td></td>{heads}</tr>"
        for i in shown:
            shot = report.shots[i]
            text += f"<tr><td>{escape(shot.prompt)}<br>seed {shot.seed}</td>"
            for column in range(len(report.columns)):
                of = copied[column].get(i)
                note = f"<span class=warning>near {escape(of)}</span>" if of else ""
                text += f"<td>{_embedded(picture(column, i))}{note}</td>"
            text += "</tr>"
        parts.append(
            f"<h3>Prompts {escape(words)}</h3><div class=scroll><table class=pictures>{text}</table></div>"
        )
    return "".join(parts)


def _pairs(report: Report, picture: Picture, trained: Trained) -> str:
    """Near copies, each beside the training picture that it copies."""
    rows = []
    for column, (candidate, findings) in enumerate(report.columns):
        for copy in findings.copies:
            original = trained(copy.name) if len(rows) < PAIRS and not candidate.is_base else None
            if original is not None:
                shot = report.shots[copy.shot]
                about = f"{escape(candidate.label)}<br>{escape(shot.prompt)}<br>seed {shot.seed}"
                rows.append(
                    f"<tr><td>{about}</td><td>{_embedded(picture(column, copy.shot))}</td>"
                    f"<td>{_embedded(original)}{escape(copy.name)}</td></tr>"
                )
    if not rows:
        return ""
    heads = "<tr><td></td><td>drawn</td><td>training picture</td></tr>"
    table = f"<table class=pictures>{heads}{''.join(rows)}</table>"
    return f"<h2>Near copies</h2><div class=scroll>{table}</div>"


def _spaced(rows: Sequence[int], count: int) -> list[int]:
    return (
        [rows[len(rows) * i // count] for i in range(min(count, len(rows)))]
        if len(rows) > count
        else list(rows)
    )


def _embedded(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img width={small.width} height={small.height} alt="" src="data:image/jpeg;base64,{data}">'
