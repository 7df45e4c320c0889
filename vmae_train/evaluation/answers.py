"""What a model says of the views of videos → one answer a source video, from all processes, and its scores.

S samples that a process read, N source videos, K classes or values.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError
from vmae_data.read.batches import PADDING
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed
from vmae_train.evaluation.metrics import AnyScores, Merge, label_score, score, value_score
from vmae_train.evaluation.protocol import EvaluationProtocol

__all__ = ["Answers", "Found", "activate", "answers_from", "merge_by_source", "scores_of"]

_SEGMENT = re.compile(r"(?<=-[0-9a-f]{16})-s\d{4,}$")  # as `format.key_of` writes it


def activate(logits_NK: Tensor, kind: LabelKind) -> Tensor:
    """The head's outputs as probabilities; values are what they are."""
    if kind is LabelKind.CLASS:
        return logits_NK.softmax(dim=-1)
    return logits_NK.sigmoid() if kind is LabelKind.CLASSES else logits_NK


class Answers(NamedTuple):
    """One row a source video that could be read, labelled or not, ascending by its number in the data set."""

    url: str
    kind: LabelKind
    names: tuple[str, ...]  # of classes, or of values
    key: tuple[str, ...]  # of the sample; of a video in segments, what their keys share
    sample_N: NDArray[np.int64]  # of a video in segments, the first that was read
    source_N: NDArray[np.int64]
    output_NK: NDArray[np.float64]  # probabilities, or values
    label_N: NDArray[np.int64]  # the class; −1 where there is none, or where labels are of another kind
    target_NK: NDArray[np.float32] | None  # several classes, or values
    labelled_N: NDArray[np.bool_]
    views_N: NDArray[np.int64]  # how many clips were looked at
    protocol: EvaluationProtocol
    unreadable: dict[str, str]


class Found:
    """What one process found: sample numbers, and the mean over their views, on the host."""

    def __init__(self, num_outputs: int) -> None:
        self._num_outputs = num_outputs
        self._samples: list[int] = []
        self._rows: list[NDArray[np.float32]] = []

    def add(self, batch: Batch, output_BK: Tensor) -> None:
        values = output_BK.cpu().numpy()
        for place, (sample, weight) in enumerate(zip(batch.request.samples, batch.weight_B.tolist(), strict=True)):
            if sample != PADDING and weight:
                self._samples.append(sample)
                self._rows.append(values[place])

    def gathered(self, distributed: Distributed) -> Gathered:
        """Those of all processes, by sample number: so sums don't hang on who found what."""
        samples = np.asarray(self._samples, dtype=np.int64)
        rows = np.asarray(self._rows, dtype=np.float32).reshape(-1, self._num_outputs)
        numbers = np.concatenate(
            [np.frombuffer(data, dtype=np.int64) for data in distributed.gather(samples.tobytes())]
        )
        flat = np.concatenate([np.frombuffer(data, dtype=np.float32) for data in distributed.gather(rows.tobytes())])
        order = np.argsort(numbers)
        return Gathered(numbers[order], flat.reshape(-1, self._num_outputs)[order])


class Gathered(NamedTuple):
    """Ascending sample numbers, each once, and the mean of what their views gave."""

    sample_S: NDArray[np.int64]
    output_SK: NDArray[np.float32]


class Merged(NamedTuple):
    source_N: NDArray[np.int64]
    first_N: NDArray[np.int64]  # the first sample of each that was read
    samples_N: NDArray[np.int64]  # how many were read
    output_NK: NDArray[np.float64]


def merge_by_source(shards: Shards, found: Gathered, merge: Merge) -> Merged:
    """The mean over the segments of a source, wherever they were read; logits become probabilities after it."""
    source_N, first, place_S, samples_N = np.unique(
        shards.source_N[found.sample_S].astype(np.int64), return_index=True, return_inverse=True, return_counts=True
    )
    sum_NK = np.zeros((len(source_N), found.output_SK.shape[1]))
    np.add.at(sum_NK, place_S, found.output_SK.astype(np.float64))
    output_NK = sum_NK / samples_N[:, None]
    if merge == "logit":
        output_NK = activate(torch.from_numpy(output_NK), shards.label_kind).numpy()
    return Merged(source_N, found.sample_S[first], samples_N, output_NK)


def answers_from(
    shards: Shards,
    merged: Merged,
    names: tuple[str, ...],
    *,
    protocol: EvaluationProtocol,
    unreadable: dict[str, str],
) -> Answers:
    """With keys and labels beside them."""
    first = [int(n) for n in merged.first_N]
    is_class = shards.label_kind is LabelKind.CLASS
    return Answers(
        url=shards.url,
        kind=shards.label_kind,
        names=names,
        key=tuple(_SEGMENT.sub("", shards.key(n)) for n in first),
        sample_N=merged.first_N,
        source_N=merged.source_N,
        output_NK=merged.output_NK,
        label_N=shards.label_N[merged.first_N],
        target_NK=None if is_class else shards.targets(first),
        labelled_N=np.asarray([shards.label(n) is not None for n in first], dtype=np.bool_),
        views_N=protocol.views.clips * protocol.views.crops * merged.samples_N,
        protocol=protocol,
        unreadable=unreadable,
    )


def scores_of(answers: Answers) -> AnyScores:
    """The scores over the videos that have a label. Raises DataError when none has."""
    known = answers.labelled_N
    if not known.any():
        raise DataError(f"{answers.url}: not one labelled video could be read; verify the shards")
    output_NK, protocol = answers.output_NK[known], answers.protocol
    how: dict[str, Any] = {
        "views": str(protocol.views),
        "clip": protocol.clip,
        "antialias": protocol.antialias,
        "merge": protocol.merge,
        "control": protocol.control,
        "unreadable": answers.unreadable,
    }
    if answers.target_NK is None:
        return score(output_NK, answers.label_N[known], classes=answers.names, **how)
    target_NK = answers.target_NK[known]
    if answers.kind is LabelKind.CLASSES:
        return label_score(output_NK, target_NK, classes=answers.names, **how)
    return value_score(output_NK, target_NK, names=answers.names, **{**how, "merge": "mean"})
