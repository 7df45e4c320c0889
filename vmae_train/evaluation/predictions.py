"""Outputs per sample from all processes → one prediction per source video → scores.

S samples, N source videos, K classes or values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError
from vmae_data.names import source_key
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.distributed import Distributed
from vmae_train.evaluation.metrics import (
    AnyScores,
    Scores,
    WrongVideo,
    class_scores,
    label_scores,
    top_confusions,
    value_scores,
)
from vmae_train.evaluation.protocol import EvaluationProtocol

MAX_WRONG = 24  # wrong videos that the scores name, apart from those of the frequent pairs

__all__ = ["MAX_WRONG", "Predictions", "activate", "compute_scores", "gather_outputs", "merge_by_source"]


class Predictions(NamedTuple):
    """One row per readable source video, with or without a label, sorted by its number in the data set."""

    url: str
    kind: LabelKind
    names: tuple[str, ...]  # of the classes or values
    key: tuple[str, ...]  # of the sample; of a video in segments, the common part of its keys
    sample_N: NDArray[np.int64]  # of a video in segments, the first readable one
    source_N: NDArray[np.int64]
    output_NK: NDArray[np.float64]  # probabilities or values
    label_N: NDArray[np.int64]  # the class; −1 without a label, or for labels of another kind
    target_NK: NDArray[np.float32] | None  # several classes, or values
    labelled_N: NDArray[np.bool_]
    views_N: NDArray[np.int64]  # the number of clips that the mean is over
    protocol: EvaluationProtocol
    unreadable: dict[str, str]


def activate(logits_NK: Tensor, kind: LabelKind) -> Tensor:
    """The head's outputs as probabilities; values stay."""
    if kind is LabelKind.CLASS:
        return logits_NK.softmax(dim=-1)
    return logits_NK.sigmoid() if kind is LabelKind.CLASSES else logits_NK


def gather_outputs(
    distributed: Distributed, samples: Sequence[int], outputs: Sequence[NDArray[np.float32]], num_outputs: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The samples of all processes and their outputs, (S) and (S, K).

    Sorted by sample number: later sums don't depend on which process predicted which sample.
    """
    own_S = np.asarray(samples, dtype=np.int64)
    own_SK = np.asarray(outputs, dtype=np.float32)
    sample_S = np.concatenate(
        [np.frombuffer(part, dtype=np.int64) for part in distributed.all_gather_bytes(own_S.tobytes())]
    )
    flat = np.concatenate(
        [np.frombuffer(part, dtype=np.float32) for part in distributed.all_gather_bytes(own_SK.tobytes())]
    )
    order = np.argsort(sample_S)
    return sample_S[order], flat.reshape(-1, num_outputs)[order]


def merge_by_source(
    shards: Shards,
    sample_S: NDArray[np.int64],
    output_SK: NDArray[np.float32],
    *,
    names: tuple[str, ...],
    kind: LabelKind,
    protocol: EvaluationProtocol,
    unreadable: dict[str, str],
) -> Predictions:
    """The mean over the segments of each source, with keys and labels. Logits become probabilities after the mean.

    `kind` is that of the model's outputs.
    """
    source_N, first, source_S, segments_N = np.unique(
        shards.source_N[sample_S].astype(np.int64), return_index=True, return_inverse=True, return_counts=True
    )
    sum_NK = np.zeros((len(source_N), output_SK.shape[1]))
    np.add.at(sum_NK, source_S, output_SK.astype(np.float64))
    output_NK = sum_NK / segments_N[:, None]
    if protocol.merge == "logit":
        output_NK = activate(torch.from_numpy(output_NK), kind).numpy()
    sample_N = sample_S[first]
    numbers = [int(n) for n in sample_N]
    return Predictions(
        url=shards.url,
        kind=kind,
        names=names,
        key=tuple(source_key(shards.key(n)) for n in numbers),
        sample_N=sample_N,
        source_N=source_N,
        output_NK=output_NK,
        label_N=shards.label_N[sample_N],
        target_NK=None if shards.label_kind is LabelKind.CLASS else shards.targets(numbers),
        labelled_N=np.asarray([shards.label(n) is not None for n in numbers], dtype=np.bool_),
        views_N=protocol.views.clips * protocol.views.crops * segments_N,
        protocol=protocol,
        unreadable=unreadable,
    )


def compute_scores(predictions: Predictions) -> AnyScores:
    """The scores over the labelled videos. Raises DataError if there are none."""
    labelled_N = predictions.labelled_N
    if not labelled_N.any():
        raise DataError(f"{predictions.url}: no labelled video could be read. Run `vmae-shard verify` on the shards")
    output_NK, protocol = predictions.output_NK[labelled_N], predictions.protocol
    settings: dict[str, Any] = {
        "views": str(protocol.views),
        "clip": protocol.clip,
        "antialias": protocol.antialias,
        "merge": protocol.merge,
        "control": protocol.control,
        "unreadable": predictions.unreadable,
    }
    if predictions.target_NK is None:
        label_N = predictions.label_N[labelled_N]
        scores = class_scores(output_NK, label_N, classes=predictions.names, **settings)
        return msgspec.structs.replace(scores, wrong=_wrong_videos(predictions, scores))
    target_NK = predictions.target_NK[labelled_N]
    if predictions.kind is LabelKind.CLASSES:
        return label_scores(output_NK, target_NK, classes=predictions.names, **settings)
    return value_scores(output_NK, target_NK, names=predictions.names, **{**settings, "merge": "mean"})


def _wrong_videos(predictions: Predictions, scores: Scores) -> tuple[WrongVideo, ...]:
    """The most confident errors, and the most confident one of each pair of classes that is confused most often."""
    names, label_N = predictions.names, predictions.label_N
    probability_NK = np.nan_to_num(predictions.output_NK)  # JSON has no NaN
    predicted_N, confidence_N = probability_NK.argmax(axis=1), probability_NK.max(axis=1)
    wrong = np.flatnonzero((label_N >= 0) & (predicted_N != label_N))
    wrong = wrong[np.argsort(-confidence_N[wrong], kind="stable")]
    pairs = top_confusions(np.asarray(scores.confusion, dtype=np.int64))
    firsts = [wrong[(label_N[wrong] == true) & (predicted_N[wrong] == predicted)][0] for true, predicted in pairs]
    chosen = {*wrong[:MAX_WRONG].tolist(), *map(int, firsts)}
    return tuple(
        WrongVideo(
            key=predictions.key[n],
            sample=int(predictions.sample_N[n]),
            label=names[label_N[n]],
            label_probability=float(probability_NK[n, label_N[n]]),
            predicted=names[predicted_N[n]],
            probability=float(confidence_N[n]),
        )
        for n in wrong.tolist()
        if n in chosen
    )
