"""Predictions → a Parquet file with one row per video, for other programs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.storage import StoragePath, commit_bytes
from vmae_train.evaluation.predictions import Predictions

__all__ = ["TOP", "output_columns", "parquet_bytes", "predictions_table", "write_predictions"]

TOP = 5


def predictions_table(predictions: Predictions, paths: Sequence[str | None]) -> pa.Table:
    """Columns `key`, `path`, `source`, `label`, then `top5` and `probabilities`, or `values`, then `views`.

    `label` is a class name, a list of names, or values; null for a video without a label. `top5` holds names, the most
    probable first; fewer with fewer classes. The schema's metadata holds the names of the numbers' columns (classes or
    values) and the evaluation protocol. `paths` are those of the source videos; None if unknown.
    """
    order_NK = np.argsort(-predictions.output_NK, axis=1, kind="stable")[:, :TOP]
    top = [[predictions.names[k] for k in row] for row in order_NK.tolist()]
    columns: dict[str, Any] = {
        "key": pa.array(predictions.key, pa.string()),
        "path": pa.array(paths, pa.string()),
        "source": pa.array(predictions.source_N),
        "label": _labels(predictions),
        **output_columns(predictions.kind, predictions.output_NK, top),
        "views": pa.array(predictions.views_N),
    }
    protocol = predictions.protocol
    table = pa.table(columns)
    return table.replace_schema_metadata(
        {
            "names": msgspec.json.encode(predictions.names),
            "views": str(protocol.views),
            "merge": "mean" if predictions.kind is LabelKind.VALUES else protocol.merge,
            "clip": msgspec.json.encode(protocol.clip),
            "antialias": msgspec.json.encode(protocol.antialias),
        }
        | ({"control": protocol.control} if protocol.control else {})
    )


def write_predictions(predictions: Predictions, shards: Shards, path: StoragePath) -> None:
    """Raises VmaeError if the file can't be written."""
    table = predictions_table(predictions, shards.source_paths(predictions.sample_N.tolist()))
    commit_bytes(path, parquet_bytes(table))


def output_columns(kind: LabelKind, outputs: Iterable[Sequence[float]], top: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The columns of the model's outputs: `values`, or `top5` and `probabilities`. `top` holds names of classes."""
    numbers = pa.array(list(outputs), pa.list_(pa.float64()))
    if kind is LabelKind.VALUES:
        return {"values": numbers}
    return {"top5": pa.array(top, pa.list_(pa.string())), "probabilities": numbers}


def parquet_bytes(table: pa.Table) -> bytes:
    """The content of a compressed Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _labels(predictions: Predictions) -> pa.Array:
    names = predictions.names
    if predictions.target_NK is None:
        return pa.array([names[k] if k >= 0 else None for k in predictions.label_N.tolist()], pa.string())
    targets = list(zip(predictions.target_NK, predictions.labelled_N, strict=True))
    if predictions.kind is LabelKind.VALUES:
        rows = [target_K.tolist() if labelled else None for target_K, labelled in targets]
        return pa.array(rows, pa.list_(pa.float64()))
    present = [[names[k] for k in np.flatnonzero(target_K)] if labelled else None for target_K, labelled in targets]
    return pa.array(present, pa.list_(pa.string()))
