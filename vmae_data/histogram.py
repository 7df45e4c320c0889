"""How often values occur, as a small drawing for the page (the data side needs no matplotlib)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike

from vmae_data.html import Figure, printable

__all__ = ["histogram"]

FEW_VALUES = 12  # so many different values get a bar each, with the value under it
BINS = 24


def histogram(values: ArrayLike, title: str, unit: str = "", caption: str = "", *, ranges: bool = True) -> Figure:
    """How often values occur: a bar a range; where not `ranges` and there are few values, a bar a value."""
    data = np.asarray(values, dtype=np.float64)
    counted = Counter(float(f"{value:.4g}") for value in data.tolist())
    if len(counted) <= (1 if ranges else FEW_VALUES):
        columns = [_Column(f"{value:g}", count) for value, count in sorted(counted.items())]
        every = math.ceil(len(columns) / 8) or 1
        ticks = [_Tick(n + 0.5, columns[n].name) for n in range(0, len(columns), every)]
    else:
        counts, edges = np.histogram(data, bins=min(BINS, max(6, len(data) // 2)))
        columns = [_Column(f"{a:.4g} to {b:.4g}", int(n)) for n, a, b in zip(counts, edges, edges[1:], strict=False)]
        width = edges[1] - edges[0]
        ticks = [_Tick((at - edges[0]) / width, f"{at:g}") for at in _round_numbers(edges[0], edges[-1])]
    return Figure(_columns_svg(columns, ticks, unit), f"{title}, {unit}" if unit else title, caption)


class _Column(NamedTuple):
    name: str
    tall: int


class _Tick(NamedTuple):
    at: float  # in columns
    name: str


def _round_numbers(low: float, high: float) -> list[float]:
    """Four to eight numbers between the two that are easy to read."""
    raw = (high - low) / 5
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
    return [round(n * step, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _columns_svg(columns: Sequence[_Column], ticks: Sequence[_Tick], unit: str) -> Markup:
    width, height, base, top = 320.0, 150.0, 128.0, 16.0
    most = max((column.tall for column in columns), default=1)
    step = width / max(1, len(columns))
    inner = min(step - 1.5, 64)
    parts = [Markup('<svg viewBox="0 0 320 150" class="chart" role="img"><path class="axis" d="M0 128.5H320"/>')]
    for n, column in enumerate(columns):
        tall = (base - top) * column.tall / most
        parts.append(
            Markup('<rect class="bar" x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}"><title>{}</title></rect>')
            .format(n * step + (step - inner) / 2, base - tall, inner, tall, printable(f"{column.name} {unit}: {column.tall}"))
        )  # fmt: skip
    for tick in ticks:
        x = tick.at * step
        anchor = "start" if x < 14 else "end" if x > width - 14 else "middle"
        parts.append(
            Markup('<text x="{:.2f}" y="{}" text-anchor="{}">{}</text>').format(x, height - 7, anchor, tick.name)
        )
    tallest = max(range(len(columns)), key=lambda n: columns[n].tall, default=0)
    x = min(max((tallest + 0.5) * step, 14), width - 14)
    parts.append(
        Markup('<text x="{:.2f}" y="12" text-anchor="middle" class="soft">{}</text>').format(x, most if columns else 0)
    )
    return Markup("").join(parts) + Markup("</svg>")
