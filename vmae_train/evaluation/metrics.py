"""Predictions and labels → scores: accuracies and a confusion matrix, mean average precision, errors of values.

N videos, K classes, R values.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import NotFoundError
from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.clips.frame_sampling import ClipSpec

__all__ = [
    "AnyScores",
    "Headline",
    "LabelScores",
    "Merge",
    "Scores",
    "ValueErrors",
    "ValueScores",
    "WrongVideo",
    "average_precision",
    "class_scores",
    "label_scores",
    "read_scores",
    "standard_error",
    "top_confusions",
    "value_scores",
    "write_scores",
]

TOP_CONFUSIONS = 10  # pairs of true and predicted class

Merge = Literal["softmax", "logit"]
"""What is averaged over the views of a video: probabilities or logits."""


class Headline(NamedTuple):
    """The headline metric: the number by which models are compared."""

    key: str  # in logs
    name: str
    value: float
    unit: str
    higher_is_better: bool

    def __str__(self) -> str:
        return f"{self.name} {self.value:.2f} %" if self.unit == "%" else f"{self.name} {self.value:.4g}"


class _CommonScores(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """The results of every evaluation, and the settings of its protocol; None: not recorded.

    `unreadable` names the videos that no number includes.
    """

    videos: int
    views: str
    unreadable: dict[str, str]
    merge: str = "softmax"
    control: str | None = None
    clip: ClipSpec | None = None
    antialias: bool | None = None


class WrongVideo(msgspec.Struct, frozen=True, kw_only=True):
    """A video whose class the model predicted wrongly. `sample` is its number in the data set."""

    key: str
    sample: int
    label: str
    label_probability: float
    predicted: str
    probability: float


class Scores(_CommonScores, frozen=True, kw_only=True, tag="class"):
    """For one class a video. Accuracies in per cent. `wrong`: the most confident errors, and one of each frequent pair."""

    top1: float
    top5: float | None
    mean_class: float
    classes: tuple[str, ...]
    per_class: dict[str, float]
    confusion: list[list[int]]  # rows: true class, columns: predicted class
    wrong: tuple[WrongVideo, ...] = ()  # the most confident first; scores of older versions lack them

    def __post_init__(self) -> None:
        lengths = {len(self.confusion), *(len(row) for row in self.confusion)}
        if lengths != {len(self.classes)}:
            raise ValueError(f"confusion does not have {len(self.classes)} × {len(self.classes)} numbers")
        named = {name for name, row in zip(self.classes, self.confusion, strict=True) if any(row)}
        if min((n for row in self.confusion for n in row), default=0) < 0 or not named <= self.per_class.keys():
            raise ValueError("confusion and per_class contradict each other")

    @property
    def headline(self) -> Headline:
        return Headline("top1", "top-1", self.top1, "%", higher_is_better=True)


class LabelScores(_CommonScores, frozen=True, kw_only=True, tag="classes"):
    """For several classes a video. Average precisions in per cent; a class without a video has none."""

    mean_ap: float
    classes: tuple[str, ...]
    per_class: dict[str, float]
    positives: dict[str, int]  # of every class, the number of its videos

    def __post_init__(self) -> None:
        if self.positives.keys() != set(self.classes) or not self.per_class.keys() <= self.positives.keys():
            raise ValueError("classes, per_class and positives contradict each other")

    @property
    def headline(self) -> Headline:
        return Headline("mean_ap", "mAP", self.mean_ap, "%", higher_is_better=True)


class ValueErrors(msgspec.Struct, frozen=True, kw_only=True):
    """For one value, in its own units."""

    mae: float
    rmse: float
    spread: float  # standard deviation of the true values: the RMSE of predicting their mean


class ValueScores(_CommonScores, frozen=True, kw_only=True, tag="values"):
    """For values. `mae` and `rmse` are means over the values, in the values' own units."""

    mae: float
    rmse: float
    per_value: dict[str, ValueErrors]

    @property
    def headline(self) -> Headline:
        name = "MAE" if len(self.per_value) == 1 else f"MAE (mean of {len(self.per_value)} values)"
        return Headline("mae", name, self.mae, "", higher_is_better=False)


