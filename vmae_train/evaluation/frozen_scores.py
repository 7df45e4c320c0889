"""Features of labelled videos → scores of classifiers on top of them: k-NN, nearest class mean, logistic regression.

N videos, M training videos, E channels, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.rng import Purpose, bits, permutation
from vmae_train.clips.frame_sampling import ClipSpec

__all__ = [
    "SEEDS",
    "FeatureSet",
    "FrozenScores",
    "KnnScores",
    "MeanSpread",
    "ShotScores",
    "choose_shots",
    "few_shot_scores",
    "fit_logistic",
    "knn_scores",
    "knn_votes",
    "nearest_mean",
    "parse_shots",
]

NEIGHBOURS, TEMPERATURE = 20, 0.07  # those of DINO's k-NN: Caron et al., ICCV 2021, section 4.1 and its code
SEEDS = 5
PENALTY = 1.0  # of half the squared weights, against the sum of the losses
ROWS = 1024  # of the similarities that are in memory at once


class FeatureSet(NamedTuple):
    """Labelled videos: their features, class numbers, and the 64 bits that identify each in random numbers."""

    feature_NE: NDArray[np.float64]
    label_N: NDArray[np.int64]
    sample_N: NDArray[np.uint64]


class MeanSpread(msgspec.Struct, frozen=True):
    """Mean and standard deviation (of a sample) over the seeds, in per cent."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> MeanSpread:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0)

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.spread:.2f} %"


