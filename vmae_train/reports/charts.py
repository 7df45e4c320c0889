"""Curves of a training, points of two sets, and the confusion matrix of a classifier → SVG in the colours of the page, light or dark.

matplotlib has no CSS variables: curves are drawn in placeholder colours, which the SVG then replaces by the page's.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from vmae_data.pages.html import Figure, printable
from vmae_data.pages.pictures import picture

__all__ = ["Curve", "confusion_picture", "curves", "log_curve", "scatter"]

# Placeholders for the six colours of the page's curves, its soft text and its lines.
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
SOFT, LINE = "#0a0007", "#0a0008"
STRONGEST = 0.45  # opacity of a full cell: its number keeps a contrast of 4.9, in a light and a dark page
MAX_NUMBERED = 24  # with at most this many classes, every cell of the confusion matrix shows its count
ACCENT = (80, 140, 220)


class Curve(NamedTuple):
    """Values over steps."""

    name: str
    step: Sequence[float]
    value: Sequence[float]


def log_curve(name: str, lines: Sequence[dict[str, Any]], field: str, kind: str = "train", scale: float = 1) -> Curve:
    """One field of a run's log; lines without a finite value are skipped."""
    points = [
        (float(line["step"]), scale * float(line[field]))
        for line in lines
        if line.get("kind") == kind and isinstance(line.get(field), (int, float)) and math.isfinite(line[field])
    ]
    return Curve(name, [step for step, _ in points], [value for _, value in points])


def curves(
    title: str, lines: Sequence[Curve], label: str, caption: str = "", *, level: float | None = None
) -> Figure | None:
    """Curves over steps in one chart, with a dotted line at `level`. None if no curve has two points.

    `label`: what the y axis shows, with its unit.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as MplFigure

    if max((len(line.step) for line in lines), default=0) < 2:
        return None
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vmae", "font.size": 11}):
        figure = MplFigure(figsize=(4.4, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for n, line in enumerate(lines):
            marker = "o" if len(line.step) < 3 else None
            axes.plot(line.step, line.value, color=SERIES[n % 6], linewidth=1.3, marker=marker, markersize=3)
        if level is not None:
            axes.axhline(level, color=SOFT, linewidth=0.9, linestyle=(0, (2, 3)))
        axes.set_xlabel("step", color=SOFT)
        axes.set_ylabel(label, color=SOFT)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        _plain(axes)
        svg = _page_svg(figure)
    legend = tuple(line.name for line in lines) if len(lines) > 1 else ()
    return Figure(svg, title, caption, legend)


def scatter(
    title: str, sets: Sequence[tuple[str, NDArray[np.float64]]], axes_names: tuple[str, str], caption: str = ""
) -> Figure:
    """Points (N, 2) of up to three sets. Each set has a colour and a shape."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as MplFigure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "vmae", "font.size": 11}):
        figure = MplFigure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for n, ((_, at_N2), shape) in enumerate(zip(sets, "o^s", strict=False)):
            axes.plot(*at_N2.T, shape, color=SERIES[n], fillstyle="none", markersize=3.5, markeredgewidth=0.9)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(axes_names[0], color=SOFT)
        axes.set_ylabel(axes_names[1], color=SOFT)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(color=LINE, linewidth=0.7)
        _plain(axes)
        svg = _page_svg(figure)
    return Figure(svg, title, caption, tuple(name for name, _ in sets), points=True)


def _plain(axes: Any) -> None:
    """The style of all charts: soft numbers, no frame."""
    axes.tick_params(colors=SOFT, labelcolor=SOFT, length=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.locator_params(axis="y", nbins=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.set_axisbelow(True)


def _page_svg(figure: Any) -> Markup:
    """Only the <svg> element, sized by the page and in its colours. It contains no text of the user's."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue().decode("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    svg = re.sub(r' id="(?!m|p|[0-9a-f]{6,})[^"]*"', "", svg)
    for n, colour in enumerate(SERIES, 1):
        svg = svg.replace(colour, f"var(--c{n})")
    svg = svg.replace(SOFT, "var(--soft)").replace(LINE, "var(--line)")
    return Markup(svg.replace("<svg", '<svg class="curves" role="img"', 1))  # noqa: S704


def confusion_picture(confusion_KK: NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Rows: true class. Columns: predicted class. A darker cell has a larger share of its row."""
    counts_K1 = confusion_KK.sum(axis=1, keepdims=True)
    share_KK = confusion_KK / np.maximum(counts_K1, 1)
    caption = "Rows: true class. Columns: predicted class. A stronger colour means a larger share of the row."
    if len(classes) <= MAX_NUMBERED:
        caption += " On a narrow screen the matrix scrolls sideways."
        return Figure(_confusion_svg(confusion_KK, share_KK, classes), "", caption)
    rgba = np.zeros((*share_KK.shape, 4), dtype=np.uint8)
    rgba[..., :3] = ACCENT
    rgba[..., 3] = np.rint(255 * np.sqrt(share_KK))
    cell = max(1, 640 // len(classes))
    return Figure(picture(rgba.repeat(cell, axis=0).repeat(cell, axis=1), lossless=True), "", caption)


def _confusion_svg(confusion_KK: NDArray[np.int64], share_KK: NDArray[np.float64], classes: Sequence[str]) -> Markup:
    cell, left = 34, 168
    classes = [printable(name) for name in classes]
    side = cell * len(classes)
    # Never smaller than drawn, so that its texts stay legible: the box around it scrolls.
    parts = [Markup(
        '<div class="scroll" tabindex="0">'
        '<svg viewBox="0 0 {} {}" class="confusion" role="img" style="min-width:{}px;max-width:{}px">'
    ).format(left + side, side + 20, left + side, 1.25 * (left + side))]  # fmt: skip
    for k, name in enumerate(classes):
        y = k * cell
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end" font-size="12">{}</text>').format(
                left - 8, y + cell / 2 + 4, f"{_short(name)}  {k}"
            )
        )
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="middle" font-size="11" class="soft">{}</text>').format(
                left + y + cell / 2, side + 15, k
            )
        )
        for column, count in enumerate(confusion_KK[k].tolist()):
            tooltip = f"{name} predicted as {classes[column]}: {count}"
            parts.append(_cell(left + column * cell, y, cell, count, float(share_KK[k, column]), tooltip))
    return Markup("").join(parts) + Markup("</svg></div>")


def _short(name: str) -> str:
    return name if len(name) <= 20 else name[:19] + "…"


def _cell(x: float, y: float, cell: int, count: int, share: float, tooltip: str) -> Markup:
    number = Markup("")
    if count:
        number = Markup('<text x="{}" y="{}" text-anchor="middle" font-size="12">{}</text>').format(
            x + cell / 2, y + cell / 2 + 4, count
        )
    return Markup(
        '<g><title>{}</title><rect x="{}" y="{}" width="{}" height="{}" rx="2" style="fill:var(--wash)"/>'
        '<rect x="{}" y="{}" width="{}" height="{}" rx="2" style="fill:var(--c1);fill-opacity:{:.3f}"/>{}</g>'
    ).format(
        tooltip, x, y, cell - 2, cell - 2, x, y, cell - 2, cell - 2, STRONGEST * share, number,
    )  # fmt: skip
