"""Scores → accuracies and the confusion matrix. Numbers only.

N videos, K classes.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Scores", "score"]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What an evaluation gave. `unreadable` names the videos that were left out of every number."""

    videos: int
    views: str
    top1: float
    top5: float | None
    mean_class: float
    classes: tuple[str, ...]
    per_class: dict[str, float]
    confusion: list[list[int]]  # rows: true class, columns: answer
    unreadable: dict[str, str]
    control: str | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.confusion), *(len(row) for row in self.confusion)}
        if lengths != {len(self.classes)}:
            raise ValueError(f"confusion is not of {len(self.classes)} × {len(self.classes)} numbers")
        named = {name for name, row in zip(self.classes, self.confusion, strict=True) if any(row)}
        if min((n for row in self.confusion for n in row), default=0) < 0 or not named <= self.per_class.keys():
            raise ValueError("confusion and per_class don't belong together")


def score(
    probability_NK: NDArray[Any],
    label_N: NDArray[np.int64],
    *,
    classes: tuple[str, ...],
    views: str,
    unreadable: dict[str, str],
    control: str | None = None,
) -> Scores:
    """Accuracies in per cent. A tie goes to the lower class number; top-5 only where there are more than 5."""
    order_NK = np.argsort(-probability_NK, axis=1, kind="stable")
    answer_N = order_NK[:, 0]
    confusion_KK = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion_KK, (label_N, answer_N), 1)
    counts = confusion_KK.sum(axis=1)
    right = {name: float(100 * confusion_KK[k, k] / counts[k]) for k, name in enumerate(classes) if counts[k]}
    top5 = None
    if len(classes) > 5:
        top5 = float(100 * (order_NK[:, :5] == label_N[:, None]).any(axis=1).mean())
    return Scores(
        videos=len(label_N),
        views=views,
        top1=float(100 * (answer_N == label_N).mean()),
        top5=top5,
        mean_class=float(np.mean(list(right.values()))),
        classes=classes,
        per_class=right,
        confusion=confusion_KK.tolist(),
        unreadable=unreadable,
        control=control,
    )
