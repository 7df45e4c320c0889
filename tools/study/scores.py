"""Scores of finished pieces → tables, pictures and docs/study.md."""

from __future__ import annotations

import io
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tools.study.pieces import Piece, is_done
from vmae_data.storage import commit_bytes

__all__ = [
    "KNN",
    "LINEAR",
    "LOSS",
    "LOSS_LATER",
    "LOSS_UNSEEN",
    "NOT_RUN",
    "SEGMENT_KNN",
    "TOP1",
    "TOP1_OTHER",
    "VIDEOS",
    "Measure",
    "Row",
    "Subject",
    "insert",
    "picture",
    "scores_of",
    "spread",
    "table",
]

NOT_RUN = "Not run yet."
# Okabe and Ito's colours, which people with colour blindness can tell apart; each with a marker of its own.
COLOURS, MARKERS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), "osD^"


class Measure(NamedTuple):
    """A score: its title with the unit, where it lies in a piece's JSON file, and how it is written."""

    title: str
    file: str  # in the folder of a piece; empty if the piece writes the file itself
    value: Callable[[Any], float]
    digits: int = 1
    drawn: bool = True


def _other_classes(scores: Any) -> float:
    """Mean accuracy over the classes that are no pans."""
    return statistics.mean(value for name, value in scores["per_class"].items() if not name.startswith("pan-"))


TOP1 = Measure("finetuned top-1, %", "evaluation.json", lambda scores: float(scores["top1"]))
TOP1_OTHER = Measure("of rotations and zooms, %", "evaluation.json", _other_classes)
KNN = Measure("frozen, k-NN top-1, %", "", lambda scores: float(scores["knn"]["top1"]))
LINEAR = Measure(
    "frozen, logistic regression top-1, %", "", lambda scores: float(scores["few_shot"][0]["logistic"]["mean"])
)
LOSS = Measure("held-out masked loss", "", lambda scores: float(scores["loss"]), 3)
LOSS_LATER = Measure("masked loss, later parts", "", lambda scores: float(scores["loss"]), 3)
LOSS_UNSEEN = Measure("masked loss, unseen videos", "", lambda scores: float(scores["loss"]), 3)
SEGMENT_KNN = Measure("k-NN: which video, %", "", lambda scores: float(scores["knn"]["top1"]))
VIDEOS = Measure("videos", "index.json", lambda index: float(index["samples"]), 0, drawn=False)


class Row(NamedTuple):
    """A setting: the pieces of each score, one a seed. Rows of one `series` have one colour in the picture."""

    setting: str
    series: str
    scores: Mapping[Measure, tuple[Piece, ...]]
    pictures: tuple[Piece, ...] = ()


class Subject(NamedTuple):
    """A question of the study. `axis` names what the settings are."""

    name: str
    axis: str
    rows: tuple[Row, ...]


def scores_of(folder: Path, row: Row, measure: Measure) -> list[float]:
    """The scores of the seeds that are done."""
    done = [piece for piece in row.scores[measure] if is_done(folder, piece)]
    return [measure.value(msgspec.json.decode((piece.out / measure.file).read_bytes())) for piece in done]


def spread(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation (every value)."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}" if values else "not run yet"
    listed = ", ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f} ({listed})"


def table(folder: Path, subject: Subject) -> str:
    """A Markdown table of all rows; NOT_RUN if no score is there."""
    measures, series = _measures(subject), _series(subject)
    first = [subject.axis, *(["start"] if len(series) > 1 else [])]
    lines = ["| " + " | ".join([*first, *(measure.title for measure in measures)]) + " |"]
    lines.append("|" + " --- |" * (len(first) + len(measures)))
    some = False
    for row in subject.rows:
        found = [scores_of(folder, row, measure) for measure in measures]
        some = some or any(found)
        cells = [spread(values, measure.digits) for values, measure in zip(found, measures, strict=True)]
        lines.append("| " + " | ".join([row.setting, *([row.series] if len(series) > 1 else []), *cells]) + " |")
    return "\n".join(lines) if some else NOT_RUN


def picture(folder: Path, subject: Subject) -> bytes:
    """An SVG: a chart for each measure; every run is a small mark, the mean a large one, the bar a standard deviation."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    measures = [measure for measure in _measures(subject) if measure.drawn]
    settings, series = list(dict.fromkeys(row.setting for row in subject.rows)), _series(subject)
    with rc_context({"svg.hashsalt": "vmae", "font.size": 10}):
        columns = min(2, len(measures))
        lines = -(-len(measures) // columns)
        width = 4.6 * columns if columns > 1 else 6
        figure = Figure(figsize=(width, 3.3 * lines + 0.3), layout="constrained", facecolor="white")
        for number, measure in enumerate(measures):
            axes = figure.add_subplot(lines, columns, number + 1)
            for n, name in enumerate(series):
                rows = [row for row in subject.rows if row.series == name]
                found = [(settings.index(row.setting), scores_of(folder, row, measure)) for row in rows]
                _draw(axes, [(x, values) for x, values in found if values], n, len(series), name)
            axes.set_xticks(range(len(settings)), [name.replace(", ", ",\n").replace(": ", ":\n") for name in settings])
            axes.set_xlim(-0.5, len(settings) - 0.5)
            axes.tick_params(axis="x", labelsize=8)
            axes.set_xlabel(subject.axis)
            axes.set_ylabel(measure.title)
            axes.grid(axis="y", color="#cccccc", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            if len(series) > 1 and number == 0:
                axes.legend(frameon=False, fontsize=8)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Any, points: Sequence[tuple[int, Sequence[float]]], n: int, count: int, name: str) -> None:
    """The points of one series; series stand side by side."""
    shift = (n - (count - 1) / 2) * 0.16
    colour, marker = COLOURS[n % len(COLOURS)], MARKERS[n % len(MARKERS)]
    for x, values in points:
        axes.plot([x + shift + 0.05] * len(values), values, marker, color=colour, markersize=3, alpha=0.6)
    means = [statistics.mean(values) for _, values in points]
    bars = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
    at = [x + shift for x, _ in points]
    axes.errorbar(at, means, bars, fmt=marker, color=colour, markersize=6, capsize=3, linewidth=1.2, label=name)


def _measures(subject: Subject) -> list[Measure]:
    return list(dict.fromkeys(measure for row in subject.rows for measure in row.scores))


def _series(subject: Subject) -> list[str]:
    return list(dict.fromkeys(row.series for row in subject.rows))


def insert(page: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of a subject. Raises SystemExit if the page lacks them."""
    begin, end = f"<!-- {name}: made by tools.study -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"(?<={re.escape(begin)}\n).*?(?={re.escape(end)})", re.DOTALL)
    new, found = pattern.subn(lambda _: f"\n{text}\n\n", page.read_text("utf-8"))
    if found != 1:
        raise SystemExit(f"{page}: expected one pair of markers, {begin} and {end}")
    commit_bytes(page, new.encode())
