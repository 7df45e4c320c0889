"""Predictions → a page: for each video a player, frames, and the probabilities of its classes over time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from vmae_data.pages.html import (
    Bar,
    Bars,
    Gallery,
    Note,
    Part,
    Player,
    Section,
    Span,
    Table,
    Tile,
    Timeline,
    write_page,
)
from vmae_data.read.dataset import LabelKind
from vmae_data.storage import StoragePath
from vmae_train.inference.predict import Prediction
from vmae_train.inference.video_runner import VideoResult

__all__ = ["write_predictions_page"]

MAX_VIDEOS, MAX_CLASSES, MAX_PICTURES = 100, 6, 6
TICKS = 5
# Containers that some browser opens; whether it decodes the codec, only the browser knows.
ABOUT = (
    "A player loads its video file by the path from this page, so it shows nothing if one of the two moves. "
    "A browser plays only codecs it knows; the frames are part of the page."
)
PLAYED = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".ogv", ".3gp")


def write_predictions_page(
    results: Sequence[VideoResult[Prediction]],
    paths: dict[str, StoragePath],
    page: StoragePath,
    *,
    model: str,
    subtitle: str,
) -> None:
    """`paths`: where each video is. A video on this machine has a player. Raises VmaeError if it can't be written."""
    readable = [result for result in results if result.error is None]
    sections = [Section("About this page", (Note(ABOUT),))] if readable else []
    sections += [
        Section(result.video, tuple(_parts(result, paths.get(result.video), page))) for result in readable[:MAX_VIDEOS]
    ]
    if len(readable) > MAX_VIDEOS:
        note = f"The page shows {MAX_VIDEOS} of {len(readable)} videos. Use --out for all."
        sections.insert(0, Section("More videos", (Note(note, warning=True),)))
    broken = tuple((result.video, result.error) for result in results if result.error is not None)
    if broken:
        sections.append(Section("Unreadable videos", (Table(("video", "reason"), broken),)))
    write_page(page, f"Predictions of {model}", sections, subtitle)


def _parts(result: VideoResult[Prediction], path: StoragePath | None, page: StoragePath) -> Iterator[Part]:
    if isinstance(path, Path) and isinstance(page, Path) and path.suffix.lower() in PLAYED:
        relative = os.path.relpath(path.resolve(), page.resolve().parent)
        yield Player(quote(os.fsencode(relative)))
    elif isinstance(path, Path):
        yield Note(f"Without a player: browsers don't open {path.suffix} files.")
    elif path is not None:
        yield Note("Without a player: the video is not on this machine.")
    if len(result.rows) == 1:
        yield from _whole(result.rows[0])
    else:
        yield from _windows(result.rows)
    chosen = np.linspace(0, len(result.pictures) - 1, min(MAX_PICTURES, len(result.pictures))).round().astype(int)
    if not len(chosen):
        yield Note("Without frames: an earlier command predicted this video.")
    if len(chosen):
        parts = [chosen[first : first + 3] for first in range(0, len(chosen), 3)]
        yield Gallery(tuple(Tile(tuple(result.pictures[n] for n in part), "") for part in parts))


def _whole(prediction: Prediction) -> Iterator[Part]:
    if prediction.kind is LabelKind.VALUES:
        yield Table(("value", "prediction"), tuple((name, f"{x:.4g}") for name, x in prediction.top()), numbers=(1,))
        return
    bars = tuple(Bar(name, value, f"{100 * value:.1f} %") for name, value in prediction.top(MAX_CLASSES))
    yield Bars(bars, "Classes", top=1)


def _windows(predictions: Sequence[Prediction]) -> Iterator[Part]:
    """The height of a bar is the probability. Each window is drawn from its start to the start of the next one."""
    names = predictions[0].names
    output_WK = np.asarray([one.outputs for one in predictions])
    is_values = predictions[0].kind is LabelKind.VALUES
    starts = [one.start or 0.0 for one in predictions]
    duration = predictions[-1].end or 1.0
    if not is_values:
        # By the highest probability anywhere: a class of a few seconds is of interest too.
        first = np.argsort(-output_WK.max(axis=0), kind="stable")[:MAX_CLASSES]
        rows = tuple((names[k], tuple(_spans(predictions, starts, duration, int(k)))) for k in first)
        ticks = tuple(_clock(duration * n / (TICKS - 1)) for n in range(TICKS))
        yield Timeline(rows, ticks)
    lines = []
    for one in predictions:
        text = ", ".join(f"{name} {value:.4g}" if is_values else f"{name} {value:.0%}" for name, value in one.top(3))
        lines.append((f"{one.start:.2f} to {one.end:.2f} s", text))
    yield Table(("time", "prediction"), tuple(lines), folded=f"{len(lines)} windows")


def _spans(predictions: Sequence[Prediction], starts: Sequence[float], duration: float, k: int) -> Iterator[Span]:
    for number, one in enumerate(predictions):
        end = min(one.end or duration, starts[number + 1] if number + 1 < len(starts) else duration)
        text = f"{one.names[k]}, {_clock(starts[number])} to {_clock(one.end or duration)}: {one.outputs[k]:.0%}"
        yield Span(starts[number] / duration, (end - starts[number]) / duration, one.outputs[k], text)


def _clock(seconds: float) -> str:
    """Minutes and seconds; hours if there are any, tenths below a minute."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