AnyScores = Scores | LabelScores | ValueScores


def read_scores(path: Path) -> AnyScores | None:
    """The scores in a file; None if there is none, or if it is damaged: then the model is scored again."""
    try:
        scores: AnyScores = msgspec.json.decode(read_bytes(path), type=AnyScores)
    except (NotFoundError, *NOT_JSON):
        return None
    return scores


def write_scores(path: Path, scores: AnyScores) -> None:
    commit_bytes(path, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")


def class_scores(
    probability_NK: NDArray[Any],
    label_N: NDArray[np.int64],
    *,
    classes: tuple[str, ...],
    **common: Any,
) -> Scores:
    """Accuracies in per cent. The lower class number wins a tie. Top-5 needs more than 5 classes.

    `common`: the fields of `_CommonScores`.
    """
    order_NK = np.argsort(-probability_NK, axis=1, kind="stable")
    predicted_N = order_NK[:, 0]
    confusion_KK = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion_KK, (label_N, predicted_N), 1)
    counts = confusion_KK.sum(axis=1)
    right = {name: float(100 * confusion_KK[k, k] / counts[k]) for k, name in enumerate(classes) if counts[k]}
    top5 = None
    if len(classes) > 5:
        top5 = float(100 * (order_NK[:, :5] == label_N[:, None]).any(axis=1).mean())
    return Scores(
        videos=len(label_N),
        top1=float(100 * (predicted_N == label_N).mean()),
        top5=top5,
        mean_class=float(np.mean(list(right.values()))),
        classes=classes,
        per_class=right,
        confusion=confusion_KK.tolist(),
        **common,
    )


def top_confusions(confusion_KK: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The pairs of true and predicted class that are confused most often, the most frequent first."""
    errors_KK = confusion_KK * (1 - np.eye(len(confusion_KK), dtype=np.int64))
    order = np.argsort(-errors_KK, axis=None, kind="stable")[:TOP_CONFUSIONS]
    return [divmod(int(index), len(confusion_KK)) for index in order if errors_KK.flat[index]]


def label_scores(
    probability_NK: NDArray[Any],
    present_NK: NDArray[Any],
    *,
    classes: tuple[str, ...],
    **common: Any,
) -> LabelScores:
    """Average precision of every class with a video, and their mean; 0 if no class has one. `common`: see `class_scores`."""
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
        **common,
    )


def average_precision(score_N: NDArray[Any], present_N: NDArray[Any]) -> float:
    """The sum of (gain in recall) × precision over distinct scores, highest first, without interpolation.

    Videos with the same score count together: their order changes nothing.
    """
    order_N = np.argsort(-score_N, kind="stable")
    ranked_N = score_N[order_N]
    last = np.append(ranked_N[1:] != ranked_N[:-1], True)  # of each group of equal scores
    true_positives = np.cumsum(present_N[order_N] > 0)[last]
    precision = true_positives / (np.flatnonzero(last) + 1)
    return float((np.diff(true_positives, prepend=0) * precision).sum() / true_positives[-1])


def value_scores(
    predicted_NR: NDArray[Any],
    value_NR: NDArray[Any],
    *,
    names: tuple[str, ...],
    **common: Any,
) -> ValueScores:
    """Errors of each value in its own units, and their means over the values. `common`: see `class_scores`."""
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
        **common,
    )


def standard_error(percent: float, videos: int) -> float:
    """The standard error of an accuracy, in percentage points.

    At 0 and 100 %, it is computed as if one more video had the other result, so that it is never 0.
    """
    share = percent / 100
    if share in (0.0, 1.0):
        share = abs(share - 1 / (videos + 2))
    return 100 * math.sqrt(share * (1 - share) / videos)
