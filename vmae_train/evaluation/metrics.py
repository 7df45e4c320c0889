"""Answers and labels → scores: accuracies and the confusion matrix, mean average precision, errors of values.

N videos, K classes, R values.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_train.clips.frame_sampling import ClipSpec

__all__ = [
    "AnyScores",
    "Headline",
    "LabelScores",
    "Merge",
    "Scores",
    "ValueErrors",
    "ValueScores",
    "average_precision",
    "label_score",
    "score",
    "value_score",
]

Merge = Literal["softmax", "logit"]
"""What is averaged over the views of a video: probabilities, or what they are made of."""


class Headline(NamedTuple):
    """The one number of a score that two models are compared by."""

    key: str  # in logs
    name: str
    value: float
    unit: str
    higher_is_better: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} %" if self.unit == "%" else f"{self.name} {self.value:.4g}"


class _Scored(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every evaluation gives, and how the videos were looked at, where that is known.

    `unreadable` names the videos that were left out of every number.
    """

    videos: int
    views: str
    unreadable: dict[str, str]
    merge: str = "softmax"
    control: str | None = None
    clip: ClipSpec | None = None
    antialias: bool | None = None


class Scores(_Scored, frozen=True, kw_only=True, tag="class"):
    """Of one class a video. Accuracies in per cent."""

    top1: float
    top5: float | None
    mean_class: float
    classes: tuple[str, ...]
    per_class: dict[str, float]
    confusion: list[list[int]]  # rows: true class, columns: answer

    def __post_init__(self) -> None:
        lengths = {len(self.confusion), *(len(row) for row in self.confusion)}
        if lengths != {len(self.classes)}:
            raise ValueError(f"confusion is not of {len(self.classes)} × {len(self.classes)} numbers")
        named = {name for name, row in zip(self.classes, self.confusion, strict=True) if any(row)}
        if min((n for row in self.confusion for n in row), default=0) < 0 or not named <= self.per_class.keys():
            raise ValueError("confusion and per_class don't belong together")

    @property
    def headline(self) -> Headline:
        return Headline("top1", "top-1", self.top1, "%", higher_is_better=True)


class LabelScores(_Scored, frozen=True, kw_only=True, tag="classes"):
    """Of several classes a video. Average precisions in per cent; classes that no video shows have none."""

    mean_ap: float
    classes: tuple[str, ...]
    per_class: dict[str, float]
    positives: dict[str, int]  # videos that show the class, of every class

    def __post_init__(self) -> None:
        if self.positives.keys() != set(self.classes) or not self.per_class.keys() <= self.positives.keys():
            raise ValueError("classes, per_class and positives don't belong together")

    @property
    def headline(self) -> Headline:
        return Headline("mean_ap", "mAP", self.mean_ap, "%", higher_is_better=True)


class ValueErrors(msgspec.Struct, frozen=True, kw_only=True):
    """Of one value, in its own units."""

    mae: float
    rmse: float
    spread: float  # standard deviation of the true values: the RMSE of answering their mean


class ValueScores(_Scored, frozen=True, kw_only=True, tag="values"):
    """Of values. `mae` and `rmse` are means over the values, in the values' own units."""

    mae: float
    rmse: float
    per_value: dict[str, ValueErrors]

    @property
    def headline(self) -> Headline:
        name = "MAE" if len(self.per_value) == 1 else f"MAE (mean of {len(self.per_value)} values)"
        return Headline("mae", name, self.mae, "", higher_is_better=False)


AnyScores = Scores | LabelScores | ValueScores


def score(
    probability_NK: NDArray[Any],
    label_N: NDArray[np.int64],
    *,
    classes: tuple[str, ...],
    **how: Any,
) -> Scores:
    """Accuracies in per cent. A tie goes to the lower class number; top-5 only where there are more than 5. `how`: the fields of every evaluation."""
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
        top1=float(100 * (answer_N == label_N).mean()),
        top5=top5,
        mean_class=float(np.mean(list(right.values()))),
        classes=classes,
        per_class=right,
        confusion=confusion_KK.tolist(),
        **how,
    )


def label_score(
    probability_NK: NDArray[Any],
    present_NK: NDArray[Any],
    *,
    classes: tuple[str, ...],
    **how: Any,
) -> LabelScores:
    """Average precision of every class that some video shows, and their mean; 0 where none shows any. `how` as in `score`."""
    positives = {name: int(present_NK[:, k].sum()) for k, name in enumerate(classes)}
    precision = {
        name: 100 * average_precision(probability_NK[:, k], present_NK[:, k])
        for k, name in enumerate(classes)
        if positives[name]
    }
    return LabelScores(
        videos=len(present_NK),
        mean_ap=float(np.mean(list(precision.values()))) if precision else 0.0,
        classes=classes,
        per_class=precision,
        positives=positives,
        **how,
    )


def average_precision(score_N: NDArray[Any], present_N: NDArray[Any]) -> float:
    """Sum over distinct scores, from the highest down, of (gain in recall) × precision, without interpolation.

    Videos of the same score come in together, so their order changes nothing.
    """
    order_N = np.argsort(-score_N, kind="stable")
    ranked_N = score_N[order_N]
    last = np.append(ranked_N[1:] != ranked_N[:-1], True)  # of each group of equal scores
    found = np.cumsum(present_N[order_N] > 0)[last]
    precision = found / (np.flatnonzero(last) + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def value_score(
    predicted_NR: NDArray[Any],
    value_NR: NDArray[Any],
    *,
    names: tuple[str, ...],
    **how: Any,
) -> ValueScores:
    """Errors of each value in its own units, and their means over the values. `how` as in `score`."""
    error_NR = predicted_NR.astype(np.float64) - value_NR
    each = {
        name: ValueErrors(
            mae=float(np.abs(error_NR[:, r]).mean()),
            rmse=float(np.sqrt(np.square(error_NR[:, r]).mean())),
            spread=float(value_NR[:, r].astype(np.float64).std()),
        )
        for r, name in enumerate(names)
    }
    return ValueScores(
        videos=len(value_NR),
        mae=float(np.mean([one.mae for one in each.values()])),
        rmse=float(np.mean([one.rmse for one in each.values()])),
        per_value=each,
        **how,
    )
