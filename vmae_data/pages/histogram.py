"""Values → a histogram as SVG for a page (the data side has no matplotlib)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from vmae_data.pages.html import Figure, printable

__all__ = ["histogram"]

FEW_VALUES = 12  # up to this many distinct values get a bar each, with the value as its tick
BINS = 24


def histogram(values: ArrayLike, title: str, unit: str = "", caption: str = "", *, ranges: bool = True) -> Figure:
    """How often values occur, with a bar for each range. Without `ranges`, a few distinct values get a bar each."""
    data = np.asarray(values, dtype=np.float64)
    counted = Counter(float(f"{value:.4g}") for value in data.tolist())
    if len(counted) <= (1 if ranges else FEW_VALUES):
        bars = [(f"{value:g}", count) for value, count in sorted(counted.items())]
        every = math.ceil(len(bars) / 8) or 1
        ticks = [(n + 0.5, bars[n][0]) for n in range(0, len(bars), every)]
    else:
        counts, edges = np.histogram(data, bins=min(BINS, max(6, len(data) // 2)))
        bars = [(f"{a:.4g} to {b:.4g}", int(n)) for n, a, b in zip(counts, edges, edges[1:], strict=False)]
        width = edges[1] - edges[0]
        ticks = [((value - edges[0]) / width, f"{value:g}") for value in _round_numbers(edges[0], edges[-1])]
    return Figure(_svg(bars, ticks, unit), f"{title}, {unit}" if unit else title, caption)


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight round numbers between the two."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(bars: Sequence[tuple[str, int]], ticks: Sequence[tuple[float, str]], unit: str) -> Markup:
    """`bars`: name and count. `ticks`: position, in bars, and label."""
    width, height, base, top = 320.0, 150.0, 128.0, 16.0
    most = max((count for _, count in bars), default=1)
    step = width / max(1, len(bars))
    inner = min(step - 1.5, 64)
    parts = [Markup('<svg viewBox="0 0 320 150" class="chart" role="img"><path class="axis" d="M0 128.5H320"/>')]
    for n, (name, count) in enumerate(bars):
        tall = (base - top) * count / most
        parts.append(
            Markup('<rect class="bar" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
            .format(n * step + (step - inner) / 2, base - tall, inner, tall, printable(f"{name} {unit}: {count}"))
        )  # fmt: skip
    for position, label in ticks:
        x = position * step
        anchor = "start" if x < 14 else "end" if x > width - 14 else "middle"
        parts.append(Markup('<text x="{:.2f}" y="{}" text-anchor="{}">{}</text>').format(x, height - 7, anchor, label))
    tallest = max(range(len(bars)), key=lambda n: bars[n][1], default=0)
    x = min(max((tallest + 0.5) * step, 14), width - 14)
    parts.append(
        Markup('<text x="{:.2f}" y="12" text-anchor="middle" class="soft">{}</text>').format(x, most if bars else 0)
    )
    return Markup("").join(parts) + Markup("</svg>")