class KnnScores(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies in per cent; top-5 needs more than 5 classes."""

    k: int
    top1: float
    top5: float | None


class ShotScores(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies with `shots` training videos of each class, drawn anew for each seed."""

    shots: int
    seeds: int
    nearest_mean: MeanSpread
    logistic: MeanSpread


class FrozenScores(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="features"):
    """Scores of the features of one block, and how the videos were sampled. `unreadable`: of both data sets."""

    videos: int
    train_videos: int
    layer: int
    views: str
    clip: ClipSpec
    antialias: bool
    control: str | None
    unreadable: dict[str, str]
    knn: KnnScores | None
    few_shot: tuple[ShotScores, ...]


def parse_shots(text: str) -> tuple[int, ...]:
    """`1,5,10` → the numbers, ascending. Raises MisuseError."""
    if not re.fullmatch(r"0*[1-9]\d{0,5}(,0*[1-9]\d{0,5})*", text, re.ASCII):
        raise MisuseError(f"--few-shot {text[:40]}: expected numbers of videos with commas, such as 1,5,10")
    return tuple(sorted({int(part) for part in text.split(",")}))


def knn_scores(train: FeatureSet, validation: FeatureSet, num_classes: int) -> KnnScores:
    """As DINO evaluates: cosine similarity, the nearest `NEIGHBOURS`, or all of fewer."""
    k = min(NEIGHBOURS, len(train.label_N))
    order_NK = np.argsort(-knn_votes(train, validation.feature_NE, num_classes, k), axis=1, kind="stable")
    found_NK = order_NK == validation.label_N[:, None]
    top5 = 100 * float(found_NK[:, :5].any(axis=1).mean()) if num_classes > 5 else None
    return KnnScores(k=k, top1=100 * float(found_NK[:, 0].mean()), top5=top5)


def knn_votes(train: FeatureSet, feature_NE: NDArray[np.float64], num_classes: int, k: int) -> NDArray[np.float64]:
    """(N, K): each of the k nearest training videos votes for its class with weight exp(similarity / temperature)."""
    train_ME = torch.nn.functional.normalize(torch.from_numpy(train.feature_NE), dim=1)
    label_M = torch.from_numpy(train.label_N)
    votes = []
    for first in range(0, len(feature_NE), ROWS):
        some_NE = torch.nn.functional.normalize(torch.from_numpy(feature_NE[first : first + ROWS]), dim=1)
        similarity, nearest = (some_NE @ train_ME.T).topk(k, dim=1)
        weight = (similarity / TEMPERATURE).exp()
        votes.append(
            torch.zeros(len(some_NE), num_classes, dtype=weight.dtype).scatter_add(1, label_M[nearest], weight)
        )
    return torch.cat(votes).numpy()


def few_shot_scores(
    train: FeatureSet,
    validation: FeatureSet,
    shots: int,
    classes: Sequence[str],
    fitted: Callable[[], None] = lambda: None,
) -> ShotScores:
    """Standardises features by the mean and spread of all training videos, whose labels this does not use.

    `fitted` is called after each seed.
    Raises DataError if a class has too few training videos.
    """
    mean_E, spread_E = train.feature_NE.mean(axis=0), train.feature_NE.std(axis=0)
    spread_E[spread_E == 0] = 1
    train_ME = torch.from_numpy((train.feature_NE - mean_E) / spread_E)
    feature_NE = torch.from_numpy((validation.feature_NE - mean_E) / spread_E)
    label_M, label_N = torch.from_numpy(train.label_N), torch.from_numpy(validation.label_N)
    by_mean, by_regression = [], []
    for seed in range(SEEDS):
        chosen = torch.from_numpy(choose_shots(train, shots, seed, classes))
        some_ME, some_M = train_ME[chosen], label_M[chosen]
        by_mean.append(_accuracy(nearest_mean(some_ME, some_M, feature_NE, len(classes)), label_N))
        weight_KE, bias_K = fit_logistic(some_ME, some_M, len(classes))
        by_regression.append(_accuracy((feature_NE @ weight_KE.T + bias_K).argmax(dim=1), label_N))
        fitted()
    return ShotScores(
        shots=shots, seeds=SEEDS, nearest_mean=MeanSpread.of(by_mean), logistic=MeanSpread.of(by_regression)
    )


def choose_shots(train: FeatureSet, shots: int, seed: int, classes: Sequence[str]) -> NDArray[np.int64]:
    """The rows of `shots` videos of each class. A video's random number depends on the seed and its key only."""
    hash_M = bits(seed, 0, train.sample_N, 0, 0, Purpose.FEW_SHOT)
    chosen = []
    for number, name in enumerate(classes):
        rows = np.flatnonzero(train.label_N == number)
        if len(rows) < shots:
            raise DataError(
                f"class {name!r} has {len(rows)} readable training videos, which is less than {shots} shots. "
                "Lower --few-shot, or add training videos"
            )
        chosen.append(np.sort(rows[permutation(hash_M[rows])[:shots]]))
    return np.concatenate(chosen)


def nearest_mean(feature_ME: Tensor, label_M: Tensor, feature_NE: Tensor, num_classes: int) -> Tensor:
    """The class whose mean is nearest by Euclidean distance; the lower number wins a tie."""
    count_K = torch.bincount(label_M, minlength=num_classes).to(feature_ME.dtype)
    sum_KE = torch.zeros(num_classes, feature_ME.shape[1], dtype=feature_ME.dtype).index_add(0, label_M, feature_ME)
    mean_KE = sum_KE / count_K[:, None]
    # |x - m|² without |x|², which all classes share.
    return (mean_KE.square().sum(dim=1) - 2 * feature_NE @ mean_KE.T).argmin(dim=1)


def fit_logistic(feature_ME: Tensor, label_M: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights (K, E) and biases (K) of the smallest sum of cross-entropies plus `PENALTY` / 2 · |weights|², by L-BFGS."""
    weight_KE = torch.zeros(num_classes, feature_ME.shape[1], dtype=feature_ME.dtype, requires_grad=True)
    bias_K = torch.zeros(num_classes, dtype=feature_ME.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KE, bias_K], max_iter=500, tolerance_grad=1e-6, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits_MK = feature_ME @ weight_KE.T + bias_K
        losses = torch.nn.functional.cross_entropy(logits_MK, label_M, reduction="sum")
        loss: Tensor = losses + PENALTY / 2 * weight_KE.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight_KE.detach(), bias_K.detach()


def _accuracy(predicted_N: Tensor, label_N: Tensor) -> float:
    return 100 * float((predicted_N == label_N).double().mean())
