"""Answers as a Parquet file: a row a video, for other programs to read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.storage import StoragePath, commit_bytes
from vmae_train.evaluation.answers import Answers

__all__ = ["predictions_table", "write_predictions"]

TOP = 5


def predictions_table(answers: Answers, paths: Sequence[str | None]) -> pa.Table:
    """Columns `key`, `path`, `source`, `label`, then `top5` and `probabilities`, or `values`, then `views`.

    `label` is a class's name, a list of names, or values; null where a video has none. `top5` are names, the likeliest
    first, fewer where there are fewer classes. Names of all classes or values, in the order of the columns of numbers,
    stand in the schema's metadata, and so does how the videos were looked at. `paths` are those of the source files, None
    where one is not known.
    """
    columns: dict[str, Any] = {
        "key": pa.array(answers.key, pa.string()),
        "path": pa.array(paths, pa.string()),
        "source": pa.array(answers.source_N),
        "label": _labels(answers),
    }
    numbers = pa.array(list(answers.output_NK), pa.list_(pa.float64()))
    if answers.kind is LabelKind.VALUES:
        columns["values"] = numbers
    else:
        order_NK = np.argsort(-answers.output_NK, axis=1, kind="stable")[:, :TOP]
        top = [[answers.names[k] for k in row] for row in order_NK.tolist()]
        columns["top5"] = pa.array(top, pa.list_(pa.string()))
        columns["probabilities"] = numbers
    protocol = answers.protocol
    columns["views"] = pa.array(answers.views_N)
    table = pa.table(columns)
    return table.replace_schema_metadata(
        {
            "names": msgspec.json.encode(answers.names),
            "views": str(protocol.views),
            "merge": "mean" if answers.kind is LabelKind.VALUES else protocol.merge,
            "clip": msgspec.json.encode(protocol.clip),
            "antialias": msgspec.json.encode(protocol.antialias),
        }
        | ({"control": protocol.control} if protocol.control else {})
    )


def write_predictions(answers: Answers, shards: Shards, place: StoragePath) -> None:
    """Raises VmaeError where the file can't be written."""
    out = io.BytesIO()
    table = predictions_table(answers, shards.source_paths(answers.sample_N.tolist()))
    pq.write_table(table, out, compression="zstd")
    commit_bytes(place, out.getvalue())


def _labels(answers: Answers) -> pa.Array:
    names, known = answers.names, answers.labelled_N
    if answers.target_NK is None:
        return pa.array([names[k] if k >= 0 else None for k in answers.label_N.tolist()], pa.string())
    if answers.kind is LabelKind.VALUES:
        rows = [row.tolist() if there else None for row, there in zip(answers.target_NK, known, strict=True)]
        return pa.array(rows, pa.list_(pa.float64()))
    shown = [
        [names[k] for k in np.flatnonzero(row)] if there else None
        for row, there in zip(answers.target_NK, known, strict=True)
    ]
    return pa.array(shown, pa.list_(pa.string()))
