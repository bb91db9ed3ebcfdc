"""Plots as inline SVG, each a pure function of its numbers: bars, columns and intervals. Text is escaped here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.product.report.text import number

_WIDTH = 940
_LEFT = 225  # room for labels
_RIGHT = 76  # room for figures
_ROW = 28
_LONGEST = 30  # characters of a label; the whole stands in its <title>
_INK, _GRID, _INTERVAL = "#1d2a22", "#d9dfd6", "#111111"


@dataclass(frozen=True)
class Part:
    """One piece of a bar: its `value` on the axis, colour #rrggbb, what it is, and whether it is hatched."""

    title: str
    value: float
    colour: str
    hatched: bool = False


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its 95 % interval, drawn as a dot on a line: never as a bar."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Bar:
    """One row: stacked parts, from the left, with an interval over them where there is one."""

    label: str
    parts: tuple[Part, ...] = ()
    interval: Interval | None = None

    @property
    def total(self) -> float:
        """Return the length of the bar."""
        return sum(part.value for part in self.parts)


def bars(title: str, rows: Sequence[Bar], axis: str, highest: float | None = None, *, figures: bool = True) -> Markup:
    """Return horizontal stacked bars over one axis named `axis`, which ends at `highest` where given.

    `figures` writes each bar's total beside it.
    """
    ends = [row.total for row in rows] + [row.interval.high for row in rows if row.interval]
    ticks = ticks_to(highest if highest is not None else max(ends, default=0.0))
    scale = (_WIDTH - _LEFT - _RIGHT) / ticks[-1]
    height = _ROW * len(rows) + 44
    pieces = [_axis(ticks, scale, height - 40, axis)]
    for k, row in enumerate(rows):
        pieces += [_bar(row, 6 + k * _ROW, scale, figures)]
    return _svg(title, height, pieces)


def columns(title: str, rows: Sequence[Bar], axis: str, mark: tuple[float, str] | None = None) -> Markup:
    """Return vertical stacked columns side by side; `mark` is a line at that share of the width, with its text."""
    tall, floor, left = 200, 230, 80
    ticks = ticks_to(max((row.total for row in rows), default=0.0), whole=True)
    wide = (_WIDTH - left - 20) / max(len(rows), 1)
    pieces = []
    for tick in ticks:
        y = floor - tall * tick / ticks[-1]
        pieces.append(Markup('<path d="M{} {:.1f}H{}" stroke="{}"/>').format(left, y, _WIDTH - 20, _GRID))
        pieces.append(_text(left - 8, y + 4, number(tick, 0), "end"))
    for k, row in enumerate(rows):
        x, y = left + k * wide, float(floor)
        for part in row.parts:
            length = tall * part.value / ticks[-1]
            y -= length
            pieces.append(_box(x + 2, y, wide - 4, length, part, f"{row.label}, {part.title}: {number(part.value, 0)}"))
        pieces.append(_text(x + wide / 2, floor + 17, row.label, "middle"))
        if row.total:
            pieces.append(_text(x + wide / 2, y - 5, number(row.total, 0), "middle"))
    if mark:
        x = left + (_WIDTH - 20 - left) * mark[0]
        line = '<path d="M{:.1f} {}V{}" stroke="{}" stroke-width="1.5" stroke-dasharray="5 4"/>'
        pieces.append(Markup(line).format(x, floor - tall - 6, floor, _INK))
        pieces.append(_text(x - 6, floor - tall - 10, mark[1], "end"))
    pieces.append(_text(left + (_WIDTH - 20 - left) / 2, floor + 38, axis, "middle"))
    return _svg(title, floor + 48, pieces)


def ticks_to(highest: float, *, whole: bool = False) -> list[float]:
    """Return round axis values 0, ... of which the last is at least `highest`; whole numbers where asked for."""
    if not math.isfinite(highest) or highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / 4))
    step = next(k * power for k in (1, 2, 2.5, 5, 10) if k * power * 5 >= highest * 0.999999)
    step = max(math.ceil(step), 1) if whole else step
    return [step * k for k in range(math.ceil(highest * 0.999999 / step) + 1)]


def _bar(row: Bar, top: float, scale: float, figures: bool) -> Markup:
    x, pieces = float(_LEFT), [_label(row.label, top)]
    for part in row.parts:
        length = part.value * scale
        if part.value > 0:
            pieces.append(_box(x, top, length, _ROW - 10, part, f"{row.label}, {part.title}: {number(part.value)}"))
        x += length
    end = x
    if row.interval:
        low, at, high = (_LEFT + max(v, 0.0) * scale for v in (row.interval.low, row.interval.value, row.interval.high))
        y, end = top + (_ROW - 10) / 2, max(end, high)
        path = f"M{low:.1f} {y - 6:.1f}V{y + 6:.1f}M{low:.1f} {y:.1f}H{high:.1f}M{high:.1f} {y - 6:.1f}V{y + 6:.1f}"
        for colour, width in (("#ffffff", 4.5), (_INTERVAL, 1.8)):
            pieces.append(
                Markup('<path d="{}" stroke="{}" stroke-width="{}" fill="none"/>').format(path, colour, width)
            )
        dot = '<circle cx="{:.1f}" cy="{:.1f}" r="4.2" fill="{}" stroke="#ffffff" stroke-width="1.4"/>'
        pieces.append(Markup(dot).format(at, y, _INTERVAL))
    if row.parts and figures:
        pieces.append(_text(end + 6, top + _ROW / 2 - 0.5, number(row.total)))
    return Markup("").join(pieces)


def _axis(ticks: Sequence[float], scale: float, bottom: float, axis: str) -> Markup:
    decimals = 0 if all(float(tick).is_integer() for tick in ticks) else 2
    pieces = []
    for tick in ticks:
        x = _LEFT + tick * scale
        pieces.append(Markup('<path d="M{:.1f} 0V{}" stroke="{}"/>').format(x, bottom, _GRID))
        pieces.append(_text(x, bottom + 15, number(tick, decimals), "middle"))
    pieces.append(_text(_LEFT + ticks[-1] * scale / 2, bottom + 35, axis, "middle"))
    return Markup("").join(pieces)


def _label(label: str, top: float) -> Markup:
    short = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
    text = '<text x="{}" y="{:.1f}" text-anchor="end"><title>{}</title>{}</text>'
    return Markup(text).format(_LEFT - 8, top + _ROW / 2 - 0.5, label, short)


def _box(x: float, y: float, width: float, height: float, part: Part, title: str) -> Markup:
    """Return a filled rectangle, thinly edged as pale colours are hard to see on white; white stripes if hatched."""
    shape = Markup('x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"').format(x, y, max(width, 0.4), height)
    edge = Markup(' stroke="#00000055" stroke-width=".7"')
    body = Markup('<rect {} fill="{}"{}><title>{}</title></rect>').format(shape, part.colour, edge, title)
    stripes = Markup('<rect {} fill="url(#stripes)" pointer-events="none"/>').format(shape)
    return body + stripes if part.hatched else body


def _text(x: float, y: float, text: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(title: str, height: float, pieces: Sequence[Markup]) -> Markup:
    head = Markup('<svg class="plot" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}"><g font-size="13.5">')
    return head.format(_WIDTH, height, escape(title)) + Markup("").join(pieces) + Markup("</g></svg>")
